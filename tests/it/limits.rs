//! A process that the machine denies something: descriptors, processes, a place to write to, /proc, a name, random numbers.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::consume::ids;
use crate::support::{End, Mode, Process, Proxy, Way, World, block_on, is_full};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");
const MANY: u64 = 4096;
const RETRIES: &str = "--retry-pause 50ms --retry-pause-max 200ms";

fn allow(process: &Process, descriptors: u64) {
    let limits = Rlimit { current: Some(descriptors), maximum: Some(MANY) };
    prlimit(Pid::from_raw(process.pid), Resource::Nofile, limits).unwrap();
}

/// From now on it can start neither processes nor threads, as where `ulimit -u` or pids.max is reached, until what is given
/// here ends. Both of these need a user or a group of the process's own; strace has the kernel refuse it to anybody.
fn refuse_processes(world: &World, process: &Process) -> Process {
    let refuse = "-e trace=clone,clone3 -e inject=clone,clone3:error=EAGAIN";
    let strace = world.start("strace", &format!("-f -o /dev/null -e signal=none {refuse} -p {}", process.pid), &[]);
    world.eventually("strace follows it", || strace.says(&[&format!("Process {} attached", process.pid)]));
    strace
}

/// That a batch waits while `deny` keeps its handler from being started, for this reason, and until `allow` ends that.
fn the_batch_waits_and_the_lease_stays<T>(
    (test, reason): (&str, &str),
    deny: impl FnOnce(&World, &Process) -> T,
    allow: impl FnOnce(&Process, T),
) {
    let world = World::new(test);
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let dead = world.topic("dead", 1);
    let options = format!("{RETRIES} --isolate-after 1 --dead-letter={dead}");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..1));
    world.eventually("it works", || seat.offset() == Some(1));
    let candidates = seat.candidates();
    if is_full() {
        // Those of its threads that wait for something to do end after 10 s.
        world.for_a_while(Duration::from_secs(12), "it leads", || seat.candidates() == candidates);
    }
    let denied = deny(&world, &consumer);
    world.kafka.produce(&products, ids(1..4));
    world.eventually("it is tried again and again", || {
        consumer.log_of("warn").iter().filter(|line| line.contains(reason)).count() > 3
    });
    assert_eq!((seat.offset(), seat.candidates()), (Some(1), candidates.clone()));
    assert!(!consumer.says(&["; next are"]), "it is cut in halves");
    allow(&consumer, denied);
    world.eventually("it is done", || seat.offset() == Some(4));
    assert_eq!(seat.candidates(), candidates);
    assert_eq!(handler.payloads().len(), 4);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(world.kafka.count(&dead), 0, "no record is to blame");
}

#[test]
fn without_descriptors_for_a_handler_the_batch_waits_and_the_lease_stays() {
    // Those that are open stay open, and none below them is free.
    let deny = |_: &World, consumer: &Process| allow(consumer, 4);
    the_batch_waits_and_the_lease_stays(("descriptors", "Too many open files"), deny, |consumer, ()| {
        allow(consumer, MANY);
    });
}

#[test]
fn without_descriptors_for_connections_a_consumer_waits_and_does_all_that_came_once_it_has_some() {
    let world = World::new("connections");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let to_kafka = Way::to(world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    let to_zookeeper = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let zookeeper = format!("{}/{}", to_zookeeper.address, world.id);
    let environment =
        [("KSYNC_BOOTSTRAP_SERVER", to_kafka.bootstrap.as_str()), ("KSYNC_ZOOKEEPER", zookeeper.as_str())];
    let options = format!("-t {products} -n indexer --session-timeout 10s {RETRIES}");
    let mut consumer = world.start(CONSUME, &format!("{options} -- {handler}"), &environment);
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..1));
    world.eventually("it works", || seat.offset() == Some(1));
    // Nor can it have those again that it gives back.
    allow(&consumer, 4);
    to_kafka.cut(1);
    block_on(to_zookeeper.cut());
    world.kafka.produce(&products, ids(1..4));
    world.eventually("it is told", || consumer.says(&["warn: ", "cannot reach ZooKeeper"]));
    assert_eq!((consumer.is_running(), seat.offset()), (true, Some(1)));
    allow(&consumer, MANY);
    world.eventually("all is done", || seat.offset() == Some(4));
    assert_eq!(handler.payloads().len(), 4);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
}

#[test]
fn with_too_few_descriptors_nothing_is_started_and_with_the_fewest_that_are_allowed_all_is_done() {
    let world = World::new("few-descriptors");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..3));
    let handler = world.handler("");
    for (few, status) in [(12, 78), (63, 78), (64, 0)] {
        let consume = format!("ulimit -Sn {few}; exec {CONSUME} -t {products} -n indexer -e -- {handler}");
        let mut consumer = world.start("sh", &format!("-c \"{consume}\""), &[]);
        assert_eq!(consumer.wait(), End::Status(status), "{:?}", consumer.log());
        let told = format!("error: a process may have only {few} files open here, and ksync needs 64, ");
        assert_eq!(consumer.says(&[&told]), status == 78, "{:?}", consumer.log());
    }
    assert_eq!(handler.payloads().len(), 3);
}

#[test]
fn where_no_process_can_be_started_the_batch_waits_and_the_lease_stays() {
    let reason = "Resource temporarily unavailable";
    the_batch_waits_and_the_lease_stays(("processes", reason), refuse_processes, |_, mut strace| {
        strace.signal(Signal::TERM);
        strace.wait();
    });
}

#[test]
fn a_bounded_run_that_can_start_no_process_gives_up_and_is_to_be_run_again() {
    let world = World::new("bounded-processes");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..2));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let options = format!("{RETRIES} --batch-size 1 -e --give-up 2s");
    let consume = || world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let mut consumer = consume();
    world.eventually("the first record is worked on", || handler.runs().len() == 1);
    let strace = refuse_processes(&world, &consumer);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(75));
    assert!(consumer.says(&["error: ", "gave up: ", "Resource temporarily unavailable"]), "{:?}", consumer.log());
    let seat = world.seat(&products, 0, "indexer");
    assert_eq!((seat.offset(), seat.candidates()), (Some(1), vec![]), "what was done is committed");
    drop(strace);
    assert_eq!((consume().wait(), handler.payloads().len()), (End::Status(0), 2));
}

#[test]
fn a_handler_that_could_not_be_started_beside_a_commit_waits_for_it_at_the_next_attempt_too() {
    let world = World::new("held-commit");
    let products = world.topic("products", 1);
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let options = format!("{RETRIES} --session-timeout 10s --zookeeper {}/{}", proxy.address, world.id);
    let consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.kafka.produce(&products, ids(0..1));
    world.eventually("the first is worked on", || handler.runs().len() == 1);
    world.kafka.produce(&products, ids(1..2));
    // Not even those are free that the first handler gives back.
    allow(&consumer, 4);
    proxy.set(Mode::FrozenAt("/offset"));
    gate.open();
    world.eventually("none can be started", || consumer.says(&["warn: ", "Too many open files"]));
    world.eventually("the commit is on its way", || proxy.is(Mode::Frozen));
    allow(&consumer, MANY);
    // Not longer: its lease lasts for 3 s.
    world.for_a_while(Duration::from_millis(300), "nothing is given to it", || handler.runs().len() == 1);
    proxy.set(Mode::Open);
    world.eventually("all is done", || world.seat(&products, 0, "indexer").offset() == Some(2));
    assert_eq!(handler.payloads().len(), 2);
}

#[test]
fn without_descriptors_for_its_action_a_stream_ends_to_be_run_again() {
    let world = World::new("stream-descriptors");
    let products = world.topic_with_delay("products", 1);
    let mut stream = world.stream(&format!("-t {products} - --chunk-size 1 -- sh -c 'cat >/dev/null'"));
    stream.tell("{\"id\":1}\n");
    world.eventually("the first chunk is announced", || world.kafka.count(&products) == 1);
    allow(&stream, 4);
    stream.tell("{\"id\":2}\n");
    assert_eq!(stream.wait(), End::Status(75));
    assert!(stream.says(&["error: ", "Too many open files"]));
    let counts = [products.clone(), format!("{products}-delay")].map(|topic| world.kafka.count(&topic));
    assert_eq!(counts, [1, 2], "the delay message of the second is sent, and no more");
}

#[test]
fn without_a_home_and_with_a_tmp_that_nobody_can_write_to_a_consumer_works() {
    let world = World::new("read-only");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..3));
    // The handler's journal lies there, and stays as it is.
    let dir = world.dir.display();
    let mounts = format!("mount --bind {dir} {dir}; mount --rbind /tmp /tmp; mount -o remount,bind,ro /tmp");
    let handler = world.handler("if touch /tmp/ksync-test; then exit 78; fi");
    let arguments = format!("-t {products} -n indexer -e -- {handler}");
    let mut consumer = world.consume_apart(("--mount", &format!("{mounts}; unset HOME")), &arguments, &[]);
    assert_eq!(consumer.wait(), End::Status(0), "{:?}", consumer.log());
    assert_eq!((handler.payloads().len(), consumer.log_of("warn")), (3, vec![]));
}

#[test]
fn without_proc_a_consumer_does_not_start_since_what_its_handlers_leave_behind_could_not_be_found() {
    let world = World::new("no-proc");
    let handler = world.handler("");
    let arguments = format!("-t products -n indexer -- {handler}");
    let mut consumer = world.consume_apart(("--mount", "mount -t tmpfs none /proc"), &arguments, &[]);
    assert_eq!(consumer.wait(), End::Status(78));
    let error = "cannot read /proc/self/exe: No such file or directory (os error 2); is /proc mounted?";
    assert_eq!(consumer.log(), [format!("error: {error}")]);
}

#[test]
fn whatever_a_host_is_called_one_candidate_leads_and_the_other_takes_over() {
    let world = World::new("hostnames");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    // In Python, and as it is shown.
    let hosts = [
        ("long", r#"b"h" * 64"#, "h".repeat(64)),
        ("bytes", r#"b"\xffweb\xe9""#, "\u{fffd}web\u{fffd}".to_owned()),
        ("nameless", r#"b"""#, String::new()),
    ];
    let start = || -> Vec<Process> {
        let consume = |(name, host, _): &(&str, &str, String)| {
            let rename = format!("python3 -c 'import socket; socket.sethostname({host})'");
            world.consume_apart(("--uts", &rename), &format!("-t {products} -n {name} -- {handler}"), &[])
        };
        hosts.iter().map(consume).collect()
    };
    let seats = hosts.each_ref().map(|(name, ..)| world.seat(&products, 0, name));
    world.kafka.produce(&products, ids(0..2));
    let first = start();
    world.eventually("the first ones lead", || seats.iter().all(|seat| seat.offset() == Some(2)));
    let second = start();
    world.eventually("the others stand by", || {
        second.iter().zip(&hosts).all(|(process, (name, _, host))| {
            process.ask();
            process.log_of("info").contains(&format!("{products}/0 as {name}: standby, behind {host}"))
        })
    });
    for (seat, (name, _, host)) in seats.iter().zip(&hosts) {
        let queue = seat.candidates();
        let processes: BTreeSet<_> = queue.iter().map(|candidate| candidate.split_once('_').unwrap().0).collect();
        assert_eq!((queue.len(), processes.len()), (2, 2), "{name}: {queue:?}");
        for candidate in &queue {
            let card = seat.text(&format!("leader/{candidate}")).unwrap();
            assert_eq!(card.split_once("\nhandler ").map(|(host, _)| host), Some(host.as_str()), "{name}");
        }
    }
    let end = |mut process: Process| {
        process.signal(Signal::TERM);
        assert_eq!(process.wait(), End::Status(0), "{:?}", process.log());
    };
    first.into_iter().for_each(end);
    world.kafka.produce(&products, ids(2..4));
    world.eventually("the others lead", || seats.iter().all(|seat| seat.offset() == Some(4)));
    assert!(seats.iter().all(|seat| seat.state()["offset"] == 4));
    assert_eq!(handler.payloads().len(), 4 * hosts.len());
    second.into_iter().for_each(end);
}

#[test]
fn without_the_kernels_random_numbers_candidates_have_ids_of_their_own_all_the_same() {
    let world = World::new("no-entropy");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..2));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    // As with a kernel that does not know the call.
    let refuse = "-f -b execve -qq -e signal=none -e trace=getrandom -e inject=getrandom:error=ENOSYS";
    let consume = format!("{CONSUME} -t {products} -n indexer -e --wait 1m -- {handler}");
    let consumers = [0, 1].map(|_| {
        let calls = world.file("calls");
        (world.start("strace", &format!("-o {} {refuse} {consume}", calls.display()), &[]), calls)
    });
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("two queue", || seat.candidates().len() == 2);
    let queue = seat.candidates();
    let processes: BTreeSet<_> = queue.iter().map(|candidate| candidate.split_once('_').unwrap().0).collect();
    assert_eq!(processes.len(), 2, "{queue:?}");
    gate.open();
    for (mut consumer, calls) in consumers {
        assert_eq!(consumer.wait(), End::Status(0), "{:?}", consumer.log());
        assert!(fs::read_to_string(calls).unwrap().contains("ENOSYS"), "it has asked for none");
    }
    assert_eq!((seat.offset(), handler.payloads().len()), (Some(2), 2));
}
