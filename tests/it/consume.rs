//! ksync-consume: batches, retries, hand-over, and what it works on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{End, Message, World, is_full, value};

/// Records whose values are `{"id":FROM}` to `{"id":TO}`, each with its id as key.
pub fn ids(range: impl Iterator<Item = u32>) -> impl Iterator<Item = Message> {
    range.map(|id| value(format!("{{\"id\":{id}}}")).key(id.to_string()))
}

#[test]
fn a_batch_is_the_lines_of_the_design_and_its_environment_tells_what_is_in_it() {
    let world = World::new("lines");
    let products = world.topic("products", 2);
    world.kafka.produce(
        &products,
        [
            Message { timestamp_ms: Some(1_700_000_000_000), ..value(r#"{"id":7}"#).key("7").header("k", "v").to(1) },
            Message {
                key: Some(b"8".to_vec()),
                timestamp_ms: Some(1_700_000_000_001),
                partition: Some(1),
                ..Message::default()
            },
        ],
    );
    let handler = world.handler("env > \"$run.env\"");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));

    let runs = handler.runs();
    let [run] = &runs[..] else { panic!("one run, not {runs:?}") };
    assert_eq!(
        run.lines,
        [
            format!(
                r#"{{"topic":"{products}","partition":1,"offset":0,"ts":1700000000000,"key":"7","headers":[["k","v"]],"payload":{{"id":7}}}}"#
            ),
            format!(
                r#"{{"topic":"{products}","partition":1,"offset":1,"ts":1700000000001,"key":"8","headers":[],"payload":null}}"#
            ),
        ]
    );
    let environment =
        std::fs::read_to_string(world.dir.join("handler-1/runs").join(format!("{}.env", run.id))).unwrap();
    let of_ksync: BTreeSet<&str> =
        environment.lines().filter(|line| line.starts_with("KSYNC_") || line.starts_with("PYTHONUN")).collect();
    assert_eq!(
        of_ksync,
        BTreeSet::from([
            "KSYNC_BATCH_ATTEMPT=1",
            "KSYNC_BATCH_COUNT=2",
            "KSYNC_BATCH_FIRST_OFFSET=0",
            &format!("KSYNC_BATCH_ID={}", run.id),
            "KSYNC_BATCH_LAST_OFFSET=1",
            "KSYNC_BATCH_NAME=indexer",
            "KSYNC_BATCH_PARTITION=1",
            &format!("KSYNC_BATCH_TERM={}", run.term),
            &format!("KSYNC_BATCH_TOPIC={products}"),
            "KSYNC_RESULT_FD=3",
            "PYTHONUNBUFFERED=1",
        ])
    );
}

#[test]
fn a_failed_batch_commits_nothing_and_comes_again_as_the_same_batch() {
    let world = World::new("retry");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let gate = world.gate();
    let handler = world.handler(&format!("[ $KSYNC_BATCH_ATTEMPT -ge 2 ] || exit 3; await {gate}"));
    let seat = world.seat(&products, 0, "indexer");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --batch-size 5 -- {handler}"));

    world.eventually("the second attempt runs", || handler.runs().len() == 2);
    assert_eq!(seat.offset(), Some(0));
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(seat.offset(), Some(5));
    let runs = handler.runs();
    assert_eq!(runs[0].lines, runs[1].lines);
    assert_eq!((runs[0].attempt, runs[1].attempt, runs[1].count), (1, 2, 5));
    let warnings = consumer.log_of("warn");
    let [warning] = &warnings[..] else { panic!("one warning, not {warnings:?}") };
    let text = format!(
        "{products}/0 as indexer: the handler failed at offsets 0 to 4, attempt 1: exit status 3; trying again in 1."
    );
    assert!(warning.starts_with(&text), "{warning}");
}

#[test]
fn a_bounded_run_ends_when_what_was_there_is_done_and_beside_another_leader_with_status_4() {
    let world = World::new("bounded");
    let products = world.topic("products", 2);
    world.kafka.produce(&products, ids(1..=20));
    let (handler, gate) = (world.handler(""), world.gate());
    let mut first = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(first.wait(), End::Status(0));
    assert_eq!(handler.payloads().len(), 20);

    let slow = world.handler(&format!("await {gate}"));
    let leader = world.consume(&format!("-t {products} -n indexer -- {slow}"));
    world.eventually("another process leads both", || {
        (0..2).all(|p| leader.says(&[&format!("{products}/{p} as indexer: leading")]))
    });
    let mut second = world.consume(&format!("-t {products} -n indexer -e --wait 10s -- {handler}"));
    assert_eq!(second.wait(), End::Status(4));
    let text = |p| format!("{products}/{p} as indexer: another process leads and has not ended within 10s (--wait)");
    assert_eq!(BTreeSet::from_iter(second.log_of("error")), BTreeSet::from([text(0), text(1)]));
}

#[test]
fn sigterm_in_a_batch_finishes_it_commits_and_the_standby_leads_at_once() {
    let world = World::new("handover");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let gate = world.gate();
    let (handler, second) = (world.handler(&format!("await {gate}")), world.handler(""));
    let mut leader = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    let standby = world.consume(&format!("-t {products} -n indexer -- {second}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("two queue", || seat.candidates().len() == 2);

    leader.signal(Signal::TERM);
    world.eventually("the leader was asked to end", || leader.says(&["asked to end"]));
    assert_eq!((leader.is_running(), seat.offset()), (true, Some(0)));
    gate.open();
    let leads = format!("{products}/0 as indexer: leading from offset 5");
    if is_full() {
        world.within(Duration::from_secs(1), "the standby leads", || standby.says(&[&leads]));
    }
    assert_eq!(leader.wait(), End::Status(0));
    assert_eq!(seat.offset(), Some(5));
    // Sooner than by the end of the leader's session, however busy the machine is.
    world.within(Duration::from_secs(8), "the standby leads", || standby.says(&[&leads]));
    assert_eq!((handler.runs().len(), second.runs().len()), (1, 0));
}

#[test]
fn a_second_sigterm_ends_the_process_and_its_handler_at_once() {
    let world = World::new("impatient");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);

    // One that comes at once belongs to the first, as those of timeout(1) do; two of one kind would be one.
    for signal in [Signal::STOP, Signal::TERM, Signal::INT, Signal::CONT] {
        consumer.signal(signal);
    }
    world.eventually("the end was asked for", || consumer.says(&["asked to end"]));
    world.for_a_while(Duration::from_secs(1), "it finishes its batch", || consumer.is_running());
    let asked = Instant::now();
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::By(Signal::TERM));
    // Not by --grace, which is 25 s.
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert_eq!(consumer.log_of("error"), [""; 0]);
    world.eventually("the handler is gone", || world.processes() == 0);
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(0));
}

#[test]
fn one_process_works_on_several_topics_and_only_on_the_partitions_that_it_is_told() {
    let world = World::new("several");
    let (products, orders) = (world.topic("products", 2), world.topic("orders", 2));
    for topic in [&products, &orders] {
        world.kafka.produce(topic, (0..2).flat_map(|p| ids(1..=3).map(move |message| message.to(p))));
    }
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -t {orders} -n indexer -p 1 -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));

    let given: BTreeSet<(String, i32)> = handler.runs().into_iter().map(|run| (run.topic, run.partition)).collect();
    assert_eq!(given, BTreeSet::from([(products.clone(), 1), (orders.clone(), 1)]));
    for topic in [&products, &orders] {
        assert_eq!(world.seat(topic, 1, "indexer").offset(), Some(3));
        assert_eq!(world.seat(topic, 0, "indexer").offset(), None);
    }
}

#[test]
fn names_read_the_same_topic_independently() {
    let world = World::new("names");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let (indexer, cacher) = (world.handler(""), world.handler(""));
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {indexer}")).wait(), End::Status(0));
    assert_eq!(world.consume(&format!("-t {products} -n cacher -e -- {cacher}")).wait(), End::Status(0));
    assert_eq!((indexer.payloads().len(), cacher.payloads().len()), (3, 3));
}

#[test]
fn no_more_handlers_run_at_once_than_jobs_allows() {
    let world = World::new("jobs");
    let products = world.topic("products", 4);
    world.kafka.produce(&products, (0..4).map(|p| value("{}").to(p)));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -j 2 -- {handler}"));
    world.eventually("two handlers run", || handler.runs().len() == 2);
    world.for_a_while(Duration::from_millis(700), "two handlers run", || handler.runs().len() == 2);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(handler.runs().len(), 4);
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() {
    let world = World::new("added");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consumer =
        world.consume(&format!("-t {products} -n indexer --first-start latest --session-timeout 30s -- {handler}"));
    world.eventually("it leads", || consumer.says(&["leading from offset 0"]));
    let [old, new] = [0, 1].map(|partition| world.seat(&products, partition, "indexer"));
    world.kafka.produce(&products, ids(1..=2));
    world.eventually("the old partition is at work", || old.offset() == Some(2));
    let candidate = old.candidates();
    world.kafka.add_partitions(&products, 2);
    world.eventually("the partition is there", || world.kafka.partitions(&products) == 2);
    world.kafka.produce(&products, ids(3..=5).map(|message| message.to(1)));
    // It is looked for new ones each 30 s.
    world.within(Duration::from_secs(45), "the new partition is done", || new.offset() == Some(3));
    world.kafka.produce(&products, ids(6..=8).map(|message| message.to(0)));
    world.eventually("the old one goes on", || old.offset() == Some(5));
    assert_eq!(old.candidates(), candidate);
    assert_eq!(handler.payloads(), (1..=8).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>());
}

#[test]
fn each_leader_has_a_higher_term() {
    let world = World::new("term");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    for id in 1..=3 {
        world.kafka.produce(&products, ids(id..=id));
        assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    }
    let terms: Vec<u64> = handler.runs().iter().map(|run| run.term).collect();
    assert!(terms.len() == 3 && terms.is_sorted_by(|a, b| a < b), "{terms:?}");
}
