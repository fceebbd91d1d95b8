//! Brokers that hold a client to its quota.

use std::thread;
use std::time::{Duration, Instant};

use crate::stream::delayed;
use crate::support::{End, World, value};

/// In bytes a second. A broker throttles whoever has had more than ten seconds' worth of it.
const QUOTA: usize = 20_000;

/// A second's worth.
fn row(id: usize) -> String {
    format!("{{\"id\":{id},\"text\":\"{}\"}}", "x".repeat(QUOTA))
}

#[test]
fn a_client_that_is_throttled_is_slow_and_loses_and_repeats_nothing() {
    let world = World::new("quota");
    let (products, orders) = (world.topic_with_delay("products", 1), world.topic("orders", 1));
    let server = world.services.get("KSYNC_BOOTSTRAP_SERVER");
    let tool = format!("kafka-configs.sh --bootstrap-server {server} --alter --entity-type clients");
    let quotas = format!("producer_byte_rate={QUOTA},consumer_byte_rate={QUOTA}");
    world.shell(&format!("{tool} --entity-name {} --add-config {quotas}", world.id));
    let to_be_read: Vec<_> = (1..=13).map(row).collect();
    // A batch of more than ten seconds' worth would never be given.
    world.kafka.with("batch.num.messages", "1").produce(&orders, to_be_read.iter().map(value));
    let to_be_sent: Vec<_> = (1..=7).map(row).collect();

    let (begun, client) = (Instant::now(), format!("-X client.id={}", world.id));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {orders} -n indexer -e {client} -- {handler}"));
    let consumed = thread::spawn(move || ((consumer.wait(), consumer.log_of("warn")), begun.elapsed()));
    let action = world.script("cat > /dev/null");
    let options = format!("--chunk-size 1 {client} -X compression.type=none");
    let lines = to_be_sent.join("\n") + "\n";
    let mut stream = world.stream_lines(&format!("- -t {products} {options} -- {action}"), lines);
    let streamed = ((stream.wait(), stream.log_of("warn")), begun.elapsed());
    for ((ended, took), least) in [(streamed, 3), (consumed.join().unwrap(), 5)] {
        assert_eq!(ended, (End::Status(0), vec![]));
        assert!(took >= Duration::from_secs(least), "it was not throttled: {took:?}");
    }

    let sent: Vec<_> = world.kafka.records(&products).into_iter().filter_map(|record| record.value).collect();
    assert!(sent == to_be_sent && delayed(&world, &products) == to_be_sent, "{} messages were sent", sent.len());
    let read = handler.payloads();
    assert!(read == to_be_read, "{} records were handled", read.len());
}
