//! What becomes of records that a handler fails at: halving, the dead-letter topic, the breaker, results for single records.

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
fn done(handler: &Handler) -> Vec<i64> {
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

#[test]
fn exit_65_isolates_at_once_and_the_record_needs_no_other_to_succeed() {
    let world = World::new("permanent");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=1));
    let (handler, _) = fails_at(&world, [0], 65);
    let options = format!("--retry-pause 1h --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(3));
    assert_eq!((letters(&world, &dead), handler.runs().len()), (vec![0], 1));
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

#[test]
fn a_temporary_failure_counts_against_no_record() {
    let world = World::new("temporary");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=8));
    let handler = world.handler("[ $KSYNC_BATCH_ATTEMPT -gt 10 ] || exit 75");
    let options = "--retry-pause 10ms --retry-pause-max 20ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let counts: Vec<_> = handler.runs().iter().map(|run| (run.count, run.attempt)).collect();
    assert_eq!(counts, Vec::from_iter((1..=11).map(|attempt| (8, attempt))));
}

#[test]
fn a_misconfigured_handler_ends_the_process_before_its_first_success_and_never_after_it() {
    let world = World::new("misconfigured");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=4));
    let never = world.handler("exit 127");
    let mut refused = world.consume(&format!("-t {products} -n refused -- {never}"));
    assert_eq!(refused.wait(), End::Status(78));
    assert!(refused.says(&["the handler failed before it ever succeeded: exit status 127.", "look at"]));
    let seat = world.seat(&products, 0, "refused");
    assert_eq!((seat.offset(), seat.candidates().len()), (Some(0), 0));

    let swapped = world.gate();
    let deployed = world.handler(&format!("[ $KSYNC_BATCH_FIRST_OFFSET -lt 2 ] || [ -e {swapped} ] || exit 127"));
    let options = "--retry-pause 10ms --retry-pause-max 20ms --batch-size 2";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {deployed}"));
    world.eventually("it fails again and again", || deployed.runs().len() > 10);
    assert!(deployed.runs().iter().all(|run| run.count == 2), "nothing was isolated");
    swapped.open();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it goes on after the deploy", || seat.offset() == Some(4));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn records_that_the_handler_names_are_put_aside_without_any_halving() {
    let world = World::new("named");
    for (form, line, runs) in [
        ("own", r#"{\"offset\":$1,\"status\":\"fail\",\"error\":\"no such index\",\"permanent\":true}"#, 1),
        ("lambda", r#"{\"batchItemFailures\":[{\"itemIdentifier\":\"$1\"}]}"#, 3),
    ] {
        let (products, dead) = (world.topic(&format!("products-{form}"), 1), world.topic(&format!("dead-{form}"), 1));
        world.kafka.produce(&products, ids(1..=100));
        let handler = world.handler(&format!(
            "tell() {{ echo \"{line}\" >&3; }}; for offset in 17 42; do if grep -q \"\\\"offset\\\":$offset,\" \"$run\"; then \
             tell $offset; fi; done"
        ));
        let options = format!("--retry-pause 10ms --batch-wait 1s --dead-letter={dead}");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(3));
        let counts: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((letters(&world, &dead), counts.len()), (vec![17, 42], runs), "{form}: {counts:?}");
    }
}

#[test]
fn results_that_cannot_be_understood_fail_the_whole_batch() {
    let world = World::new("results");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    for (name, line, told) in [
        ("unknown", r#"{\"offset\":99,\"status\":\"ok\"}"#, "the results name offset 99, which is not in the batch"),
        ("broken", r#"{\"offset\":1,"#, "cannot read the result line '{\"offset\":1,'"),
    ] {
        let handler = world.handler(&format!("if [ $KSYNC_BATCH_ATTEMPT -eq 1 ]; then echo \"{line}\" >&3; fi"));
        let options = "--retry-pause 10ms --batch-wait 1s";
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0));
        assert!(consumer.says(&["warn: ", told]), "{:?}", consumer.log());
        let runs: Vec<_> = handler.runs().iter().map(|run| (run.count, run.attempt)).collect();
        assert_eq!(runs, [(3, 1), (3, 2)]);
    }
}

#[test]
fn with_require_result_only_what_was_reported_done_is_done() {
    let world = World::new("require");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let ok = r#"{\"offset\":$1,\"status\":\"ok\"}"#;
    let all = "for offset in $(seq $KSYNC_BATCH_FIRST_OFFSET $KSYNC_BATCH_LAST_OFFSET); do tell $offset; done";
    let handler = world.handler(&format!(
        "tell() {{ echo \"{ok}\" >&3; }}; if [ $KSYNC_BATCH_COUNT -eq 3 ]; then tell 0; else {all}; fi"
    ));
    let options = "--require-result --retry-pause 10ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs: Vec<_> = handler.runs().iter().map(|run| run.offsets()).collect();
    assert_eq!(runs, [vec![0, 1, 2], vec![1, 2]]);
}

#[test]
fn a_batch_that_was_not_read_to_its_end_is_not_committed() {
    let world = World::new("unread");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let script = world.script("[ $KSYNC_BATCH_ATTEMPT -eq 1 ] || cat >/dev/null");
    let options = "--retry-pause 10ms --batch-wait 1s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {script}"));
    assert_eq!(consumer.wait(), End::Status(0));
    assert!(consumer.says(&["warn: ", "exit status 0 with", "of its input unread"]), "{:?}", consumer.log());
    let careless = world.script("exit 0");
    let mut allowed = world.consume(&format!("-t {products} -n careless -e --allow-unread -- {careless}"));
    assert_eq!(allowed.wait(), End::Status(0));
    assert_eq!(world.seat(&products, 0, "careless").offset(), Some(3));
}
