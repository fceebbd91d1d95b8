//! The life of a process: what it survives, and that restarts do no work twice.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use ksync::cli::{self, Common, LeaderOptions, Tool};
use ksync::election::{Election, Seat, ZooKeeper};
use ksync::exit::Exit;
use ksync::shutdown::Shutdown;
use ksync::topic::Topic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncBufReadExt;

use crate::consume::ids;
use crate::support::{End, Handler, Process, World, is_full};

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

#[test]
fn how_many_lines_of_the_log_were_lost_is_told_once_somebody_reads_it_again() {
    let world = World::new("lost-lines");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let log = world.file("log");
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let arguments = format!("-v -t {products} -n indexer -- {handler}");
    let mut consumer = consume_with(&world, &arguments, &format!("2>{}", log.display()));
    let mut first = String::new();
    BufReader::new(File::open(&log).unwrap()).read_line(&mut first).unwrap();
    world.kafka.produce(&products, ids(1..=5));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("they are done, and nobody has read of it", || seat.offset() == Some(5));

    let lines = Arc::<Mutex<Vec<String>>>::default();
    let kept = lines.clone();
    let reader = std::thread::spawn(move || {
        BufReader::new(File::open(log).unwrap()).lines().for_each(|line| kept.lock().unwrap().push(line.unwrap()));
    });
    let told = || {
        let lines = lines.lock().unwrap();
        let told = lines.iter().filter_map(|line| line.split_once(" warn: lines of the log that could not be written"));
        told.map(|(_, rest)| rest.to_owned()).collect::<Vec<_>>()
    };
    world.eventually("it is told", || {
        consumer.ask();
        !told().is_empty()
    });
    let answered = lines.lock().unwrap().len();
    world.eventually("more is said", || {
        consumer.ask();
        lines.lock().unwrap().len() > answered + 3
    });
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    reader.join().unwrap();
    let [told] = &told()[..] else { panic!("it is told once: {:?}", lines.lock().unwrap()) };
    let count: u32 = told.strip_prefix(", and are lost: ").unwrap().parse().unwrap();
    assert!(count > 0, "{told}");
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
    const EACH: u32 = 200;
    let stops = if is_full() { 200 } else { 10 };
    let world = World::new("clean-stops");
    let products = world.topic("products", 2);
    let handler = world.handler("");
    let command = format!("-t {products} -n indexer --batch-size 2");
    let offsets = || [0, 1].map(|partition| world.seat(&products, partition, "indexer").offset().unwrap_or(0));
    let mut rng = StdRng::seed_from_u64(11);
    let mut amid = 0;
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
        amid += u32::from(offsets().iter().sum::<i64>() < i64::from((stop + 1) * EACH));
    }
    assert!(4 * amid >= 3 * stops, "only {amid} of {stops} stops came before all was done");
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

/// A tool that leads, and one of whose tasks panics once it is told a line, while all that is waited for goes on.
#[derive(Clone, Debug, Parser)]
struct Broken {
    #[command(flatten)]
    leader: LeaderOptions,
    #[command(flatten)]
    common: Common,
    #[arg(long, env = "PANICS_AT")]
    topic: Topic,
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

async fn run(broken: Broken, shutdown: Shutdown) -> anyhow::Result<Exit> {
    let Broken { leader, topic, .. } = broken;
    let servers = leader.zookeeper.expect("it is required");
    let election = Election::ZooKeeper(ZooKeeper::connect(&servers, leader.session_timeout));
    let seat = Seat { partition: topic.partition(0), name: "indexer".parse()? };
    let _lease = election.candidate(seat).lead(&shutdown).await?;
    tokio::io::BufReader::new(tokio::io::stdin()).lines().next_line().await?;
    tokio::spawn(async { assert_eq!(1, 2, "arithmetic") });
    future::pending().await
}

#[test]
fn a_panic_in_any_task_ends_the_process_by_sigabrt_at_once_and_the_standby_leads() {
    const SESSION: Duration = Duration::from_secs(10);
    // No real tool panics, so this test is one, too: in a process of its own.
    if std::env::var_os("PANICS_AT").is_some() {
        cli::main(run);
        return;
    }
    let world = World::new("panic");
    let products = world.topic("products", 1);
    let (seat, handler) = (world.seat(&products, 0, "indexer"), world.handler(""));
    let test = std::env::current_exe().unwrap();
    let name = "a_panic_in_any_task_ends_the_process_by_sigabrt_at_once_and_the_standby_leads";
    let environment = [("PANICS_AT", products.as_str()), ("KSYNC_SESSION_TIMEOUT", "10s")];
    let this = format!("-- --exact life::{name} --nocapture");
    let mut broken = world.start(test.to_str().unwrap(), &this, &environment);
    world.eventually("it leads", || seat.node("offset").is_some());
    let standby = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {handler}"));
    world.eventually("the other one stands by", || seat.candidates().len() == 2);
    let (end, lead) = if is_full() { (1, 2) } else { (10, 8) };
    broken.tell("\n");
    world.within(Duration::from_secs(end), "it has ended", || !broken.is_running());
    world.within(SESSION + Duration::from_secs(lead), "the standby leads", || standby.says(&["leading from offset 0"]));
    assert_eq!(broken.wait(), End::By(Signal::ABORT));
    let errors = broken.log();
    let error = errors.iter().find(|line| line.contains("panicked at tests/it/life.rs:")).expect("it is told");
    assert!(error.ends_with("arithmetic\\n  left: 1\\n right: 2; this is a bug of ksync"), "{error}");
}
