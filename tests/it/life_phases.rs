//! How a process ends that is told to, in each phase of its work.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::election::assert_between;
use crate::support::{End, Mode, Process, Proxy, World, block_on, value};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

/// How a process ends that is told to in a phase, which it shows when asked by SIGUSR1.
struct Phase<'a> {
    world: &'a World,
    topic: String,
    process: Process,
    shows: &'a str,
}

impl Phase<'_> {
    /// At once, with the offset here.
    fn ends(self, offset: Option<i64>) {
        self.finishes(None, offset);
    }

    /// Where it finishes something it does so first, once `goes_on` lets it.
    fn finishes(mut self, goes_on: Option<&dyn Fn()>, offset: Option<i64>) {
        let (shows, seat) = (self.shows, self.world.seat(&self.topic, 0, "indexer"));
        self.begins();
        let before = seat.offset();
        self.process.signal(Signal::TERM);
        if let Some(goes_on) = goes_on {
            self.world.eventually("the end is asked for", || self.process.says(&["asked to end"]));
            assert_eq!((self.process.is_running(), seat.offset()), (true, before), "{shows}");
            goes_on();
        }
        assert_eq!(
            (self.process.wait(), seat.candidates(), seat.offset()),
            (End::Status(0), vec![], offset),
            "{shows}"
        );
    }

    /// Waits until it is in its phase.
    fn begins(&self) {
        self.world.eventually(self.shows, || {
            self.process.ask();
            self.process.says(&[self.shows])
        });
    }
}

#[test]
fn sigterm_ends_each_phase_with_status_0_no_candidate_and_only_what_was_finished_committed() {
    let world = World::new("phases");
    let topic = |name: &str, messages: &[&str]| {
        let topic = world.topic(name, 1);
        world.kafka.produce(&topic, messages.iter().map(value));
        topic
    };
    let phase = |topic: &str, options: &str, environment: &[(&str, &str)], shows: &'static str| {
        let process = world.start(CONSUME, &format!("-t {topic} -n indexer {options}"), environment);
        Phase { world: &world, topic: topic.to_owned(), process, shows }
    };
    let away = "127.0.0.1:9";
    let (quick, gate) = (world.handler(""), world.gate());
    let held_up = world.handler(&format!("await {gate}"));
    let unread = world.script(&format!("await {gate}; cat >/dev/null"));

    let none = topic("none", &[]);
    phase(&none, "-- true", &[("KSYNC_BOOTSTRAP_SERVER", away)], "at no partition yet").ends(None);
    phase(&none, "-- true", &[("KSYNC_ZOOKEEPER", away)], "ZooKeeper is not reached").ends(None);
    let idle = topic("idle", &["1", "2"]);
    phase(&idle, &format!("-- {quick}"), &[], "offset 2; waits for records").ends(Some(2));
    let failing = topic("failing", &["1", "2"]);
    phase(&failing, "--retry-pause 1h --retry-pause-max 1h -- false", &[], "offset 0; tries again in").ends(Some(0));
    let halted = topic("halted", &["1", "{"]);
    phase(&halted, &format!("-- {quick}"), &[], "offset 1; halted: ").ends(Some(1));

    let running = topic("running", &["1", "2"]);
    let at_the_handler = phase(&running, &format!("-- {held_up}"), &[], "the handler has offsets 0 to 1");
    at_the_handler.finishes(Some(&|| gate.open()), Some(2));
    fs::remove_file(gate.to_string()).unwrap();
    // More than a pipe holds, and nobody reads it yet.
    let writing = topic("writing", &[&format!("\"{}\"", "x".repeat(200_000))]);
    let at_its_stdin = phase(&writing, &format!("-- {unread}"), &[], "the handler has offsets 0 to 0");
    at_its_stdin.finishes(Some(&|| gate.open()), Some(1));

    assert_eq!(quick.payloads(), ["1", "2", "1"]);
}

#[test]
fn sigterm_while_a_commit_is_under_way_brings_its_batch_again_only_where_it_never_arrives() {
    const COMMIT: &str = "\"offset\":1,";
    let world = World::new("committing");
    let handler = world.handler("");
    let at_its_commit = |name: &str, mode: Mode, session: &str| {
        let (topic, proxy) = (world.topic(name, 1), block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER"))));
        world.kafka.produce(&topic, [value(format!("\"{name}\""))]);
        proxy.set(mode);
        let way = format!("--zookeeper {}/{} --session-timeout {session}", proxy.address, world.id);
        let process = world.consume(&format!("-t {topic} -n indexer {way} -- {handler}"));
        (Phase { world: &world, topic, process, shows: "offset 0; waits for ZooKeeper" }, proxy)
    };
    let (phase, proxy) = at_its_commit("arrives", Mode::FrozenAt(COMMIT), "10s");
    let mut topics = phase.topic.clone();
    phase.finishes(Some(&|| proxy.set(Mode::Open)), Some(1));
    // Nobody tells it what became of these; it gives them up with its lease.
    for (name, mode, offset) in [("unanswered", Mode::DeafAfter(COMMIT, 0), 1), ("lost", Mode::FrozenAt(COMMIT), 0)] {
        let (mut phase, proxy) = at_its_commit(name, mode, "10s");
        phase.begins();
        phase.process.signal(Signal::TERM);
        assert_eq!(phase.process.wait(), End::Status(0), "{name}");
        drop(proxy);
        let seat = world.seat(&phase.topic, 0, "indexer");
        world.within(Duration::from_secs(30), "its candidate goes with its session", || seat.candidates().is_empty());
        assert_eq!(seat.offset(), Some(offset), "{name}");
        topics = format!("{topics},{}", phase.topic);
    }
    assert_eq!(handler.payloads(), ["\"arrives\"", "\"unanswered\"", "\"lost\""]);
    let next = world.handler("");
    assert_eq!(world.consume(&format!("-t {topics} -n indexer -e -- {next}")).wait(), End::Status(0));
    assert_eq!(next.payloads(), ["\"lost\""]);
}

#[test]
fn sigterm_while_a_dead_letter_waits_for_kafka_comes_after_it() {
    let world = World::alone("letter");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, [value("1"), value("{")]);
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let options = format!("--on-invalid dead-letter --dead-letter={dead} --grace 2m");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    world.services.stop("kafka");
    gate.open();
    world.eventually("the handler is done, the dead letter waits", || {
        consumer.ask();
        consumer.says(&["leading term", "offset 0; waits for Kafka"]) && handler.payloads() == ["1"]
    });
    consumer.signal(Signal::TERM);
    world.eventually("the end is asked for", || consumer.says(&["asked to end"]));
    assert!(consumer.is_running());
    world.services.start_again("kafka");
    assert_eq!(consumer.wait(), End::Status(0));
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.candidates(), seat.offset(), world.kafka.count(&dead)), (vec![], Some(2), 1));
}

#[test]
fn sigterm_ends_a_standby_and_a_delayer_that_waits_and_no_leader_notices() {
    let world = World::new("waiting-phases");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    let leader = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let leading = seat.candidates();
    let mut standby = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("two queue", || seat.candidates().len() == 2);
    standby.signal(Signal::TERM);
    assert_eq!((standby.wait(), seat.candidates()), (End::Status(0), leading));
    assert_eq!(leader.log_of("warn"), Vec::<String>::new());

    world.kafka.produce(&format!("{products}-delay"), [value(r#"{"payload": 1, "created_at": 9e9}"#)]);
    let mut delayer = world.delayer(&format!("-t {products} --delay 1h"));
    world.eventually("it holds the message back", || {
        delayer.ask();
        delayer.says(&["offset 0; the message at offset 0 is due in 3"])
    });
    delayer.signal(Signal::TERM);
    let seat = world.seat(&format!("{products}-delay"), 0, "delayer");
    assert_eq!((delayer.wait(), seat.candidates(), seat.offset()), (End::Status(0), vec![], Some(0)));
    assert_eq!(world.kafka.count(&products), 0);
}

#[test]
fn an_end_that_takes_longer_than_its_grace_is_one_by_the_signal_with_nothing_committed_and_nothing_left() {
    let world = World::new("grace");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, [value("1"), value("2")]);
    for (number, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let handler = world.handler(&format!("trap '' TERM; await {}", world.gate()));
        let mut consumer = world.consume(&format!("-t {products} -n indexer-{number} --grace 1s -- {handler}"));
        world.eventually("the handler runs", || handler.runs().len() == 1);
        let asked = Instant::now();
        consumer.signal(signal);
        assert_eq!(consumer.wait(), End::By(signal));
        assert_between(asked.elapsed(), Duration::from_secs(1), Duration::from_secs(10));
        assert_eq!(consumer.log_of("error"), ["not at an end after 1s (--grace): ending now"]);
        world.eventually("nothing is left", || world.processes() == 0);
        let seat = world.seat(&products, 0, &format!("indexer-{number}"));
        assert_eq!((seat.offset(), handler.payloads()), (Some(0), vec![]));
    }
}

#[test]
fn a_second_signal_that_asks_for_the_end_ends_the_process_and_its_handler_at_once_whichever_the_first_was() {
    let world = World::new("second");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, [value("1"), value("2")]);
    for (number, (first, second)) in
        [(Signal::INT, Signal::INT), (Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)].into_iter().enumerate()
    {
        let handler = world.handler(&format!("await {}", world.gate()));
        let mut consumer = world.consume(&format!("-t {products} -n indexer-{number} -- {handler}"));
        world.eventually("the handler runs", || handler.runs().len() == 1);
        consumer.signal(first);
        world.eventually("the end is asked for", || consumer.says(&["asked to end"]));
        // Longer than one that belongs to the first comes after it.
        world.for_a_while(Duration::from_secs(1), "it finishes its batch", || consumer.is_running());
        let asked = Instant::now();
        consumer.signal(second);
        assert_eq!(consumer.wait(), End::By(second), "{first:?}");
        // Not by --grace, which is 25 s.
        assert!(asked.elapsed() < Duration::from_secs(8), "{first:?}: {:?}", asked.elapsed());
        assert_eq!(consumer.log_of("error"), [""; 0], "{first:?}");
        world.eventually("the handler is gone", || world.processes() == 0);
        let seat = world.seat(&products, 0, &format!("indexer-{number}"));
        assert_eq!((seat.offset(), handler.payloads()), (Some(0), vec![]), "{first:?}");
    }
}
