//! What becomes of records that a handler fails at: halving, the dead-letter topic, the breaker, a lone bad record.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Handler, World, is_full, value};

/// Fails where one of the lines of `bad` is in the batch: `"offset":17,`.
pub fn fails_at(world: &World, offsets: impl IntoIterator<Item = i64>, status: u8) -> (Handler, std::path::PathBuf) {
    let bad = world.file("bad");
    write_bad(&bad, offsets);
    let handler = format!("if grep -qFf '{}' \"$run\"; then echo 'it is bad' >&2; exit {status}; fi", bad.display());
    (world.handler(&handler), bad)
}

pub fn write_bad(file: &std::path::Path, offsets: impl IntoIterator<Item = i64>) {
    let lines: String = offsets.into_iter().map(|offset| format!("\"offset\":{offset},\n")).collect();
    let part = file.with_extension("part");
    fs::write(&part, lines).unwrap();
    fs::rename(&part, file).unwrap();
}

/// The origin's offset of each dead letter, in their order.
pub fn letters(world: &World, dead: &str) -> Vec<i64> {
    let offset = |(name, value): &(String, String)| (name == "ksync.offset").then(|| value.parse().unwrap());
    world.kafka.records(dead).iter().map(|letter| letter.headers.iter().find_map(offset).unwrap()).collect()
}

/// The offsets that came to the end of a run, in the order of that.
pub fn done(handler: &Handler) -> Vec<i64> {
    let mut runs: Vec<_> = handler.runs().into_iter().filter(|run| run.done.is_some()).collect();
    runs.sort_by_key(|run| run.done);
    runs.iter().flat_map(|run| run.offsets()).collect()
}

fn random_offsets(count: usize, seed: u64) -> BTreeSet<i64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut offsets = BTreeSet::new();
    while offsets.len() < count {
        offsets.insert(random.random_range(0..1000));
    }
    offsets
}

#[test]
fn exactly_the_bad_among_a_thousand_are_put_aside_by_few_runs_and_the_others_are_done_once_and_in_order() {
    let world = World::new("isolate");
    for (bad, seed) in [(1, 1), (3, 2), (17, 3)] {
        let products = world.topic(&format!("products{bad}"), 1);
        let dead = world.topic(&format!("dead{bad}"), 1);
        world.kafka.produce(&products, ids(1..=1000));
        let offsets = random_offsets(bad, seed);
        let (handler, _) = fails_at(&world, offsets.iter().copied(), 1);
        let options = format!("--retry-pause 10ms --batch-wait 5s --dead-letter={dead}");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(3));

        assert_eq!(letters(&world, &dead), Vec::from_iter(offsets.iter().copied()));
        assert_eq!(done(&handler), Vec::from_iter((0..1000).filter(|offset| !offsets.contains(offset))));
        let more = handler.runs().len() - 3;
        let halvings = 10; // of a thousand, until one is left
        assert!(more <= bad * (1 + halvings) + 1, "{more} more runs for {bad} bad records");
        assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(1000));
    }
}

#[test]
fn so_many_bad_records_that_the_breaker_opens_are_not_put_aside() {
    let world = World::new("breaker");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=1000));
    let offsets = random_offsets(500, 4);
    let (handler, bad) = fails_at(&world, offsets.iter().copied(), 1);
    let options = format!("--retry-pause 10ms --retry-pause-max 200ms --batch-wait 5s --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the breaker opens", || consumer.says(&["error: ", "none is put aside until"]));
    let first = *offsets.first().unwrap();
    world.eventually("the first bad one alone is tried again and again", || {
        let runs = handler.runs();
        runs.iter().rev().take_while(|run| run.offsets() == [first]).count() >= 5
    });
    assert_eq!((world.kafka.count(&dead), seat.offset()), (0, Some(first)));

    write_bad(&bad, [700]);
    world.eventually("all is done once the fault is gone", || seat.offset() == Some(1000));
    assert_eq!(letters(&world, &dead), [700]);
    let all: BTreeSet<_> = done(&handler).into_iter().collect();
    assert_eq!(all, BTreeSet::from_iter((0..1000).filter(|offset| *offset != 700)));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn an_open_breaker_commits_nothing_past_a_record_that_was_named_before_the_bad_ones() {
    let world = World::new("named-before");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=40));
    // Offsets 5 to 9 are to come again, the 20 after them will never work.
    let line = r#"{\"offset\":$1,\"status\":\"fail\",\"error\":\"no\",\"permanent\":$2}"#;
    let handler = world.handler(&format!(
        "tell() {{ echo \"{line}\" >&3; }}\n\
         for offset in $(seq 5 9); do ! grep -q \"\\\"offset\\\":$offset,\" \"$run\" || tell $offset false; done\n\
         for offset in $(seq 10 29); do ! grep -q \"\\\"offset\\\":$offset,\" \"$run\" || tell $offset true; done"
    ));
    let options = "--retry-pause 10ms --retry-pause-max 100ms --batch-wait 5s";
    let command = format!("-t {products} -n indexer {options} --dead-letter={dead}");
    let mut consumer = world.consume(&format!("{command} -- {handler}"));
    world.eventually("the breaker opens", || {
        consumer.says(&["error: ", "none is put aside until the one at offset 10"])
    });
    world.eventually("the first bad one alone is tried again and again", || {
        handler.runs().iter().skip(1).filter(|run| run.offsets() == [10]).count() >= 5
    });
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), world.kafka.count(&dead)), (Some(5), 0));
    assert_eq!(handler.runs()[0].offsets(), Vec::from_iter(0..40));

    consumer.kill();
    // Nobody has to wait for the end of the session.
    seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));
    let mended = world.handler("");
    let mut next = world.consume(&format!("{command} -e -- {mended}"));
    assert_eq!(next.wait(), End::Status(0));
    assert_eq!((done(&mended), seat.offset()), (Vec::from_iter(5..40), Some(40)));
}

#[test]
fn a_dead_letter_has_its_own_key_value_and_headers_and_tells_what_happened() {
    let world = World::new("letter");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    let odd = value("{\"id\":\n 18446744073709551616}").key(b"\xff\x00k").header("a", "b").header("a", "c");
    world.kafka.produce(&products, [value("1"), odd, value("null"), value("3")]);
    let (handler, _) = fails_at(&world, [1, 2], 7);
    let options = format!("--retry-pause 10ms --batch-wait 1s --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(3));

    let letters = world.kafka.records(&dead);
    let whole: Vec<_> = letters.iter().map(|letter| (letter.key.as_deref(), letter.value.as_deref())).collect();
    let odd = Some("{\"id\":\n 18446744073709551616}");
    assert_eq!(whole, [(Some("\\xff\\x00k"), odd), (None, Some("null"))]);
    let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut added = vec![
        of("ksync.topic", &products),
        of("ksync.partition", "0"),
        of("ksync.offset", "1"),
        of("ksync.name", "indexer"),
        of("ksync.error", "exit status 7"),
    ];
    let attempts = letters[0].headers.iter().position(|(name, _)| name == "ksync.attempts").unwrap();
    let runs_of_1 = handler.runs().iter().filter(|run| run.offsets().contains(&1)).count();
    added.push(of("ksync.attempts", &runs_of_1.to_string()));
    added.push(of("ksync.stderr", "it is bad\n"));
    assert_eq!(attempts, 7);
    assert_eq!(letters[0].headers, [vec![of("a", "b"), of("a", "c")], added].concat());
}

#[test]
fn a_store_that_is_down_for_long_leaves_nothing_in_the_dead_letter_topic() {
    let world = World::new("store-down");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    let down = if is_full() { Duration::from_secs(120) } else { Duration::from_secs(6) };
    let records = if is_full() { 24_000 } else { 1200 };
    let messages = ids(1..=records).collect();
    let flow = world.kafka.flow(&products, messages, down);
    let up = world.gate();
    let handler = world.handler(&format!("[ -e {up} ] || exit 1"));
    let options = format!("--retry-pause 20ms --retry-pause-max 500ms --batch-size 50 --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    flow.join().unwrap();
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!(seat.offset().unwrap_or(0), 0);
    up.open();
    world.within(Duration::from_secs(60), "all is done", || seat.offset() == Some(i64::from(records)));
    assert_eq!(world.kafka.count(&dead), 0);
    assert_eq!(done(&handler), Vec::from_iter(0..i64::from(records)));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn a_lone_bad_record_does_not_hold_those_that_come_after_it() {
    let world = World::new("lone");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=1));
    let (handler, _) = fails_at(&world, [0], 1);
    let options = format!("--retry-pause 20ms --retry-pause-max 60s --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.eventually("it has failed alone some times", || handler.runs().len() >= 5);
    assert_eq!(world.kafka.count(&dead), 0, "the store was not seen working");
    world.kafka.produce(&products, ids(2..=2));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the next one shows that the store works", || seat.offset() == Some(2));
    assert_eq!((letters(&world, &dead), done(&handler)), (vec![0], vec![1]));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn transactions_that_are_aborted_do_not_put_off_the_next_run_of_a_lone_bad_record() {
    let world = World::new("lone-markers");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=1));
    let (handler, _) = fails_at(&world, [0], 1);
    let options = format!("--retry-pause 1s --retry-pause-max 1s --dead-letter={dead}");
    let _consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.eventually("it has failed alone some times", || handler.runs().len() >= 4);
    // A machine that stands still takes some runs away, but not each time.
    for round in 1.. {
        let (begun, before, mut aborted) = (Instant::now(), handler.runs().len(), 0);
        // Each of them takes about half of a pause.
        while begun.elapsed() < Duration::from_secs(6) || aborted < 8 {
            world.kafka.transaction(&products, ids(2..=2)).abort();
            aborted += 1;
        }
        let runs = handler.runs().len() - before;
        if runs >= 3 {
            break;
        }
        assert!(round < 3, "{aborted} aborted, {runs} runs");
    }
}
