//! Dead letters that are sent back to their topic.

use std::fs;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{EPHEMERAL_SEQUENTIAL, End, Message, World, block_on, value};

/// The message as it lies in a dead-letter topic.
fn letter(message: Message, topic: &str, partition: i32, offset: i64) -> Message {
    let message = message.header("ksync.topic", topic).header("ksync.partition", partition.to_string());
    let message = message.header("ksync.offset", offset.to_string()).header("ksync.name", "indexer");
    message.header("ksync.error", "exit status 7").header("ksync.attempts", "5").header("ksync.stderr", "it is\nbad")
}

/// The values in a topic, by partition and offset.
fn values(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).into_iter().map(|record| record.value.unwrap()).collect()
}

fn told(sent: usize, passed: usize) -> String {
    format!("redrive: {sent} records were sent back, {passed} were passed")
}

#[test]
fn letters_go_back_once_to_their_partition_with_their_own_key_value_and_headers() {
    let world = World::new("redrive");
    let products = world.topic("products", 3);
    let dead = format!("{products}-indexer-dead");
    world.kafka.create(&dead, 2, &[]);
    let odd = value("{\"id\":\n 18446744073709551616}").key(b"\xff\x00k").header("a", "b").header("a", "c");
    let tombstone = Message { value: None, ..value("") }.key("7").header("ksync.topic", "of another");
    let moved = value("3").key("its key");
    world.kafka.produce(
        &dead,
        [
            letter(odd, &products, 2, 17).to(0),
            letter(tombstone, &products, 2, 4).to(0),
            letter(value("no JSON"), &products, 1, 0).header("traceparent", "x").to(1),
            letter(moved, &products, 3, 9).to(1),
        ],
    );
    let command = format!("--redrive -t {products} -n indexer");
    let mut redrive = world.consume(&command);
    assert_eq!(redrive.wait(), End::Status(0));
    assert!(redrive.log_of("info").contains(&told(4, 0)), "{:?}", redrive.log());

    let sent: Vec<_> = (world.kafka.records(&products).into_iter())
        .map(|record| (record.partition, record.key, record.value, record.headers))
        .collect();
    let own = |headers: &[(&str, &str)]| {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let text = |text: &str| Some(text.to_owned());
    // murmur2 of that key, as the Java client has it, is 0 of 3.
    let moved = (0, text("its key"), text("3"), vec![]);
    let traced = (1, None, text("no JSON"), own(&[("traceparent", "x")]));
    let odd = (2, text("\\xff\\x00k"), text("{\"id\":\n 18446744073709551616}"), own(&[("a", "b"), ("a", "c")]));
    let tombstone = (2, text("7"), None, own(&[("ksync.topic", "of another")]));
    assert_eq!(sent, [moved, traced, odd, tombstone]);

    let mut again = world.consume(&command);
    assert_eq!(again.wait(), End::Status(0));
    assert!(again.log_of("info").contains(&told(0, 0)), "{:?}", again.log());
    let offsets = [0, 1].map(|partition| world.seat(&dead, partition, "redrive").offset());
    assert_eq!((world.kafka.count(&products), offsets), (4, [Some(2), Some(2)]));
}

#[test]
fn a_range_of_offsets_and_a_partition_of_the_origin_choose_and_the_others_are_passed() {
    let world = World::new("redrive-some");
    let products = world.topic("products", 2);
    for (number, options, chosen) in [
        (0, "--redrive-offsets 5-7", vec!["5/0", "7/0", "6/1"]),
        (1, "--redrive-partition 1", vec!["6/1", "8/1"]),
        (2, "--redrive-partition 0 --redrive-offsets 7-20", vec!["7/0"]),
    ] {
        let (products, dead) = (format!("{products}-{number}"), world.topic(&format!("dead-{number}"), 1));
        world.kafka.create(&products, 2, &[]);
        let places = [(4, 0), (5, 0), (6, 1), (7, 0), (8, 1)];
        let letters = places.map(|(offset, at)| letter(value(format!("{offset}/{at}")), &products, at, offset));
        world.kafka.produce(&dead, letters);
        let mut redrive = world.consume(&format!("--redrive -t {products} -n indexer --dead-letter={dead} {options}"));
        assert_eq!(redrive.wait(), End::Status(0));
        assert_eq!(values(&world, &products), chosen, "{options}");
        let passed = places.len() - chosen.len();
        assert!(redrive.log_of("info").contains(&told(chosen.len(), passed)), "{:?}", redrive.log());
        assert_eq!(world.seat(&dead, 0, "redrive").offset(), Some(5));
    }
}

#[test]
fn a_record_that_is_no_letter_halts_until_it_is_passed_by_its_offset() {
    let world = World::new("redrive-halt");
    let (products, orders, dead) = (world.topic("products", 1), world.topic("orders", 1), world.topic("dead", 1));
    let broken = value("b").header("ksync.topic", &products).header("ksync.partition", "one");
    let records = [
        letter(value("0"), &products, 0, 0),
        value("a").header("ksync.name", "indexer"),
        broken,
        letter(value("3"), &orders, 0, 3),
        letter(value("4"), &products, 0, 4),
    ];
    world.kafka.produce(&dead, records);
    let mut command = format!("--redrive -t {products} -n indexer --dead-letter={dead}");
    let seat = world.seat(&dead, 0, "redrive");
    for (offset, why) in [
        (1, "it is no dead letter of ksync, for it has no header ksync.topic".to_owned()),
        (2, "its header ksync.partition is 'one'".to_owned()),
        (3, format!("it came from topic {orders}; add -t {orders}")),
    ] {
        let mut halted = world.consume(&command);
        assert_eq!(halted.wait(), End::Status(1));
        let skip = format!("--skip {dead}/0@{offset}");
        let error = format!(
            "{dead}/0 as redrive: halted at offset {offset}: cannot send the record at offset {offset} back: {why}; to pass \
             it, start with {skip}"
        );
        assert_eq!(halted.log_of("error"), [error]);
        assert_eq!(seat.offset(), Some(offset));
        command += &format!(" {skip}");
    }
    let mut passes = world.consume(&command);
    assert_eq!(passes.wait(), End::Status(0));
    assert_eq!((values(&world, &products), values(&world, &orders)), (vec!["0".to_owned(), "4".to_owned()], vec![]));
    assert_eq!((seat.offset(), seat.state()["skipped"].as_i64()), (Some(5), Some(3)));
}

#[test]
fn a_letter_that_its_topic_does_not_take_is_named() {
    let world = World::new("redrive-large");
    let (products, dead) = (format!("products-{}", world.id), world.topic("dead", 1));
    world.kafka.create(&products, 1, &[("max.message.bytes", "2000")]);
    let random: String = (0..1000).map(|_| format!("{:08x}", rand::random::<u32>())).collect();
    let letters = ["small", &random].into_iter().zip(0..).map(|(text, at)| letter(value(text), &products, 0, at));
    world.kafka.produce(&dead, letters);
    let command = format!("--redrive -t {products} -n indexer --dead-letter={dead}");
    let mut halted = world.consume(&command);
    assert_eq!(halted.wait(), End::Status(1));
    let skip = format!("--skip {dead}/0@1");
    let errors = halted.log_of("error");
    assert!(errors.len() == 1 && halted.says(&["halted at offset 1: cannot send the record at offset 1", &skip]));
    let mut passes = world.consume(&format!("{command} {skip}"));
    assert_eq!(passes.wait(), End::Status(0));
    let mut sent = values(&world, &products);
    sent.dedup(); // It may have gone with the other one, too.
    assert_eq!((sent, world.seat(&dead, 0, "redrive").offset()), (vec!["small".to_owned()], Some(2)));
}

#[test]
fn while_another_one_sends_letters_back_it_waits_and_then_says_so() {
    let world = World::new("redrive-busy");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&dead, [letter(value("1"), &products, 0, 0)]);
    let seat = world.seat(&dead, 0, "redrive");
    seat.write("offset", "0");
    let candidate = seat.path(&format!("leader/{:032x}_", 1));
    block_on(seat.client.create(&candidate, b"elsewhere", &EPHEMERAL_SEQUENTIAL)).unwrap();
    let command = format!("--redrive -t {products} -n indexer --dead-letter={dead}");
    let mut busy = world.consume(&format!("{command} --wait 10s"));
    assert_eq!(busy.wait(), End::Status(4));
    assert!(busy.says(&["error: ", "another process leads and has not ended within 10s (--wait)"]), "{:?}", busy.log());
    world.eventually("it is gone", || seat.candidates().len() == 1);
    let mut waits = world.consume(&command);
    world.eventually("it queues", || seat.candidates().len() == 2);
    waits.signal(Signal::TERM);
    assert_eq!(waits.wait(), End::Status(75));
    assert_eq!((seat.offset(), values(&world, &products)), (Some(0), vec![]));
}

#[test]
fn what_a_mended_handler_could_not_do_before_is_done_after_it_was_sent_back() {
    let world = World::new("redrive-whole");
    let products = world.topic("products", 1);
    world.kafka.create(&format!("{products}-indexer-dead"), 1, &[]);
    world.kafka.produce(&products, ids(1..=10));
    let bad = world.file("bad");
    fs::write(&bad, "{\"id\":3}\n{\"id\":8}\n").unwrap();
    let handler = world.handler(&format!("if grep -qFf '{}' \"$run\"; then exit 65; fi", bad.display()));
    let consume = format!("-t {products} -n indexer -e --retry-pause 10ms --dead-letter -- {handler}");
    assert_eq!(world.consume(&consume).wait(), End::Status(3));
    let before = handler.payloads();
    assert!(!before.iter().any(|payload| payload.contains('3') || payload.contains('8')), "{before:?}");

    fs::write(&bad, "none\n").unwrap();
    let mut redrive = world.consume(&format!("--redrive -t {products} -n indexer"));
    assert_eq!(redrive.wait(), End::Status(0));
    assert!(redrive.log_of("info").contains(&told(2, 0)), "{:?}", redrive.log());
    assert_eq!(world.consume(&consume).wait(), End::Status(0));
    assert_eq!(handler.payloads()[before.len()..], ["{\"id\":3}", "{\"id\":8}"]);
}

#[test]
fn a_redrive_takes_no_command_and_nothing_else_goes_without_one() {
    let world = World::new("redrive-usage");
    for (arguments, text) in [
        ("--redrive -- cat", "the argument '--redrive' cannot be used with"),
        ("--redrive -p 0", "the argument '--redrive' cannot be used with"),
        ("--redrive --redrive-offsets 8-7", "offsets are written FROM-TO, for example 100-4711"),
        ("--redrive --redrive-partition=-1", "invalid value '-1'"),
        ("--redrive-offsets 1-2 -- cat", "the argument '--redrive-offsets <FROM-TO>' cannot be used with"),
        ("--redrive-partition 1", "the following required arguments were not provided"),
        ("", "the following required arguments were not provided"),
    ] {
        let mut refused = world.consume(&format!("-t products -n indexer {arguments}"));
        assert_eq!(refused.wait(), End::Status(2), "{arguments}");
        assert!(refused.says(&[text]), "{arguments}: {:?}", refused.log());
    }
}
