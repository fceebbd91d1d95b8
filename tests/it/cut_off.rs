//! The way to Kafka: cut after a write and before its acknowledgement, or to one broker alone.

use std::time::Duration;

use crate::brokers::delay_message;
use crate::consume::ids;
use crate::support::{End, Passage, STALL, Way, World, is_full, value};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const DELAYER: &str = env!("CARGO_BIN_EXE_ksync-delayer");
const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

#[test]
fn what_was_written_when_the_connection_broke_before_its_acknowledgement_is_in_the_log_once() {
    let world = World::new("unacknowledged");
    let (products, orders) = (world.topic_with_delay("products", 1), world.topic("orders", 1));
    let delay_topic = format!("{products}-delay");
    let rounds = if is_full() { 50 } else { 4 };
    let (of_stream, of_delayer) = (way(&world), way(&world));
    let start = |program: &str, way: &Way, arguments: &str| {
        world.start(program, arguments, &[("KSYNC_BOOTSTRAP_SERVER", &way.bootstrap)])
    };
    let delayer = start(DELAYER, &of_delayer, &format!("-t {products} --delay 100ms"));
    world.eventually("the delayer leads", || delayer.says(&["leading from offset 0"]));
    let seat = world.seat(&delay_topic, 0, "delayer");
    for round in 1..=rounds {
        let mut stream = start(STREAM, &of_stream, &format!("- -t {orders}"));
        let ids = [2 * round - 1, 2 * round];
        for way in [&of_stream, &of_delayer] {
            way.set(1, Passage::Unacknowledged);
        }
        stream.tell(ids.map(|id| format!("{id}\n")).concat());
        world.kafka.produce(&delay_topic, ids.map(|id| value(delay_message(&id.to_string()))));
        for (way, topic) in [(&of_stream, &orders), (&of_delayer, &products)] {
            world.eventually("they are in the log", || world.kafka.count(topic) >= 2 * round);
            way.cut(1);
        }
        assert_eq!(stream.wait(), End::Status(0));
        world.eventually("they are acknowledged", || seat.offset() == Some(2 * round));
    }
    for topic in [&orders, &products] {
        let values: Vec<_> = world.kafka.records(topic).into_iter().filter_map(|record| record.value).collect();
        assert_eq!(values, (1..=2 * rounds).map(|id| id.to_string()).collect::<Vec<_>>());
    }
    assert!(delayer.log_of("error").is_empty(), "{:?}", delayer.log());
}

fn way(world: &World) -> Way {
    Way::to(world.services.get("KSYNC_BOOTSTRAP_SERVER"))
}

#[test]
fn a_client_cut_off_from_one_broker_goes_on_with_the_partitions_of_the_others_and_later_with_all() {
    let world = World::alone_with("cut-off", 3);
    let products = format!("products-{}", world.id);
    world.kafka.create_on(&products, &[&[1], &[2], &[3]], &[("min.insync.replicas", "1")]);
    let (way, handler) = (way(&world), world.handler(""));
    let consumer = world.start(
        CONSUME,
        &format!("-t {products} -n indexer -j 4 -- {handler}"),
        &[("KSYNC_BOOTSTRAP_SERVER", &way.bootstrap)],
    );
    let offsets = || [0, 1, 2].map(|p| world.seat(&products, p, "indexer").offset().unwrap_or(0));
    let write = |ids: std::ops::Range<u32>| {
        for p in 0..3 {
            world.kafka.produce(&products, self::ids(ids.clone()).map(|message| message.to(p)));
        }
    };
    let mut until = 5;
    write(0..5);
    world.eventually("all are done", || offsets() == [5, 5, 5]);
    let passages: &[Passage] = if is_full() { &[Passage::Closed, Passage::Frozen] } else { &[Passage::Closed] };
    for passage in passages {
        way.set(2, *passage);
        for _ in 0..3 {
            let done = offsets()[1];
            write(until..until + 5);
            until += 5;
            world.within(STALL, "the others go on", || offsets() == [until.into(), done, until.into()]);
        }
        let time = Duration::from_secs(if is_full() { 90 } else { 1 });
        world.for_a_while(time, "one stalls", || offsets()[1] < i64::from(until));
        way.set(2, Passage::Open);
        // What was held back for so long may have to time out first.
        let limit = if *passage == Passage::Closed { STALL } else { Duration::from_secs(90) };
        world.within(limit, "it goes on", || offsets() == [i64::from(until); 3]);
    }
    let mut payloads = handler.payloads();
    payloads.sort();
    let mut expected: Vec<_> = (0..until).flat_map(|id| [0; 3].map(|_| format!("{{\"id\":{id}}}"))).collect();
    expected.sort();
    assert_eq!(payloads, expected);
    assert!(!consumer.says(&["no longer leading"]) && !consumer.says(&["halted"]), "{:?}", consumer.log());
}
