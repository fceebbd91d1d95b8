//! Messages that are large or deep: what a broker takes arrives, and what cannot be written is refused by name.

use crate::messages::{assert_same, at_a_fixed_time, line_of};
use crate::support::{End, World, payload, value};

/// A topic that takes records of `size` bytes.
fn topic_of_large(world: &World, size: usize) -> String {
    let topic = format!("products-{}", world.id);
    let size = size.to_string();
    world.kafka.create(&topic, 1, &[("max.message.bytes", &size)]);
    world.kafka.create(&format!("{topic}-delay"), 1, &[("max.message.bytes", &size)]);
    topic
}

#[test]
fn records_of_1_and_8_mib_arrive_and_one_larger_than_a_batch_goes_alone() {
    let world = World::new("large");
    let products = topic_of_large(&world, 10 << 20);
    let text = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    let values = ["1".to_owned(), text(1 << 20), "2".to_owned(), text(8 << 20), "3".to_owned(), "4".to_owned()];
    world.kafka.produce(&products, at_a_fixed_time(values.iter().map(value)));
    let handler = world.handler("");
    let options = "-e --batch-wait 20s --batch-bytes 2MiB";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let batches: Vec<_> = runs.iter().map(|run| (run.first, run.last, run.count)).collect();
    assert_eq!(batches, [(0, 2, 3), (3, 3, 1), (4, 5, 2)]);
    let lines: Vec<String> = runs.into_iter().flat_map(|run| run.lines).collect();
    let expected: Vec<_> = (0..).zip(&values).map(|(offset, value)| line_of(&products, offset, value)).collect();
    assert_same(&lines, &expected);
}

#[test]
fn a_record_of_100_mib_is_given_if_a_broker_takes_it() {
    let world = World::new("huge");
    for (compression, size) in [("lz4", 100 << 20), ("none", 99 << 20)] {
        let products = format!("products-{compression}-{}", world.id);
        world.kafka.create(&products, 1, &[("max.message.bytes", "125829120")]);
        let values = ["1".to_owned(), format!("\"{}\"", "x".repeat(size - 2)), "2".to_owned()];
        let kafka = world.kafka.with("compression.type", compression);
        kafka.produce(&products, at_a_fixed_time(values.iter().map(value)));
        assert_eq!(world.kafka.count(&products), 3);
        let handler = world.handler("");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{compression}");
        let runs = handler.runs();
        let batches: Vec<_> = runs.iter().map(|run| (run.first, run.last)).collect();
        assert_eq!(batches, [(0, 0), (1, 1), (2, 2)]);
        let lines: Vec<String> = runs.into_iter().flat_map(|run| run.lines).collect();
        let expected: Vec<_> = (0..).zip(&values).map(|(offset, value)| line_of(&products, offset, value)).collect();
        assert_same(&lines, &expected);
        assert_eq!(consumer.log_of("warn"), Vec::<String>::new());
        world.kafka.delete(&products);
    }
}

#[test]
fn a_message_of_100_mib_is_refused_by_ksync_stream() {
    let world = World::new("huge-stream");
    let products = topic_of_large(&world, 120 << 20);
    let huge = format!("\"{}\"", "x".repeat((100 << 20) - 2));
    for (only, suffix) in [("instant", ""), ("delay", "-delay")] {
        let mut stream = world.stream_lines(&format!("- -t {products} --only {only}"), &huge);
        assert_eq!(stream.wait(), End::Status(1), "{only}");
        let told =
            format!("cannot write to topic {products}{suffix}: Kafka did not take the record: MessageSizeTooLarge");
        assert!(stream.says(&["error: ", &told]), "{:?}", stream.log());
        assert_eq!(world.kafka.count(&format!("{products}{suffix}")), 0);
    }
}

#[test]
fn a_message_that_kafka_does_not_take_is_named_by_its_key() {
    let world = World::new("too-large");
    let products = world.topic_with_delay("products", 1);
    for topic in [&products, &format!("{products}-delay")] {
        world.kafka.set(topic, &[("max.message.bytes", "10000")]);
    }
    // What can be compressed would fit.
    let line = |id: u32, length: usize| {
        let text: String = rand::random_iter::<u64>().take(length).map(|number| format!("{number:016x}")).collect();
        format!("{{\"id\":{id},\"text\":\"{text}\"}}\n")
    };
    let lines = line(1, 1) + &line(7, 4000) + &line(9, 1);
    for (options, suffix) in [("", ""), ("-- cat", "-delay")] {
        let mut stream = world.stream_lines(&format!("- -t {products} {options}"), &lines);
        assert_eq!(stream.wait(), End::Status(1), "{options}");
        let told =
            format!("cannot write to topic {products}{suffix}: Kafka did not take the record with the key 7: Message");
        assert!(stream.says(&["error: ", &told]), "{:?}", stream.log());
    }
}

#[test]
fn a_bad_record_of_100_mib_that_cannot_be_put_aside_halts_its_partition() {
    let world = World::new("huge-letter");
    let products = topic_of_large(&world, 120 << 20);
    let dead = world.topic("dead", 1);
    let huge = format!("\"{}\"", "x".repeat((100 << 20) - 2));
    world.kafka.with("compression.type", "lz4").produce(&products, [value("1"), value(huge), value("2")]);
    let handler = world.handler("[ $KSYNC_BATCH_FIRST_OFFSET -ne 1 ] || exit 65");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --dead-letter={dead} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1), "{:?}", consumer.log());
    let told =
        format!("halted at offset 1: cannot write to {dead}: Kafka did not take the record: MessageSizeTooLarge");
    assert!(consumer.says(&["error: ", &told]), "{:?}", consumer.log());
    assert_eq!((world.seat(&products, 0, "indexer").offset(), world.kafka.count(&dead)), (Some(1), 0));
    assert!(!consumer.says(&["are in the dead-letter topic"]));
    world.kafka.delete(&products);
}

#[test]
fn depth_and_a_million_members_are_no_matter_from_the_writer_through_the_delayer_to_the_handler() {
    let world = World::new("depth");
    let products = topic_of_large(&world, 30 << 20);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    // Were the time not linear, this would take hours.
    let members: Vec<String> = (0..1_000_000).map(|member| format!("\"member-{member}\":1")).collect();
    let values = [
        nested(127),
        nested(128),
        nested(10_000),
        nested(1_000_000),
        objects(1_000_000),
        r#"{"__proto__":{"a":1},"":2,"a":3,"a":4,"constructor":5}"#.to_owned(),
        format!("{{{}}}", members.join(",")),
    ];
    let mut stream = world.stream_lines(&format!("- -t {products} --only delay"), values.join("\n"));
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let _delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    world.eventually("all are sent on", || world.kafka.count(&products) == values.len() as i64);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0), "{:?}", consumer.log());
    let got: Vec<String> = handler.runs().iter().flat_map(|run| &run.lines).map(|line| payload(line)).collect();
    assert_same(&got, &values);
}
