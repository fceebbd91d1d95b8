//! `--worker`: processes that stay, and what they and ksync say to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::consume::ids;
use crate::isolation::letters;
use crate::processes::runs;
use crate::support::{End, Note, World, value};

/// What follows a failure comes soon.
pub const SOON_AGAIN: &str = "--retry-pause 10ms --retry-pause-max 100ms";

#[test]
fn records_come_only_after_the_worker_has_said_that_it_is_ready() {
    let world = World::new("ready");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let gate = world.gate();
    let worker = world.worker(&format!("if kind == 'hello': wait('{gate}'); note('unread', bytes=unread())"));
    let options = "--session-timeout 30s --worker --batch-size 2";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    world.eventually("it is greeted", || worker.pids().len() == 1);
    world.for_a_while(Duration::from_millis(500), "it is waited for", || worker.pids().len() == 1);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let first: Vec<_> = worker.notes().into_iter().take(2).map(|note| note.message).collect();
    assert_eq!(first, [json!({"type": "hello", "ksync": 1, "name": "indexer"}), json!({"type": "unread", "bytes": 0})]);
    assert_eq!(worker.stories(), ["hello unread batch record record end done shutdown ended"]);
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_and_nothing_is_committed() {
    let world = World::new("not-ready");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let mended = world.gate();
    let worker = world.worker(&format!("if kind == 'hello': wait('{mended}')"));
    let options =
        format!("--session-timeout 30s --worker --start-timeout 6s {SOON_AGAIN} --isolate-after 1 --batch-size 2");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {worker}"));
    let told = "the handler failed at offsets 0 to 1, attempt 2: the worker was not ready: no answer within 6s \
                (--start-timeout); does the worker flush its stdout after each line?; trying again in ";
    world.eventually("it is told", || consumer.says(&["warn: ", told]));
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!(seat.offset(), Some(0));
    assert_eq!(worker.stories()[..2], ["hello", "hello"]);
    assert_eq!(worker.pids()[..2].iter().copied().map(runs).collect::<Vec<_>>(), [false, false]);

    mended.open();
    world.eventually("all is done once it is ready", || seat.offset() == Some(2));
    assert_eq!((worker.done(), worker.batches().len()), (vec![0, 1], 1));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn one_process_works_on_many_batches_and_ends_by_itself_when_it_is_told_to() {
    let world = World::new("many");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=6));
    // One batch comes again.
    let worker = world.worker(
        "if kind == 'end' and (offsets, batch['attempt']) == ([2, 3], 1): \
         return say(type='done', id=batch['id'], failed=[dict(offset=2), dict(offset=3)])",
    );
    let options = format!("--session-timeout 30s --worker {SOON_AGAIN} --batch-size 2");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {worker}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(6));

    let batches = worker.batches();
    let ids: BTreeSet<_> = batches.iter().map(|batch| batch.message["id"].to_string()).collect();
    assert_eq!(ids.len(), 4);
    let term = seat.state()["term"].as_u64().unwrap();
    for (batch, (first, attempt)) in batches.iter().zip([(0, 1), (2, 1), (2, 2), (4, 1)]) {
        let whole = json!({
            "type": "batch", "id": batch.message["id"], "topic": products, "partition": 0, "term": term, "count": 2,
            "attempt": attempt
        });
        assert_eq!((&batch.message, &batch.offsets[..]), (&whole, &[first, first + 1][..]));
    }
    let ends: Vec<_> = worker.noted("end").into_iter().map(|end| end.message).collect();
    assert_eq!(ends, Vec::from_iter(batches.iter().map(|batch| json!({"type": "end", "id": batch.message["id"]}))));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    let batch = "batch record record end";
    assert_eq!(worker.stories(), [format!("hello {batch} done {batch} {batch} done {batch} done shutdown ended")]);
    assert_eq!((worker.done(), world.processes()), (vec![0, 1, 2, 3, 4, 5], 0));
}

#[test]
fn records_that_the_worker_names_are_put_aside_or_come_again_and_the_others_are_done() {
    let world = World::new("partial");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=6));
    let mended = world.gate();
    let worker = world.worker(&format!(
        "failed = [dict(offset=1, error='no id', permanent=True)] if 1 in offsets else []\n\
         if 3 in offsets and not is_open('{mended}'): failed += [dict(offset=3, error='not now')]\n\
         if kind == 'end': return say(type='done', id=batch['id'], failed=failed)"
    ));
    let options =
        format!("--session-timeout 30s --worker {SOON_AGAIN} --isolate-after 1000 --batch-size 6 --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    world.eventually("it comes again and again", || worker.given() > 4);
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), world.kafka.count(&dead)), (Some(0), 0));
    mended.open();
    assert_eq!(consumer.wait(), End::Status(3));

    let batches: Vec<_> = worker.batches().into_iter().map(|batch| batch.offsets).collect();
    let again = vec![vec![3]; batches.len() - 1];
    assert_eq!(batches, [vec![vec![0, 1, 2, 3, 4, 5]], again].concat());
    assert_eq!((letters(&world, &dead), seat.offset(), worker.pids().len()), (vec![1], Some(6), 1));
    let error = |(name, value): (String, String)| (name == "ksync.error").then_some(value);
    let told = world.kafka.records(&dead).remove(0).headers.into_iter().find_map(error);
    assert_eq!(told.as_deref(), Some("no id"));
}

#[test]
fn an_offset_that_is_not_in_the_batch_or_is_named_twice_fails_the_whole_batch() {
    let world = World::new("named-wrong");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    for (name, failed, told) in [
        ("unknown", "[dict(offset=99)]", "the results name offset 99, which is not in the batch"),
        ("twice", "2 * [dict(offset=1, permanent=True)]", "the worker broke the protocol: it named offset 1 twice"),
    ] {
        let mended = world.gate();
        let worker = world.worker(&format!(
            "if kind == 'end' and not is_open('{mended}'): \
             return say(type='done', id=batch['id'], failed={failed})"
        ));
        let options = format!("--session-timeout 30s --worker {SOON_AGAIN} --isolate-after 1000 --batch-size 3");
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e {options} -- {worker}"));
        let told = format!("the handler failed at offsets 0 to 2, attempt 2: {told}; trying again in ");
        world.eventually("it is told", || consumer.says(&["warn: ", &told]));
        let seat = world.seat(&products, 0, name);
        assert_eq!(seat.offset(), Some(0));
        mended.open();
        assert_eq!(consumer.wait(), End::Status(0));
        let batches = worker.batches();
        assert!(batches.iter().all(|batch| batch.offsets == [0, 1, 2]), "{batches:?}");
        assert_eq!((worker.done(), seat.offset()), (vec![0, 1, 2], Some(3)));
    }
}

#[test]
fn a_word_of_progress_renews_the_timeout() {
    let world = World::new("progress");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let gate = world.gate();
    let worker = world.worker(&format!(
        "while kind == 'end' and not is_open('{gate}'): say(type='progress', id=batch['id']); pause(0.2)"
    ));
    let options = "--session-timeout 30s --worker --timeout 5s --batch-size 2";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    world.eventually("it is at work", || worker.given() == 1);
    let limit = Duration::from_secs(11);
    world.for_a_while(limit, "it works on", || consumer.log_of("warn").is_empty() && worker.noted("hello").len() == 1);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(worker.stories(), ["hello batch record record end done shutdown ended"]);
    assert_eq!((consumer.log_of("warn"), world.seat(&products, 0, "indexer").offset()), (vec![], Some(2)));
}

#[test]
fn the_rest_that_a_worker_wants_is_given_and_counts_against_no_record() {
    let world = World::new("rest");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, ids(1..=4));
    // The first batch shows that the store works, so that bad records would be put aside.
    let worker = world.worker(
        "if kind == 'end' and offsets[0] == 2 and batch['attempt'] < 6: \
         return say(type='backoff', id=batch['id'], ms=300)",
    );
    let options = format!("--session-timeout 30s --worker --isolate-after 2 --batch-size 2 --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    assert_eq!(consumer.wait(), End::Status(0));

    let batches = worker.batches();
    let shown: Vec<_> = batches.iter().map(|batch| (&batch.offsets[..], batch.attempt())).collect();
    let again = (1..=6).map(|attempt| (&[2, 3][..], attempt));
    assert_eq!(shown, Vec::from_iter([(&[0, 1][..], 1)].into_iter().chain(again)));
    let mut rests: Vec<_> = batches[1..].windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    rests.sort_by(f64::total_cmp);
    // Its own would be of a second at least.
    assert!(rests[0] >= 0.3 && rests[0] < 0.9, "{rests:?}");
    assert_eq!((world.kafka.count(&dead), worker.pids().len()), (0, 1));
    for attempt in 1..=5 {
        let told = format!("attempt {attempt}: the worker wants 300ms of rest; trying again in 0.3 s");
        assert!(consumer.says(&["warn: ", &told]), "{:?}", consumer.log());
    }
}

#[test]
fn a_fatal_error_ends_the_process_before_its_first_success_and_never_after_it() {
    let world = World::new("fatal");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=4));
    for (kind, told) in
        [("hello", "the worker was not ready: a fatal error: no table."), ("end", "a fatal error: no table.")]
    {
        let worker = world.worker(&format!("if kind == '{kind}': return say(type='fatal', error='no table')"));
        let mut refused = world.consume(&format!("-t {products} -n {kind} --session-timeout 30s --worker -- {worker}"));
        assert_eq!(refused.wait(), End::Status(78));
        let told = format!("the handler failed before it ever succeeded: {told} It is not set up");
        assert!(refused.says(&["error: ", &told]), "{:?}", refused.log());
        let seat = world.seat(&products, 0, kind);
        world.eventually("it has left the queue", || seat.candidates().is_empty());
        assert_eq!((worker.pids().len(), seat.offset()), (1, Some(0)));
    }

    let (dead, mended) = (world.topic("dead", 1), world.gate());
    let worker = world
        .worker(&format!("if kind == 'end' and offsets[0] == 2 and not is_open('{mended}'): return say(type='fatal')"));
    let options =
        format!("--session-timeout 30s --worker {SOON_AGAIN} --isolate-after 2 --batch-size 2 --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    world.eventually("the batch waits", || consumer.says(&["warn: ", "attempt 5: a fatal error; trying again in "]));
    mended.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let batches = worker.batches();
    let again = batches[1..]
        .iter()
        .zip(1..)
        .all(|(batch, attempt)| (&batch.offsets[..], batch.attempt()) == (&[2, 3], attempt));
    assert!(again, "nothing was isolated: {batches:?}");
    assert_eq!((worker.done(), world.kafka.count(&dead)), (vec![0, 1, 2, 3], 0));
}

#[test]
fn workers_are_replaced_after_so_many_batches_or_by_sighup_and_never_in_the_middle_of_one() {
    let world = World::new("replaced");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    // Who is retired is not waited for at the end of the process.
    let last = world.gate();
    let worn = world.worker(&format!("if kind == 'end' and offsets == [4]: wait('{last}')"));
    let command = format!("-t {products} --session-timeout 30s --worker --batch-size 1");
    let mut consumer = world.consume(&format!("{command} -n worn -e --recycle-after 2 -- {worn}"));
    world.eventually("the first two have ended", || worn.noted("ended").len() == 2);
    last.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let (batch, end) = ("batch record end done", "shutdown ended");
    let two = format!("hello {batch} {batch} {end}");
    assert_eq!(worn.stories(), [two.clone(), two, format!("hello {batch} {end}")]);
    assert_eq!(worn.done(), [0, 1, 2, 3, 4]);

    let gate = world.gate();
    let worker = world.worker(&format!("if kind == 'end' and offsets == [2]: wait('{gate}')"));
    let mut consumer = world.consume(&format!("{command} -n indexer -- {worker}"));
    world.eventually("it is in a batch", || worker.given() == 3);
    consumer.signal(Signal::HUP);
    let told = "info: SIGHUP: the workers are replaced after their batches";
    world.eventually("it is told", || consumer.says(&[told]));
    let first = format!("hello {batch} {batch} batch record end");
    world.for_a_while(Duration::from_millis(500), "it is let alone", || worker.stories() == [first.clone()]);
    gate.open();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all is done", || seat.offset() == Some(5));
    let expected = [format!("{first} done {end}"), format!("hello {batch} {batch}")];
    world.eventually("the first one has ended", || worker.stories() == expected);
    consumer.signal(Signal::HUP);
    world.eventually("one that waits is replaced, too", || worker.noted("ended").len() == 2);
    world.kafka.produce(&products, ids(6..=6));
    world.eventually("another one works", || seat.offset() == Some(6));
    assert_eq!(worker.stories()[1..], [format!("hello {batch} {batch} {end}"), format!("hello {batch}")]);
    assert_eq!((worker.done(), consumer.log_of("warn")), (vec![0, 1, 2, 3, 4, 5], vec![]));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn there_is_one_worker_for_all_partitions_or_as_many_at_once_as_are_wanted() {
    let world = World::new("jobs-of-workers");
    let products = world.topic("products", 2);
    world.kafka.produce(&products, ids(1..=2).zip(0..).map(|(message, partition)| message.to(partition)));
    for (name, options, at_once) in [("one", "", 1), ("two", "-j 2", 2)] {
        let gate = world.gate();
        let worker = world.worker(&format!("if kind == 'end': wait('{gate}')"));
        let mut consumer = world.consume(&format!("-t {products} -n {name} -e --worker {options} -- {worker}"));
        world.eventually("they are at work", || worker.given() == at_once);
        world.for_a_while(Duration::from_millis(500), "no more are", || worker.batches().len() == at_once);
        gate.open();
        assert_eq!(consumer.wait(), End::Status(0));
        let of: BTreeSet<_> = worker.batches().iter().map(|batch| batch.message["partition"].to_string()).collect();
        assert_eq!((worker.pids().len(), worker.batches().len(), of.len()), (at_once, 2, 2));
    }
}

#[test]
fn by_key_the_records_of_a_partition_are_split_among_workers_and_each_key_keeps_its_order() {
    let world = World::new("keys-of-workers");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, (0..600).map(|offset| value(offset.to_string()).key(format!("k{}", offset % 20))));
    let gate = world.gate();
    let worker = world.worker(&format!("if kind == 'end': wait('{gate}'); pause(0.02)"));
    let options = "--session-timeout 30s --worker -j 3 --by-key --batch-size 20";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {worker}"));
    world.eventually("three are at work", || worker.given() == 3);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let mut under_way: BTreeMap<i64, i32> = BTreeMap::new();
    for Note { pid, kind, message, .. } in worker.notes() {
        if kind == "done" {
            under_way.retain(|_, of| *of != pid);
        } else if kind == "record" {
            let key = message["offset"].as_i64().unwrap() % 20;
            let of = under_way.insert(key, pid).unwrap_or(pid);
            assert_eq!(of, pid, "two have records of key {key} at once");
        }
    }
    let done = worker.done();
    for key in 0..20 {
        assert!(done.iter().filter(|offset| **offset % 20 == key).is_sorted(), "{done:?}");
    }
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((done.len(), worker.pids().len(), seat.offset()), (600, 3, Some(600)));
}
