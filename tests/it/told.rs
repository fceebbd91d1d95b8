//! What a daemon tells of itself: to whoever sends SIGUSR1, and to systemd.

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Process, World, value};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

/// Waits until this is what the process answers to SIGUSR1; times, terms and this host's name are written so.
fn answers(world: &World, process: &Process, expected: &[String]) {
    world.eventually(&format!("it answers {expected:#?}"), || {
        process.ask();
        let log = process.log_of("info");
        let last = &log[log.len().saturating_sub(expected.len())..];
        last.iter().map(|line| masked(line)).eq(expected.iter().cloned())
    });
}

fn masked(line: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut masked: Vec<&str> = vec![];
    for word in line.split(' ') {
        masked.push(match masked.last() {
            Some(&"term") => "TERM",
            Some(&"since") => "TIME,",
            Some(&"behind") if word == host.trim() => "HOST",
            _ if word.contains('.') && word.parse::<f64>().is_ok() => "N",
            _ => word,
        });
    }
    masked.join(" ")
}

#[test]
fn sigusr1_tells_what_each_partition_waits_for_even_with_quiet() {
    let world = World::new("asked");
    let products = world.topic("products", 4);
    let gate = world.gate();
    let handler = world.handler(&format!("[ $KSYNC_BATCH_PARTITION -ne 1 ] || await {gate}"));
    let consumer = world.consume(&format!("-q -j 1 --batch-wait 2s -t {products} -n indexer -- {handler}"));
    let at = |partition: i32, state: &str| format!("{products}/{partition} as indexer: {state}");
    let leading = |partition: i32, state: &str| at(partition, &format!("leading term TERM since TIME, {state}"));
    let idle = |partition| leading(partition, "offset 0; waits for records, N s so far");
    let all = "leading 4 of 4 partitions".to_owned();
    answers(&world, &consumer, &[all, idle(0), idle(1), idle(2), idle(3)]);

    world.kafka.produce(&products, ids(1..=5).map(|message| message.to(0)));
    world.eventually("they are done", || world.seat(&products, 0, "indexer").offset() == Some(5));
    world.kafka.produce(&products, [value("{").to(3)]);
    world.eventually("it halts", || !consumer.log_of("error").is_empty());
    world.kafka.produce(&products, ids(1..=3).map(|message| message.to(1)));
    world.eventually("the handler runs", || handler.runs().len() == 2);
    world.kafka.produce(&products, ids(1..=1).map(|message| message.to(2)));
    let halted = consumer.log_of("error")[0].split_once("halted at offset 0: ").unwrap().1.to_owned();
    answers(
        &world,
        &consumer,
        &[
            "leading 4 of 4 partitions, 1 halted".to_owned(),
            leading(0, "offset 5; waits for records, N s so far"),
            leading(1, "offset 0; the handler has offsets 0 to 2, attempt 1, for N s so far"),
            leading(2, "offset 0; waits for a handler to be free (-j), N s so far"),
            leading(3, &format!("offset 0; halted: {halted}; tries again in N s")),
        ],
    );

    let standby = world.consume(&format!("-q -p 0 -t {products} -n indexer -- {handler}"));
    answers(&world, &standby, &["leading 0 of 1 partitions".to_owned(), at(0, "standby, behind HOST")]);
    gate.open();
}

#[test]
fn sigusr1_tells_of_pauses_shares_and_delay_messages() {
    let world = World::new("asked-more");
    let products = world.topic_with_delay("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let one = "leading 1 of 1 partitions".to_owned();
    let leading = |topic: &str, name: &str, state: &str| {
        format!("{topic}/0 as {name}: leading term TERM since TIME, offset 0; {state}")
    };
    let failing = world.consume(&format!("-q -t {products} -n fails --retry-pause 1h --retry-pause-max 1h -- false"));
    answers(&world, &failing, &[one.clone(), leading(&products, "fails", "tries again in N s")]);

    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let by_key = world.consume(&format!("-q -j 2 --by-key -t {products} -n splits -- {handler}"));
    world.eventually("both run", || handler.runs().len() == 2);
    let runs = handler.runs();
    let shares: Vec<_> = runs.iter().map(|run| (run.first, run.last)).collect();
    let at =
        |(first, last): (i64, i64)| format!("the handler has offsets {first} to {last}, attempt 1, for N s so far");
    // The reading was begun before them, or after: by what came first.
    world.eventually("both are told", || {
        by_key.ask();
        let told = by_key.log_of("info");
        let line = told.last().map(|line| masked(line)).unwrap_or_default();
        shares.iter().all(|share| line.contains(&at(*share))) && line.contains("waits for records")
    });
    gate.open();

    world.kafka.produce(&format!("{products}-delay"), [value(r#"{"payload": 1, "created_at": 9e9}"#)]);
    let delayer = world.delayer(&format!("-q -t {products} --delay 1h"));
    let due = leading(&format!("{products}-delay"), "delayer", "the message at offset 0 is due in N s");
    answers(&world, &delayer, &[one, due]);
}

/// What a unit with a WatchdogSec= of 400 ms has in its environment.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "400000");

/// Where systemd would listen.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    told: RefCell<Vec<String>>,
}

impl Systemd {
    fn of(world: &World) -> Systemd {
        let path = world.file("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Systemd { socket, path, told: RefCell::default() }
    }

    fn beats(&self) -> usize {
        self.told().iter().filter(|told| *told == "WATCHDOG=1").count()
    }

    /// All that it was told so far. To be called often: ten messages are kept at most, then their sender waits.
    fn told(&self) -> Vec<String> {
        let mut datagram = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            self.told.borrow_mut().push(String::from_utf8_lossy(&datagram[..length]).trim_end().to_owned());
        }
        self.told.borrow().clone()
    }

    fn variable(&self) -> (&str, &str) {
        ("NOTIFY_SOCKET", self.path.to_str().unwrap())
    }
}

#[test]
fn systemd_hears_ready_once_both_servers_are_there_and_then_how_the_partitions_stand() {
    let world = World::alone("systemd");
    let products = world.topic("products", 1);
    world.services.stop("kafka");
    world.services.stop("zookeeper");
    let systemd = Systemd::of(&world);
    let handler = world.handler("");
    let arguments = format!("-t {products} -n indexer -- {handler}");
    let mut consumer = world.start(CONSUME, &arguments, &[systemd.variable()]);
    world.eventually("it waits for Kafka", || consumer.says(&["cannot ask Kafka at "]));
    world.eventually("that is told, too", || systemd.told() == ["STATUS=at no partition yet"]);
    world.services.start_again("kafka");
    world.eventually("it waits for ZooKeeper", || consumer.says(&["cannot reach ZooKeeper"]));
    let waits = "STATUS=leading 0 of 1 partitions, ZooKeeper is not reached";
    world.eventually("that is told", || systemd.told() == ["STATUS=at no partition yet", waits]);

    world.services.start_again("zookeeper");
    let leads = "STATUS=leading 1 of 1 partitions";
    world.eventually("it leads", || systemd.told().last().is_some_and(|told| told == leads));
    world.kafka.produce(&products, [value("{")]);
    let halted = "STATUS=leading 1 of 1 partitions, 1 halted";
    world.eventually("it is halted", || systemd.told().last().is_some_and(|told| told == halted));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    let mut told = systemd.told();
    // For a moment, if at all.
    told.retain(|told| told != "STATUS=leading 0 of 1 partitions");
    let stops = "STOPPING=1\nSTATUS=finishing what is under way";
    assert_eq!(told, ["STATUS=at no partition yet", waits, "READY=1", leads, halted, stops]);
}

#[test]
fn the_watchdog_of_systemd_hears_nothing_of_a_process_that_stands_still() {
    let world = World::new("watchdog");
    let products = world.topic("products", 1);
    let systemd = Systemd::of(&world);
    let environment = [systemd.variable(), WATCHDOG];
    let consumer = world.start(CONSUME, &format!("-t {products} -n indexer -- true"), &environment);
    // Each 200 ms.
    world.eventually("it lives", || systemd.beats() >= 4);
    consumer.signal(Signal::STOP);
    // What was sent before.
    world.for_a_while(Duration::from_millis(100), "", || true);
    let before = systemd.beats();
    world.for_a_while(Duration::from_secs(1), "it is silent", || systemd.beats() == before);
    consumer.signal(Signal::CONT);
    world.eventually("it lives again", || systemd.beats() > before);
}

#[test]
fn a_handler_is_not_given_what_systemd_tells_us_and_cannot_speak_for_us() {
    let world = World::new("unspoken");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=1));
    let systemd = Systemd::of(&world);
    for (name, options) in [("all", ""), ("named", "--clean-env --pass-env NOTIFY_SOCKET")] {
        let handler = world.script("cat >/dev/null; env | grep -e NOTIFY_ -e WATCHDOG_ || echo nothing");
        let arguments = format!("-t {products} -n {name} -e {options} -- {handler}");
        let mut consumer = world.start(CONSUME, &arguments, &[systemd.variable(), WATCHDOG]);
        assert_eq!(consumer.wait(), End::Status(0));
        let prefix = format!("{products}/0: ");
        let said = consumer.log_of("info");
        let said: Vec<_> = said.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
        assert_eq!(said, ["nothing"]);
    }
}
