//! A partition that halts at a record that its handler fails at, until that one works or is passed; the others go on.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::consume::ids;
use crate::isolation::{done, fails_at, write_bad};
use crate::support::{End, World, value};

#[test]
fn without_a_dead_letter_topic_the_partition_halts_at_the_record_and_the_others_go_on() {
    let world = World::new("stay");
    let products = world.topic("products", 2);
    let key = |offset: u32| if offset.is_multiple_of(2) { "even" } else { "odd" };
    let messages = (0..6).map(|offset| value(offset.to_string()).key(key(offset)).to(1));
    world.kafka.produce(&products, messages);
    let (handler, bad) = fails_at(&world, [2], 1);
    let options = "--retry-pause 50ms --retry-pause-max 200ms --batch-wait 1s -j 1";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let (zero, one) = (world.seat(&products, 0, "indexer"), world.seat(&products, 1, "indexer"));
    world.eventually("what lies before is committed", || one.offset() == Some(2));
    world.eventually("an error is told for each attempt", || consumer.log_of("error").len() >= 3);
    let told = format!(
        "{products}/1 as indexer: halted at offset 2: the handler cannot work on the record at offset 2: exit status 1; mend \
         it, or let --dead-letter put such records aside, or pass this one by --skip {products}/1@2; trying again in "
    );
    assert!(consumer.log_of("error").iter().all(|line| line.starts_with(&told)), "{:?}", consumer.log_of("error"));
    assert_eq!(done(&handler), [0, 1, 3, 4, 5]);
    world.kafka.produce(&products, ids(1..=2).map(|message| message.to(0)));
    world.eventually("the other partition goes on", || zero.offset() == Some(2));

    write_bad(&bad, [99]);
    world.eventually("it goes on once the record works", || one.offset() == Some(6));
    let of_one: Vec<_> = handler.runs().into_iter().filter(|run| run.partition == 1 && run.done.is_some()).collect();
    let of_one: Vec<_> = of_one.iter().flat_map(|run| run.offsets()).collect();
    assert_eq!(of_one, [0, 1, 3, 4, 5, 2, 4], "those of its key come again after it");
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_halted_partition_among_64_holds_up_none_of_the_others_and_takes_no_permit_away() {
    const HALTED: i32 = 17;
    let world = World::new("one-of-64");
    let products = world.topic("products", 64);
    let to_each = |count: i32| (0..64 * count).map(|number| value("1").to(number % 64));
    world.kafka.produce(&products, to_each(30));
    let (bad, gate) = (world.file("bad"), world.gate());
    fs::write(&bad, format!("\"partition\":{HALTED},\"offset\":3,\n")).unwrap();
    let handler = world.handler(&format!(
        "if grep -qFf {} \"$run\"; then exit 1; fi; ! grep -q '\"payload\":\"wait\"' \"$run\" || await {gate}",
        bad.display()
    ));
    // Each pause is at least 8 s long after some failures.
    let options = "-j 4 --batch-size 10 --retry-pause 125ms --retry-pause-max 10s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let offsets = || -> Vec<_> { (0..64).map(|p| world.seat(&products, p, "indexer").offset().unwrap_or(0)).collect() };
    let all_but_the_halted = |others| -> Vec<_> { (0..64).map(|p| if p == HALTED { 3 } else { others }).collect() };
    world.eventually("the others are at their end", || offsets() == all_but_the_halted(30));
    let tries = || handler.runs().iter().filter(|run| run.partition == HALTED && run.offsets() == [3]).count();
    world.eventually("it is tried again and again", || tries() >= 7);
    let before = tries();
    world.eventually("a long pause begins", || tries() > before);
    world.kafka.produce(&products, (0..8).map(|partition| value("\"wait\"").to(partition)));
    let at_work = || handler.runs().iter().filter(|run| run.partition < 8 && run.done.is_none()).count();
    world.within(Duration::from_millis(7900), "meanwhile all four permits are there for others", || at_work() == 4);
    gate.open();
    world.kafka.produce(&products, to_each(1).filter(|message| message.partition >= Some(8)));
    world.eventually("the others are at their end again", || offsets() == all_but_the_halted(31));
    let before = tries();
    world.eventually("it is still tried", || tries() > before);

    write_bad(&bad, [99]);
    world.eventually("it goes on once the record works", || offsets() == [31; 64]);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_record_to_skip_is_passed_once_and_the_state_tells_it() {
    let world = World::new("skip");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=4));
    let (handler, _) = fails_at(&world, [2], 1);
    let command = format!("-t {products} -n indexer -e --retry-pause 10ms --batch-wait 1s");
    let mut halted = world.consume(&format!("{command} -- {handler}"));
    assert_eq!(halted.wait(), End::Status(1));
    let option = format!("--skip {products}/0@2");
    assert!(halted.says(&["error: ", &option]), "{:?}", halted.log());

    let after = world.handler("");
    let mut skips = world.consume(&format!("{command} {option} -- {after}"));
    assert_eq!(skips.wait(), End::Status(0));
    assert_eq!(done(&after), [3]);
    assert!(skips.says(&["warn: ", "the record at offset 2 is passed"]), "{:?}", skips.log());
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), seat.state()["skipped"].as_i64()), (Some(4), Some(2)));
}
