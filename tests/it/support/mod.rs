//! A world for each test: its own place in Kafka and ZooKeeper, the processes it starts, and what these said if it fails.

mod application;
mod broker;
mod client;
mod clock;
mod database;
pub mod election;
mod flow;
mod freezer;
mod handler;
mod hold;
mod hole;
mod kafka;
mod log;
mod namespace;
mod pooler;
mod process;
mod proxy;
mod quorum;
mod services;
mod standby;
mod store;
mod strace;
mod tools;
mod txn_log;
mod way;
mod worker;
mod zookeeper;

use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

pub use self::application::{Application, Language};
pub use self::client::Client;
pub use self::clock::Clock;
pub use self::database::{Primary, primaries};
pub use self::flow::{Flow, MISSED, STALL};
pub use self::freezer::Freezer;
pub use self::handler::{Gate, Handler, Run, payload};
pub use self::hold::{Hold, Moment};
pub use self::hole::{Hole, Lost};
pub use self::kafka::{Kafka, Message, Record, value};
pub use self::log::log_lines;
pub use self::pooler::pooler;
pub use self::process::{End, Process};
pub use self::proxy::{Mode, Proxy};
pub use self::quorum::Quorum;
pub use self::services::Services;
pub use self::standby::Standby;
pub use self::store::{Store, opensearch};
pub use self::strace::{CALLS, Call, TOGETHER, common_calls, kill_at_each, most_calls, traced};
pub use self::txn_log::{all_reigns, reigns};
pub use self::way::{Passage, Way};
pub use self::worker::{Note, Worker};
pub use self::zookeeper::{EPHEMERAL_SEQUENTIAL, PERSISTENT, Seat, remove};

use self::process::Lines;

/// How long [`World::eventually`] waits.
const EVENTUALLY: Duration = Duration::from_secs(60);

/// What ends the handlers of a test that their ksync left behind: each has this variable in its environment.
const MARK: &str = "WORLD";

pub struct World {
    /// What makes this test's names its own, in this run: `retry-1a2b3c`.
    pub id: String,
    pub dir: PathBuf,
    pub services: Arc<Services>,
    pub kafka: Kafka,
    client: OnceCell<::zookeeper::Client>,
    said: RefCell<Vec<(String, Lines)>>,
    made: Cell<u32>,
}

impl World {
    /// On the servers that all tests share.
    pub fn new(test: &str) -> World {
        World::on(Services::shared(), unique(test))
    }

    /// The same, with the stores that handlers write to.
    pub fn with_stores(test: &str) -> World {
        World::on(Services::with_stores(), unique(test))
    }

    /// On servers of its own, which it may harm.
    pub fn alone(test: &str) -> World {
        World::alone_with(test, 1)
    }

    /// The same, with so many brokers: 1 or 3.
    pub fn alone_with(test: &str, brokers: usize) -> World {
        let id = unique(test);
        World::on(Services::own(&id, brokers), id)
    }

    fn on(services: Arc<Services>, id: String) -> World {
        let kafka = Kafka::at(services.get("KSYNC_BOOTSTRAP_SERVER"));
        let dir = std::env::temp_dir().join(format!("ksync-test-{id}"));
        fs::create_dir(&dir).unwrap();
        World { id, dir, services, kafka, client: OnceCell::new(), said: RefCell::new(vec![]), made: Cell::new(0) }
    }

    /// Makes a topic, and gives its name.
    pub fn topic(&self, name: &str, partitions: i32) -> String {
        let topic = format!("{name}-{}", self.id);
        self.kafka.create(&topic, partitions, &[]);
        topic
    }

    /// Makes a topic and its delay topic, in both of which the broker says when it appended a record, and gives the former's
    /// name.
    pub fn topic_with_delay(&self, name: &str, partitions: i32) -> String {
        let topic = format!("{name}-{}", self.id);
        for topic in [&topic, &format!("{topic}-delay")] {
            self.kafka.create(topic, partitions, &[("message.timestamp.type", "LogAppendTime")]);
        }
        topic
    }

    pub fn consume(&self, arguments: &str) -> Process {
        self.start(env!("CARGO_BIN_EXE_ksync-consume"), arguments, &[])
    }

    pub fn delayer(&self, arguments: &str) -> Process {
        self.start(env!("CARGO_BIN_EXE_ksync-delayer"), arguments, &[])
    }

    pub fn stream(&self, arguments: &str) -> Process {
        self.start(env!("CARGO_BIN_EXE_ksync-stream"), arguments, &[])
    }

    /// ksync-stream with all these lines on its stdin.
    pub fn stream_lines(&self, arguments: &str, lines: impl AsRef<[u8]>) -> Process {
        let mut stream = self.stream(arguments);
        stream.tell(lines);
        stream
    }

    /// A program, told in its environment where this world is; what `environment` says beats that.
    pub fn start(&self, program: &str, arguments: &str, environment: &[(&str, &str)]) -> Process {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KSYNC_")) {
            command.env_remove(name);
        }
        command.env_remove("DATABASE_URL").current_dir(&self.dir).args(words(arguments)).env(MARK, &self.id);
        command.env("KSYNC_BOOTSTRAP_SERVER", self.services.get("KSYNC_BOOTSTRAP_SERVER"));
        // Most tests of ksync-stream have no delayer, which it would look for.
        if !program.ends_with("/ksync-stream") {
            command.env("KSYNC_ZOOKEEPER", self.zookeeper());
        }
        command.env("KSYNC_SESSION_TIMEOUT", "10s");
        // On a busy machine the first message of a topic is not acknowledged at once.
        command.env("KSYNC_ACK_TIMEOUT", "15s");
        command.envs(environment.iter().copied());
        let lines = Lines::default();
        let name = Path::new(program).file_name().unwrap().to_string_lossy();
        self.said.borrow_mut().push((format!("{name} {arguments}"), lines.clone()));
        Process::start(command, lines)
    }

    /// The servers, with this world's chroot.
    pub fn zookeeper(&self) -> String {
        format!("{}/{}", self.services.get("KSYNC_ZOOKEEPER"), self.id)
    }

    /// A handler of its own that notes what it is given and then does what `body` says.
    pub fn handler(&self, body: &str) -> Handler {
        let dir = self.dir.join(format!("handler-{}", self.next()));
        fs::create_dir(&dir).unwrap();
        Handler::new(&dir, body)
    }

    /// A worker of its own that notes what it is given, and then does what `body` says of it.
    pub fn worker(&self, body: &str) -> Worker {
        let dir = self.dir.join(format!("worker-{}", self.next()));
        fs::create_dir(&dir).unwrap();
        Worker::new(&dir, body)
    }

    /// A wall clock of its own.
    pub fn clock(&self) -> Clock {
        let dir = self.dir.join(format!("clock-{}", self.next()));
        fs::create_dir(&dir).unwrap();
        Clock::new(&dir)
    }

    /// A shell script, by its path.
    pub fn script(&self, body: &str) -> String {
        let await_gate = r#"await() { while [ ! -e "$1" ]; do sleep 0.02; done; }"#;
        self.script_of(&format!("#!/bin/sh\nset -e\n{await_gate}\n{body}\n"))
    }

    /// A script in any language, by its path.
    pub fn script_of(&self, text: &str) -> String {
        let path = self.file("script");
        handler::write_script(&path, text);
        path.display().to_string()
    }

    /// A file name that no other has.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-{}", self.next()))
    }

    pub fn gate(&self) -> Gate {
        Gate(self.file("gate"))
    }

    fn next(&self) -> u32 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    /// What ZooKeeper holds for one topic, partition and name.
    pub fn seat(&self, topic: &str, partition: i32, name: &str) -> Seat {
        let client = self.client.get_or_init(|| Seat::connect(self.services.get("KSYNC_ZOOKEEPER")));
        let path = format!("/{}/kafka_sync/consumer/{topic}/{partition}/{name}", self.id);
        Seat { client: client.clone(), path }
    }

    /// How many processes there are of this world: those that it started, and their handlers.
    pub fn processes(&self) -> usize {
        left(&self.id).len()
    }

    /// Waits until it is so.
    pub fn eventually(&self, what: &str, is_so: impl FnMut() -> bool) {
        self.within(EVENTUALLY, what, is_so);
    }

    /// Waits until it is so, and fails if that takes longer than `limit`; gives how long it took.
    pub fn within(&self, limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let asked = begun.elapsed();
            if is_so() {
                return asked;
            }
            assert!(asked < limit, "not so within {limit:?}: {what}");
            pause();
        }
    }

    /// Waits until it is so, with no pause between two looks: for a moment that is soon over.
    pub fn spin(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < EVENTUALLY, "not so within {EVENTUALLY:?}: {what}");
            std::thread::yield_now();
        }
    }

    /// Checks that it stays so for `time`.
    pub fn for_a_while(&self, time: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            assert!(is_so(), "not so any more: {what}");
            pause();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Until none is left: one may just have begun another, or be about to make a file where all are deleted.
        loop {
            let left = left(&self.id);
            if left.is_empty() {
                break;
            }
            // It may have ended meanwhile.
            left.into_iter().for_each(|pid| kill_process(pid, Signal::KILL).unwrap_or_default());
            pause();
        }
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.dir).unwrap();
            return;
        }
        eprintln!("files of the test: {}", self.dir.display());
        for (command, lines) in self.said.borrow().iter() {
            eprintln!("--- {command}");
            for line in lines.lock().unwrap().iter() {
                eprintln!("    {line}");
            }
        }
    }
}

/// The processes that have this world in their environment.
fn left(id: &str) -> Vec<Pid> {
    let mark = format!("{MARK}={id}");
    let mut left = vec![];
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may end meanwhile, or be somebody else's. One that waits to be reaped has none.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            left.extend(Pid::from_raw(pid));
        }
    }
    left
}

/// Runs async code of a client library.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).block_on(future)
}

/// Lets time pass in async code.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Between two looks at something.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Whether the long forms are wanted: `scripts/test --full`.
pub fn is_full() -> bool {
    std::env::var_os("KSYNC_TEST_FULL").is_some_and(|value| value == "1")
}

fn unique(test: &str) -> String {
    format!("{test}-{:06x}", rand::random::<u32>() & 0xff_ffff)
}

/// A command line as a shell would cut it: at spaces that are not between quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c == ' ' => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
