//! `--by-key`: several handlers at work on one partition, the order of each key kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::isolation::{fails_at, letters, write_bad};
use crate::support::{End, Handler, Message, Run, World, is_full, value};

/// How long a handler may outlive a ksync that was killed.
const SOON: Duration = Duration::from_millis(100);

/// So many records of so many keys, in turns; the payload is the offset.
fn keyed(records: usize, keys: usize) -> impl Iterator<Item = Message> {
    (0..records).map(move |offset| value(offset.to_string()).key(format!("k{}", offset % keys)))
}

fn done(handler: &Handler) -> Vec<Run> {
    let mut runs: Vec<_> = handler.runs().into_iter().filter(|run| run.done.is_some()).collect();
    runs.sort_by_key(|run| run.done);
    runs
}

/// Checks that of each key the first successes came in the order of the offsets, and gives how many records had one.
fn first_successes(handler: &Handler, keys: usize) -> usize {
    let (mut first, mut last) = (BTreeSet::new(), BTreeMap::new());
    for run in done(handler) {
        for offset in run.offsets() {
            if first.insert(offset) {
                let before = last.insert(offset % keys as i64, offset);
                assert!(before < Some(offset), "{offset} of its key came after {before:?}");
            }
        }
    }
    first.len()
}

#[test]
fn one_slow_key_holds_neither_the_others_nor_more_than_its_offset() {
    let world = World::new("slow-key");
    let products = world.topic("products", 1);
    let gate = world.gate();
    world.kafka.produce(&products, keyed(2000, 100));
    // The 8th record is slow, and with it the share that it lies in.
    let handler = world.handler(&format!("if grep -q '\"offset\":7,' \"$run\"; then await {gate}; fi"));
    let options = "--session-timeout 30s -j 4 --by-key --batch-size 200";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    let slow = || handler.runs().into_iter().find(|run| run.offsets().contains(&7));
    world.eventually("the slow record is begun", || slow().is_some());
    let slow: Vec<_> = slow().unwrap().offsets().iter().map(|offset| offset % 100).collect();
    world.eventually("all records of other keys are done", || {
        let done: usize = done(&handler).iter().map(Run::offsets).map(|offsets| offsets.len()).sum();
        done >= (100 - slow.len()) * 20
    });
    assert!(slow.len() <= 30, "a share of {} keys is too large a part of them", slow.len());
    assert_eq!(
        done(&handler).iter().flat_map(Run::offsets).filter(|offset| slow.contains(&(offset % 100))).max(),
        None
    );
    world.eventually("what lies before is committed", || seat.offset() == slow.iter().min().copied());

    gate.open();
    world.eventually("all is committed", || seat.offset() == Some(2000));
    assert_eq!(first_successes(&handler, 100), 2000);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    assert_eq!(runs.iter().map(|run| run.count).sum::<usize>(), 2000);
    assert!(runs.iter().all(|run| run.attempt == 1 && run.offsets().is_sorted()));
}

#[test]
fn so_many_handlers_run_at_once_as_there_may_be_and_the_order_of_each_key_is_kept() {
    let world = World::new("by-key");
    let products = world.topic("products", 2);
    let messages = keyed(3000, 40).enumerate().map(|(number, message)| message.to(i32::from(number % 3 == 0)));
    world.kafka.produce(&products, messages);
    let handler = world.handler("sleep 0.02");
    let mut consumer = world.consume(&format!(
        "-t {products} -n indexer --session-timeout 30s -e -j 3 --by-key --batch-size 100 -- {handler}"
    ));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let is_at_work = |other: &Run, line| other.begun <= line && line < other.done.unwrap();
    let at_work = |run: &Run| runs.iter().filter(|other| is_at_work(other, run.begun)).count();
    assert_eq!(runs.iter().map(at_work).max(), Some(3));
    let mut last = BTreeMap::new();
    for run in done(&handler) {
        for line in &run.lines {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let (key, offset) = ((run.partition, line["key"].to_string()), line["offset"].as_i64().unwrap());
            assert!(last.insert(key, offset) < Some(offset));
        }
    }
    let offsets = [0, 1].map(|partition| world.seat(&products, partition, "indexer").offset());
    assert_eq!((offsets, runs.iter().map(|run| run.count).sum::<usize>()), ([Some(2000), Some(1000)], 3000));
}

#[test]
fn the_bad_records_of_all_shares_are_put_aside_and_the_others_done_in_the_order_of_their_key() {
    let world = World::new("by-key-bad");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, keyed(600, 30));
    let bad = [0, 31, 32, 299, 300, 599];
    let (handler, _) = fails_at(&world, bad, 1);
    let options = format!(
        "--session-timeout 30s -j 4 --by-key --batch-size 100 --retry-pause 10ms --retry-pause-max 50ms --dead-letter={dead}"
    );
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(3));
    let mut put_aside = letters(&world, &dead);
    put_aside.sort_unstable();
    assert_eq!(put_aside, bad);
    assert_eq!((first_successes(&handler, 30), world.seat(&products, 0, "indexer").offset()), (594, Some(600)));
}

#[test]
fn bad_records_that_are_too_many_together_are_not_put_aside_though_no_share_has_so_many() {
    let world = World::new("by-key-breaker");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, keyed(160, 160));
    // Of a share of 10 at most 5.
    let (handler, bad) = fails_at(&world, (0..160).filter(|offset| offset % 2 == 0), 1);
    let options = "--session-timeout 30s -j 8 --by-key --batch-wait 2s --isolate-after 1 --retry-pause 10ms --retry-pause-max 50ms";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} --dead-letter={dead} -- {handler}"));
    world.eventually("the breaker opens", || {
        consumer.says(&["error: ", "none is put aside until the one at offset 0 works"])
    });
    assert_eq!((world.kafka.count(&dead), world.seat(&products, 0, "indexer").offset()), (0, Some(0)));

    write_bad(&bad, [80]);
    world.eventually("all is done", || world.seat(&products, 0, "indexer").offset() == Some(160));
    assert_eq!((letters(&world, &dead), first_successes(&handler, 160)), (vec![80], 159));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn without_a_dead_letter_topic_a_bad_record_holds_its_key_and_the_others_go_on() {
    let world = World::new("by-key-stay");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, keyed(400, 20));
    let (handler, bad) = fails_at(&world, [105], 1);
    let options = "--session-timeout 30s -j 4 --by-key --batch-size 50 --retry-pause 10ms --retry-pause-max 100ms";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    // Of key 5 those before it are done, of the others all.
    world.eventually("the others are done", || done(&handler).iter().map(|run| run.count).sum::<usize>() >= 380 + 5);
    world.eventually("the offset is that of the bad one", || seat.offset() == Some(105));
    world.eventually("it is told", || consumer.says(&["error: ", "halted at offset 105: "]));

    write_bad(&bad, []);
    world.eventually("all is done", || seat.offset() == Some(400));
    // What passed it in its share came again after it.
    let of_its_key = done(&handler).iter().flat_map(Run::offsets).filter(|offset| offset % 20 == 5).collect::<Vec<_>>();
    let late = of_its_key.iter().position(|offset| *offset == 105).unwrap();
    assert_eq!(of_its_key[late + 1..], (125..400).step_by(20).collect::<Vec<i64>>());
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_bad_record_whose_key_is_the_only_one_lets_others_pass_that_show_that_the_store_works() {
    let world = World::new("by-key-proof");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, keyed(1, 1));
    let (handler, _) = fails_at(&world, [0], 1);
    let options = format!("-j 2 --by-key --retry-pause 10ms --retry-pause-max 100ms --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.eventually("it stands alone", || handler.runs().len() > 4);
    assert_eq!(world.kafka.count(&dead), 0);
    world.kafka.produce(&products, keyed(3, 1));
    world.eventually("all is done", || world.seat(&products, 0, "indexer").offset() == Some(4));
    assert_eq!(letters(&world, &dead), [0]);
    assert_eq!(first_successes(&handler, 1), 3);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_bounded_run_ends_at_a_record_that_it_cannot_get_past_with_all_others_done() {
    let world = World::new("by-key-exit");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, keyed(60, 20));
    let (handler, _) = fails_at(&world, [25], 1);
    let options = "--session-timeout 30s -e -j 4 --by-key --batch-wait 2s --retry-pause 10ms --retry-pause-max 100ms";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1));
    assert!(consumer.says(&["error: ", "cannot work on the record at offset 25: exit status 1"]));
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(25));
    // The last one of its key may have passed it, in the same share.
    assert!(first_successes(&handler, 20) >= 58);
}

#[test]
fn sigterm_finishes_what_is_under_way_and_begins_nothing_more() {
    let world = World::new("by-key-term");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, keyed(400, 400));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let mut consumer = world.consume(&format!("-t {products} -n indexer -j 2 --by-key --batch-wait 2s -- {handler}"));
    world.eventually("two are at work", || handler.runs().len() == 2);
    consumer.signal(Signal::TERM);
    world.eventually("it is told", || consumer.says(&["asked to end"]));
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let taken: i64 = runs.iter().map(|run| run.offsets().len() as i64).sum();
    assert!(runs.len() == 2 && taken < 400, "{taken} of 400");
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(taken));
}

/// The process ids that handlers have noted and that still run.
fn alive(pids: &Path) -> Vec<String> {
    let text = fs::read_to_string(pids).unwrap_or_default();
    let runs = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with(['Z', 'X']))
    };
    text.lines().filter(runs).map(str::to_owned).collect()
}

#[test]
fn kills_at_any_moment_lose_nothing_and_keep_the_order_of_each_key() {
    let world = World::new("by-key-kill");
    let (products, kills) = (world.topic("products", 1), if is_full() { 50 } else { 6 });
    let (records, keys, mut random) = (kills * 200, 25, StdRng::seed_from_u64(17));
    world.kafka.produce(&products, keyed(records, keys));
    let pids: PathBuf = world.file("pids");
    let handler = world.handler(&format!("echo $$ >> {}; sleep 0.02", pids.display()));
    let start = || {
        world.consume(&format!(
            "-t {products} -n indexer --session-timeout 1s -j 4 --by-key --batch-size 50 -- {handler}"
        ))
    };
    let seat = world.seat(&products, 0, "indexer");
    let mut left = vec![];
    for _ in 0..kills {
        let mut consumer = start();
        let before = handler.runs().len();
        world.eventually("it works", || handler.runs().len() > before || seat.offset() == Some(records as i64));
        world.for_a_while(Duration::from_millis(random.random_range(0..300)), "", || true);
        consumer.kill();
        left.push(world.within(Duration::from_secs(5), "no handler runs", || alive(&pids).is_empty()));
        // What is committed was done.
        let offset = usize::try_from(seat.offset().unwrap_or(0)).unwrap();
        let done: BTreeSet<_> = done(&handler).iter().flat_map(Run::offsets).collect();
        assert_eq!((0..offset as i64).filter(|offset| !done.contains(offset)).count(), 0);
    }
    // To look takes its time, too, the most of it while the machine has other things to do.
    left.sort_unstable();
    assert!(left[left.len() / 4] < SOON, "{left:?}");
    let mut consumer = start();
    world.eventually("it leads", || consumer.says(&["leading from offset"]));
    world.within(Duration::from_secs(120), "all is done", || seat.offset() == Some(records as i64));
    assert_eq!(first_successes(&handler, keys), records);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}
