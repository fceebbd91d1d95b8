//! The life of a process: how it ends in each phase, what it survives, and that restarts do no work twice.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use ksync::cli::{self, Common, Tool};
use ksync::exit::Exit;
use ksync::shutdown::Shutdown;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::consume::ids;
use crate::support::{End, Handler, Process, World, is_full, value};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

/// A consumer that a shell starts with its descriptors so.
fn consume_with(world: &World, arguments: &str, descriptors: &str) -> Process {
    world.start(&world.script(&format!("exec {CONSUME} {arguments} {descriptors}")), "", &[])
}

fn does_five_records_and_ends(world: &World, products: &str, handler: &Handler, mut consumer: Process) {
    world.kafka.produce(products, ids(1..=5));
    let seat = world.seat(products, 0, "indexer");
    world.eventually("they are done", || seat.offset() == Some(5));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(handler.payloads(), (1..=5).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>());
}

#[test]
fn with_descriptors_0_to_2_closed_no_other_file_takes_their_numbers() {
    let world = World::new("closed");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consumer = consume_with(&world, &format!("-v -t {products} -n indexer -- {handler}"), "0<&- 1>&- 2>&-");
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let open = |fd: i32| fs::read_link(format!("/proc/{}/fd/{fd}", consumer.pid)).unwrap().display().to_string();
    assert_eq!([0, 1, 2].map(open), ["/dev/null"; 3]);
    does_five_records_and_ends(&world, &products, &handler, consumer);
}

#[test]
fn a_log_that_cannot_be_written_or_that_nobody_reads_holds_up_no_work() {
    let world = World::new("no-log");
    for (name, log) in [("full", "/dev/full".to_owned()), ("unread", world.file("log").display().to_string())] {
        let products = world.topic(name, 1);
        let handler = world.handler("");
        if name == "unread" {
            assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
        }
        let consumer = consume_with(&world, &format!("-v -t {products} -n indexer -- {handler}"), &format!("2>{log}"));
        if name == "unread" {
            // As head -1 does it.
            let mut first = String::new();
            BufReader::new(File::open(&log).unwrap()).read_line(&mut first).unwrap();
            assert!(first.contains("ksync-consume"), "{first}");
        }
        does_five_records_and_ends(&world, &products, &handler, consumer);
    }
}

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
        self.world.eventually(shows, || {
            self.process.ask();
            self.process.says(&[shows])
        });
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
fn sigint_of_the_foreground_group_does_not_hit_the_handler() {
    let world = World::new("foreground");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    kill_process_group(Pid::from_raw(consumer.pid).unwrap(), Signal::INT).unwrap();
    world.eventually("the end is asked for", || consumer.says(&["asked to end"]));
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(5));
    assert_eq!((handler.runs().len(), handler.payloads().len(), consumer.log_of("warn")), (1, 5, vec![]));
}

/// The payloads that were not handled exactly once, with how often they were.
fn not_once(handler: &Handler, records: u32) -> BTreeMap<String, usize> {
    let mut times: BTreeMap<String, usize> = (0..records).map(|id| (format!("{{\"id\":{id}}}"), 0)).collect();
    for payload in handler.payloads() {
        *times.entry(payload).or_default() += 1;
    }
    times.retain(|_, times| *times != 1);
    times
}

#[test]
fn clean_stops_at_random_moments_of_the_flow_do_no_record_twice() {
    const EACH: u32 = 40;
    let stops = if is_full() { 200 } else { 10 };
    let world = World::new("clean-stops");
    let products = world.topic("products", 2);
    let handler = world.handler("");
    let command = format!("-t {products} -n indexer --batch-size 2");
    let offsets = || [0, 1].map(|partition| world.seat(&products, partition, "indexer").offset().unwrap_or(0));
    let mut rng = StdRng::seed_from_u64(11);
    for stop in 0..stops {
        let messages = ids(stop * EACH..(stop + 1) * EACH).zip((0..2).cycle());
        world.kafka.produce(&products, messages.map(|(message, partition)| message.to(partition)));
        let before = offsets();
        let mut consumer = world.consume(&format!("{command} -- {handler}"));
        world.eventually("it works", || offsets() != before);
        world.for_a_while(Duration::from_micros(rng.random_range(0..100_000)), "", || true);
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
        assert_eq!([consumer.log_of("warn"), consumer.log_of("error")].concat(), Vec::<String>::new());
    }
    // What is left by then is done in large batches.
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    assert_eq!(not_once(&handler, stops * EACH), BTreeMap::new());
}

#[test]
fn a_rolling_restart_of_three_consumers_does_no_record_twice() {
    const PARTITIONS: i32 = 4;
    const RECORDS: u32 = 2000;
    let rounds = if is_full() { 5 } else { 1 };
    let world = World::new("rolling");
    let products = world.topic("products", PARTITIONS);
    // Most stops come while a handler runs.
    let handler = world.handler("sleep 0.05");
    let start = || world.consume(&format!("-t {products} -n indexer --batch-size 20 -- {handler}"));
    let queue = || world.seat(&products, 0, "indexer").candidates().len();
    let mut consumers: Vec<Process> = (0..3).map(|_| start()).collect();
    world.eventually("all queue", || queue() == 3);
    let messages = ids(0..RECORDS).zip((0..PARTITIONS).cycle()).map(|(message, partition)| message.to(partition));
    let flow = world.kafka.flow(&products, messages.collect(), Duration::from_secs(rounds * 6));
    for _ in 0..rounds {
        for consumer in &mut consumers {
            let done = handler.payloads().len();
            consumer.signal(Signal::TERM);
            assert_eq!(consumer.wait(), End::Status(0));
            *consumer = start();
            world.eventually("it queues", || queue() == 3);
            world.eventually("the work goes on", || {
                let now = handler.payloads().len();
                now > done || now == RECORDS as usize
            });
        }
    }
    flow.join().unwrap();
    world.eventually("all is done", || handler.payloads().len() >= RECORDS as usize);
    assert_eq!(not_once(&handler, RECORDS), BTreeMap::new());
}

/// A tool one of whose tasks panics, while all that is waited for goes on.
#[derive(Clone, Debug, Parser)]
struct Broken {
    #[command(flatten)]
    common: Common,
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    of_the_test_runner: Vec<String>,
}

impl Tool for Broken {
    fn common(&self) -> &Common {
        &self.common
    }

    fn grace(&self) -> Duration {
        Duration::ZERO
    }
}

async fn run(_: Broken, _: Shutdown) -> anyhow::Result<Exit> {
    tokio::spawn(async { assert_eq!(1, 2, "arithmetic") });
    future::pending().await
}

#[test]
fn a_panic_in_any_task_ends_the_process_by_sigabrt() {
    // No real tool panics, so this test is one, too: in a process of its own.
    if std::env::var_os("PANICS").is_some() {
        cli::main(run);
        return;
    }
    let world = World::new("panic");
    let test = std::env::current_exe().unwrap();
    let this = "-- --exact life::a_panic_in_any_task_ends_the_process_by_sigabrt --nocapture";
    let mut broken = world.start(test.to_str().unwrap(), this, &[("PANICS", "1")]);
    assert_eq!(broken.wait(), End::By(Signal::ABORT));
    let errors = broken.log();
    let error = errors.iter().find(|line| line.contains("panicked at tests/it/life.rs:")).expect("it is told");
    assert!(error.ends_with("arithmetic\\n  left: 1\\n right: 2; this is a bug of ksync"), "{error}");
}
