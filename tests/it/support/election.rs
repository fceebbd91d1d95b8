//! The world of a test of the election alone, and a leader that such a test may stop and kill.

use std::fmt::Debug;
use std::io::{BufRead, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ksync::election::{Election, Lease, Position, Seat, Servers, ZooKeeper};
use ksync::record::LastRecord;
use ksync::shutdown::{Shutdown, Trigger};
use ksync::topic::{Offset, Topic, TopicId};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use zookeeper::{Client, Error};

use super::{PERSISTENT, Services, pass, remove};

/// The session timeout of all tests.
pub const T: Duration = Duration::from_secs(5);
pub const SOON: Duration = Duration::from_millis(100);
/// By then what comes at once is there, even if the machine stands still for some seconds; what the end of a session brings is
/// not.
pub const AT_ONCE: Duration = Duration::from_secs(4);

/// An empty chroot for one test, and a look at it past the code under test.
pub struct World {
    pub server: String,
    pub chroot: String,
    pub zk: Client,
    pub shutdown: Shutdown,
    pub trigger: Trigger,
}

impl World {
    pub async fn new(test: &str) -> World {
        World::on(Services::shared().get("KSYNC_ZOOKEEPER"), test).await
    }

    pub async fn on(server: &str, test: &str) -> World {
        let server = server.to_owned();
        let chroot = format!("/election-{test}");
        let zk = Client::connect(&server).await.unwrap();
        remove(&zk, &chroot).await;
        let (trigger, shutdown) = Shutdown::new();
        World { server, chroot, zk, shutdown, trigger }
    }

    pub fn election(&self) -> Election {
        self.election_through(&self.server)
    }

    pub fn election_through(&self, address: &str) -> Election {
        self.election_for(address, T)
    }

    /// With a session timeout of its own.
    pub fn election_for(&self, address: &str, session_timeout: Duration) -> Election {
        let servers: Servers = format!("{address}{}", self.chroot).parse().unwrap();
        Election::ZooKeeper(ZooKeeper::connect(&servers, session_timeout))
    }

    pub async fn lead(&self, election: &Election) -> Lease {
        within(4 * T, election.candidate(seat(0)).lead(&self.shutdown)).await.unwrap().expect("no shutdown")
    }

    pub fn path(&self, node: &str) -> String {
        format!("{}/kafka_sync/consumer/products/0/indexer/{node}", self.chroot)
    }

    pub async fn text(&self, node: &str) -> String {
        String::from_utf8(self.zk.get_data(&self.path(node)).await.unwrap().0).unwrap()
    }

    pub async fn write(&self, node: &str, data: &str) {
        self.zk.mkdir(&self.path("leader"), &PERSISTENT).await.unwrap();
        match self.zk.create(&self.path(node), data.as_bytes(), &PERSISTENT).await {
            Err(Error::NodeExists) => drop(self.zk.set_data(&self.path(node), data.as_bytes(), None).await.unwrap()),
            created => drop(created.unwrap()),
        }
    }

    pub async fn queue(&self) -> Vec<String> {
        match self.zk.list_children(&self.path("leader")).await {
            Err(Error::NoNode) => Vec::new(),
            children => children.unwrap(),
        }
    }

    pub async fn eventually(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + 4 * T;
        while !condition().await {
            assert!(Instant::now() < deadline, "not so in time: {what}");
            pass(Duration::from_millis(2)).await;
        }
    }
}

pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}"))
}

pub fn seat(partition: i32) -> Seat {
    let topic: Topic = "products".parse().unwrap();
    Seat { partition: topic.partition(partition), name: "indexer".parse().unwrap() }
}

pub fn at(offset: i64) -> Position {
    let last = LastRecord { offset: Offset(offset - 1), ts: Some(1_700_000_000_123), crc32c: 7 };
    Position { offset: Offset(offset), topic_id: TopicId(0xab), leader_epoch: Some(3), last: Some(last), skipped: None }
}

pub fn assert_between<T: PartialOrd + Debug>(value: T, low: T, high: T) {
    assert!(low <= value && value <= high, "{value:?} is not between {low:?} and {high:?}");
}

/// A process that leads and commits what it is told to, so that it can be stopped and killed.
pub struct Leader {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Leader {
    pub async fn start(world: &World) -> Leader {
        let name = format!("{}::leader_process", module_path!());
        let (_, name) = name.split_once("::").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env("LEADER_OF", format!("{}{}", world.server, world.chroot))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut leader = Leader { child, lines };
        assert_eq!(leader.says().await, "leading");
        leader
    }

    pub async fn says(&mut self) -> String {
        loop {
            let line = within(10 * T, self.lines.next_line()).await.unwrap().expect("the leader process goes on");
            if let Some((_, said)) = line.split_once("leader: ") {
                return said.to_owned();
            }
        }
    }

    pub async fn commit(&mut self, offset: i64) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{offset}\n").as_bytes()).await.unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that other tests start"]
async fn leader_process() {
    let servers: Servers = std::env::var("LEADER_OF").unwrap().parse().unwrap();
    let election = Election::ZooKeeper(ZooKeeper::connect(&servers, T));
    let (_trigger, shutdown) = Shutdown::new();
    let lease = election.candidate(seat(0)).lead(&shutdown).await.unwrap().unwrap();
    let say = |text: String| writeln!(std::io::stdout(), "leader: {text}").unwrap();
    say("leading".to_owned());
    for line in std::io::stdin().lock().lines() {
        let offset: i64 = line.unwrap().parse().unwrap();
        let held = lease.is_held();
        match lease.commit(at(offset)).await {
            Ok(()) => say(format!("held={held} committed")),
            Err(lost) => say(format!("held={held} {lost}")),
        }
    }
}
