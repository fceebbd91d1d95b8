//! Brokers that are there and name none: what their clients do when they are told that the cluster has no brokers.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::brokers::delay_message;
use crate::consume::ids;
use crate::support::{End, World, value};

/// The controller takes the broker for dead from 3 s after each heartbeat until the next one.
const SELDOM: &str = "\nbroker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=8000\n";
const OFTEN: &str = "\nbroker.session.timeout.ms=9000\nbroker.heartbeat.interval.ms=2000\n";

#[test]
fn clients_that_were_told_of_no_brokers_find_them_again() {
    let world = World::alone("fenced");
    let [products, orders] = ["products", "orders"].map(|name| world.topic_with_delay(name, 1));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let mut delayer = world.delayer(&format!("-t {orders} --delay 500ms"));
    let mut stream = world.stream(&format!("- -t {orders} --only instant --chunk-size 1"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..1));
    world.eventually("the first is done", || seat.offset() == Some(1));
    stream.tell("{\"id\":1}\n");
    world.eventually("all are at work", || delayer.says(&["leading"]) && world.kafka.count(&orders) == 1);

    world.end_broker(world.services.pid("kafka-1"), Signal::TERM);
    let broker = world.start_broker("kafka-1", SELDOM);
    world
        .within(Duration::from_secs(60), "the broker tells of no broker", || world.kafka.brokers(&products) == Some(0));
    // All have asked meanwhile.
    world.for_a_while(Duration::from_secs(9), "all go on", || consumer.is_running() && delayer.is_running());
    let gone = Instant::now();
    drop(broker);
    let _broker = world.start_broker("kafka-1", OFTEN);
    world.within(Duration::from_secs(60), "the broker tells of itself", || world.kafka.brokers(&products) == Some(1));
    // The longer it was away, the longer a client may wait before it is told again (`kafka/lost.rs`): 30 s at most.
    let limit = Duration::from_secs(15) + gone.elapsed().min(Duration::from_secs(30));

    world.kafka.produce(&products, ids(1..3));
    world.kafka.produce(&format!("{orders}-delay"), [value(delay_message("7"))]);
    stream.tell("{\"id\":2}\n");
    // One by the delayer, one by ksync-stream.
    world.within(limit, "each has done the rest", || seat.offset() == Some(3) && world.kafka.count(&orders) == 3);
    assert_eq!(stream.wait(), End::Status(0));
}
