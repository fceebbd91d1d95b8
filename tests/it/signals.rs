//! Signals that ask for nothing, or only sometimes for the end: SIGHUP, and SIGCHLD in floods.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::consume::ids;
use crate::processes::{children, warden};
use crate::support::{End, Process, World, is_full};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");
const DELAYER: &str = env!("CARGO_BIN_EXE_ksync-delayer");
const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

const GOES_ON: &str = "SIGHUP: going on; options and files are read at the start only";

/// Starts a command that does not ignore SIGHUP, whatever the test itself was started by.
fn heeding(world: &World, command: &str) -> Process {
    world.start("env", &format!("--default-signal=HUP {command}"), &[])
}

#[test]
fn sighup_ends_neither_a_daemon_nor_its_batch() {
    let world = World::new("hang-up");
    let products = world.topic_with_delay("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let mut consumer = heeding(&world, &format!("{CONSUME} -t {products} -n indexer -- {handler}"));
    let mut delayer = heeding(&world, &format!("{DELAYER} -t {products}"));
    let mut stream = heeding(&world, &format!("{STREAM} -t {products} --serve {}", world.file("serve").display()));
    world.eventually("all work", || {
        let leads = delayer.says(&["leading from offset 0"]);
        leads && handler.runs().len() == 1 && stream.says(&["serving applications at "])
    });
    for daemon in [&mut consumer, &mut delayer, &mut stream] {
        daemon.signal(Signal::HUP);
        world.eventually("it says what it makes of it", || daemon.says(&["info: ", GOES_ON]));
        assert!(daemon.is_running());
    }
    gate.open();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the batch is done", || seat.offset() == Some(5));
    for daemon in [&mut consumer, &mut delayer, &mut stream] {
        daemon.signal(Signal::TERM);
        assert_eq!((daemon.wait(), daemon.log_of("error")), (End::Status(0), vec![]));
    }
    assert_eq!((handler.runs().len(), consumer.log_of("warn")), (1, vec![]));
}

/// Runs a command on a terminal of its own, until a file is there: then the terminal goes. Shows what the command says,
/// writes down its process number, and ends as it does.
const TERMINAL: &str = r#"#!/usr/bin/env python3
import os, pty, select, sys
gate, command = sys.argv[1], sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(command[0], command)
with open(gate + ".part", "w") as file:
    file.write(str(pid))
os.rename(gate + ".part", gate + ".pid")
while not os.path.exists(gate):
    if select.select([terminal], [], [], 0.02)[0]:
        os.write(2, os.read(terminal, 4096))
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
"#;

#[test]
fn a_daemon_ends_as_by_sigterm_when_the_terminal_is_gone_that_it_logs_to() {
    let world = World::new("terminal");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let (gone, gate) = (world.gate(), world.gate());
    let handler = world.handler(&format!("await {gate}"));
    let terminal = world.script_of(TERMINAL);
    let mut shown = heeding(&world, &format!("{terminal} {gone} {CONSUME} -t {products} -n indexer -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    // Somebody's kill -HUP, while the terminal is there.
    let mut pid = String::new();
    world.eventually("its number is known", || {
        pid = fs::read_to_string(format!("{gone}.pid")).unwrap_or_default();
        !pid.is_empty()
    });
    let pid: i32 = pid.parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::HUP).unwrap();
    world.eventually("it goes on", || shown.says(&[GOES_ON]));

    gone.open();
    gate.open();
    assert_eq!(shown.wait(), End::Status(0));
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), seat.candidates(), handler.runs().len()), (Some(5), vec![], 1));
}

#[test]
fn sighup_ends_a_stream_after_its_chunk_unless_nohup_has_started_it() {
    let world = World::new("stream-hang-up");
    for (name, program, end, done) in [("heeded", "", End::Status(75), 2), ("nohup", "nohup", End::Status(0), 4)] {
        let topic = world.topic_with_delay(name, 1);
        let (gate, begun) = (world.gate(), world.file("begun"));
        let action = world.script(&format!("cat >> {}; await {gate}", begun.display()));
        let arguments = format!("- -t {topic} --chunk-size 2 -- {action}");
        let mut stream = heeding(&world, &format!("{program} {STREAM} {arguments}"));
        stream.tell("{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n{\"id\":4}\n");
        world.eventually("the action runs", || begun.exists());
        stream.signal(Signal::HUP);
        if done == 2 {
            world.eventually("the end was asked for", || stream.says(&["asked to end"]));
        }
        gate.open();
        assert_eq!((stream.wait(), stream.says(&["asked to end"])), (end, done == 2), "{name}");
        assert_eq!(fs::read_to_string(&begun).unwrap().lines().count(), done, "{name}");
        let counts = (world.kafka.count(&topic), world.kafka.count(&format!("{topic}-delay")));
        assert_eq!(counts, (done as i64, done as i64), "{name}");
    }
}

#[test]
fn many_handler_runs_leave_no_zombie_and_no_descriptor() {
    const PARTITIONS: i32 = 4;
    let runs = if is_full() { 10_000 } else { 300 };
    let world = World::new("many-runs");
    let products = world.topic("products", PARTITIONS);
    // Each leaves an orphan, which is ksync's to reap, too.
    let script = world.script("cat >/dev/null; sh -c 'true & exit' & exit 0");
    let consumer = world.consume(&format!("-j 4 -t {products} -n indexer --batch-size 1 -- {script}"));
    let send = |count: u32| {
        let messages = ids(0..count).zip((0..PARTITIONS).cycle()).map(|(message, partition)| message.to(partition));
        world.kafka.produce(&products, messages);
    };
    let done = || -> i64 { (0..PARTITIONS).filter_map(|p| world.seat(&products, p, "indexer").offset()).sum() };
    // A handler run holds pipes and the like. Sockets are those of the few clients, which open them as they need them.
    let [descriptors, sockets] = [false, true].map(|is_socket| {
        let files = Path::new("/proc").join(consumer.pid.to_string()).join("fd");
        move || {
            let targets = fs::read_dir(&files).unwrap().filter_map(|file| fs::read_link(file.unwrap().path()).ok());
            targets.filter(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:") == is_socket).count()
        }
    });
    send(20);
    world.eventually("it has begun", || done() == 20);
    let before = (descriptors(), sockets());
    send(runs);
    let (mut most_children, mut most_descriptors) = (0, 0);
    world.within(Duration::from_secs(600), "all are done", || {
        most_children = most_children.max(children(&consumer).len());
        most_descriptors = most_descriptors.max(descriptors());
        done() == i64::from(20 + runs)
    });
    // At each moment the warden, the four handlers, and the orphans that have ended just now: not those of all runs.
    assert!(most_children <= 100, "{most_children} children");
    assert!(most_descriptors <= before.0 + 4 * 16, "{most_descriptors} descriptors, {before:?} at the start");
    assert_eq!(children(&consumer), [warden(&consumer).unwrap()]);
    assert!(descriptors() <= before.0 + 2, "{} descriptors, {before:?} at the start", descriptors());
    assert!(sockets() <= before.1 + 16, "{} sockets, {before:?} at the start", sockets());
}
