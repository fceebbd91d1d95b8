//! Leadership and fenced offsets against a real ZooKeeper; a proxy makes the faults.

use std::fmt::Debug;
use std::io::{BufRead, Write};
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ksync::election::{Election, Lease, Lost, Position, Seat, Servers, StoredOffset, StoredState, Term, ZooKeeper};
use ksync::record::LastRecord;
use ksync::shutdown::{Shutdown, Trigger};
use ksync::topic::{Offset, Topic, TopicId};
use memchr::memmem;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use zookeeper::{Acls, Client, CreateMode, Error};

use crate::support::{EPHEMERAL_SEQUENTIAL, PERSISTENT, Services, pass, remove};

/// The session timeout of all tests.
pub const T: Duration = Duration::from_secs(2);
pub const SOON: Duration = Duration::from_millis(100);

/// An empty chroot for one test, and a look at it past the code under test.
pub struct World {
    pub server: String,
    chroot: String,
    pub zk: Client,
    pub shutdown: Shutdown,
    trigger: Trigger,
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

    fn election(&self) -> Election {
        self.election_through(&self.server)
    }

    pub fn election_through(&self, address: &str) -> Election {
        let servers: Servers = format!("{address}{}", self.chroot).parse().unwrap();
        Election::ZooKeeper(ZooKeeper::connect(&servers, T).unwrap())
    }

    async fn lead(&self, election: &Election) -> Lease {
        within(4 * T, election.candidate(seat(0)).lead(&self.shutdown)).await.unwrap().expect("no shutdown")
    }

    fn path(&self, node: &str) -> String {
        format!("{}/kafka_sync/consumer/products/0/indexer/{node}", self.chroot)
    }

    async fn text(&self, node: &str) -> String {
        String::from_utf8(self.zk.get_data(&self.path(node)).await.unwrap().0).unwrap()
    }

    async fn write(&self, node: &str, data: &str) {
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

/// A way to the server that can be disturbed.
pub struct Proxy {
    pub address: String,
    mode: Arc<watch::Sender<Mode>>,
    accepted: watch::Receiver<usize>,
    requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// Bytes are held back in both directions, connections stay.
    Frozen,
    /// Requests arrive, what the server sends is lost.
    Deaf,
    /// Open, until a packet with this text in it and so many after it have come: then deaf.
    DeafAfter(&'static str, usize),
    /// Open, until a packet with this text in it comes: then frozen, with that packet.
    FrozenAt(&'static str),
    /// Whatever passes takes so long, in each direction.
    Slow(Duration),
    /// Connections are closed, old and new.
    Closed,
}

impl Proxy {
    pub async fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mode, modes) = watch::channel(Mode::Open);
        let (counter, accepted) = watch::channel(0);
        let (mode, server, requests) = (Arc::new(mode), server.to_owned(), Arc::<AtomicUsize>::default());
        // With the proxy goes the mode, and with that all connections.
        let (count, weak) = (requests.clone(), Arc::downgrade(&mode));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.send_modify(|count| *count += 1);
                let (count, weak, mut after) = (count.clone(), weak.clone(), None);
                let noted = move |packet: &[u8]| {
                    count.fetch_add(1, Ordering::Relaxed);
                    let Some(mode) = weak.upgrade() else { return };
                    let (text, further, then) = match *mode.borrow() {
                        Mode::DeafAfter(text, further) => (text, further, Mode::Deaf),
                        Mode::FrozenAt(text) => (text, 0, Mode::Frozen),
                        _ => return,
                    };
                    after = match after {
                        None => memmem::find(packet, text.as_bytes()).map(|_| 0),
                        Some(packets) => Some(packets + 1),
                    };
                    if after == Some(further) {
                        mode.send_replace(then);
                    }
                };
                tokio::spawn(Proxy::carry(client, server.clone(), modes.clone(), noted));
            }
        });
        Proxy { address, mode, accepted, requests }
    }

    async fn carry(
        client: TcpStream,
        server: String,
        mut modes: watch::Receiver<Mode>,
        noted: impl FnMut(&[u8]) + Send + 'static,
    ) {
        match modes.wait_for(|mode| *mode != Mode::Frozen).await.map(|mode| *mode) {
            Ok(Mode::Closed | Mode::Frozen) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(server) = TcpStream::connect(server).await else {
            return;
        };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let mut replies = modes.clone();
        let mut requests = modes.clone();
        tokio::select! {
            () = pump(&mut from_client, &mut to_server, &mut requests, (false, noted)) => {}
            () = pump(&mut from_server, &mut to_client, &mut replies, (true, |_| ())) => {}
            _ = modes.wait_for(|mode| *mode == Mode::Closed) => {}
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn is(&self, mode: Mode) -> bool {
        *self.mode.borrow() == mode
    }

    /// How many packets have come from clients.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends all connections; new ones work.
    async fn cut(&self) {
        self.set(Mode::Closed);
        // The one that is left is the listener's.
        while self.mode.receiver_count() > 1 {
            pass(Duration::from_millis(1)).await;
        }
        self.set(Mode::Open);
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    modes: &mut watch::Receiver<Mode>,
    (replies, mut noted): (bool, impl FnMut(&[u8])),
) {
    let (arrived, mut on_its_way) = mpsc::unbounded_channel();
    let latencies = modes.clone();
    let read = async move {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            noted(&buffer[..length]);
            let latency = match *latencies.borrow() {
                Mode::Slow(latency) => latency,
                _ => Duration::ZERO,
            };
            if arrived.send((tokio::time::Instant::now() + latency, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = on_its_way.recv().await {
            sleep_until(due).await;
            let Ok(mode) = modes.wait_for(|mode| *mode != Mode::Frozen).await.map(|mode| *mode) else {
                return;
            };
            if !(replies && mode == Mode::Deaf) && to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// A process that leads and commits what it is told to, so that it can be stopped and killed.
struct Leader {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Leader {
    async fn start(world: &World) -> Leader {
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

    async fn says(&mut self) -> String {
        loop {
            let line = within(10 * T, self.lines.next_line()).await.unwrap().expect("the leader process goes on");
            if let Some((_, said)) = line.split_once("leader: ") {
                return said.to_owned();
            }
        }
    }

    async fn commit(&mut self, offset: i64) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{offset}\n").as_bytes()).await.unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that other tests start"]
async fn leader_process() {
    let servers: Servers = std::env::var("LEADER_OF").unwrap().parse().unwrap();
    let election = Election::ZooKeeper(ZooKeeper::connect(&servers, T).unwrap());
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

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_at_once_when_the_leader_releases() {
    let world = World::new("release").await;
    let (first, second) = (world.election(), world.election());
    let lease = world.lead(&first).await;
    let old_term = lease.term();
    let mut candidacy = second.candidate(seat(0));
    let shutdown = world.shutdown.clone();
    let standby = tokio::spawn(async move { (candidacy.lead(&shutdown).await.unwrap().unwrap(), Instant::now()) });
    world.eventually("two candidates", async || world.queue().await.len() == 2).await;
    assert!(!standby.is_finished());

    let released = Instant::now();
    lease.release().await;
    let (lease, led) = within(T, standby).await.unwrap();

    assert!(led - released < SOON);
    assert!(lease.is_held());
    assert!(lease.term() > old_term);
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_at_once_when_the_leader_drops_its_lease_or_closes() {
    let world = World::new("drop").await;
    let (first, second) = (world.election(), world.election());
    for close in [false, true] {
        let lease = world.lead(&first).await;
        let mut candidacy = second.candidate(seat(0));
        let (left, led) = tokio::join!(
            async {
                world.eventually("two candidates", async || world.queue().await.len() == 2).await;
                let left = Instant::now();
                if close {
                    within(SOON, first.clone().close()).await;
                    assert!(!lease.is_held());
                    assert_eq!(lease.lost().await, Lost::Closed);
                } else {
                    drop(lease);
                }
                left
            },
            async {
                let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
                let led = Instant::now();
                lease.release().await;
                led
            }
        );
        assert!(led - left < SOON);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leads_after_the_session_timeout_when_the_leader_is_killed() {
    let world = World::new("kill").await;
    let leader = Leader::start(&world).await;
    let election = world.election();
    let killed = Instant::now();
    leader.signal(Signal::KILL);
    let lease = world.lead(&election).await;
    assert_between(killed.elapsed(), T / 2, T + Duration::from_secs(2));
    assert!(lease.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_and_wakes_cannot_commit() {
    let world = World::new("stop").await;
    let mut leader = Leader::start(&world).await;
    leader.commit(100).await;
    assert_eq!(leader.says().await, "held=true committed");
    let election = world.election();
    leader.signal(Signal::STOP);
    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(100)));
    within(T, lease.commit(at(200))).await.unwrap();

    leader.commit(101).await;
    leader.signal(Signal::CONT);

    let said = leader.says().await;
    assert!(said.starts_with("held=false "), "{said}");
    assert_eq!(world.text("offset").await, "200");
    within(T, lease.commit(at(201))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_candidate_is_deleted_stops() {
    let world = World::new("deleted").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    let own = world.queue().await.remove(0);
    let deleted = Instant::now();
    world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
    assert_eq!(within(T, lease.lost()).await, Lost::CandidateGone);
    assert!(deleted.elapsed() < T / 10 + SOON);
    assert!(!lease.is_held());
    assert_eq!(lease.grace(), Duration::ZERO);
    assert_eq!(lease.commit(at(1)).await, Err(Lost::CandidateGone));
    assert_eq!(world.text("offset").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_candidate_is_noticed_while_another_lease_of_its_session_writes_for_both() {
    let world = World::new("deleted-beside").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    let other = within(T, election.candidate(seat(1)).lead(&world.shutdown)).await.unwrap().expect("no shutdown");
    let own = world.queue().await.remove(0);
    let commits = async {
        for offset in 0.. {
            other.commit(at(offset)).await.unwrap();
            pass(T / 40).await;
        }
    };
    let deleted = async {
        pass(T).await;
        world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
        let deleted = Instant::now();
        assert_eq!(within(T, lease.lost()).await, Lost::CandidateGone);
        assert!(deleted.elapsed() < SOON);
    };
    tokio::select! {
        () = commits => {}
        () = deleted => {}
    }
    assert!(other.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_right_after_the_deletion_is_refused() {
    let world = World::new("deleted-commit").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    let own = world.queue().await.remove(0);
    world.zk.delete(&world.path(&format!("leader/{own}")), None).await.unwrap();
    assert_eq!(lease.commit(at(1)).await, Err(Lost::CandidateGone));
    assert_eq!(world.text("offset").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_refused_when_somebody_else_wrote_the_offset() {
    let world = World::new("moved").await;
    let election = world.election();
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(10)).await.unwrap();
    world.write("offset", "4").await;

    assert_eq!(lease.commit(at(11)).await, Err(Lost::OffsetMoved));
    assert!(!lease.is_held());
    assert_eq!(lease.commit(at(12)).await, Err(Lost::OffsetMoved));

    assert_eq!(world.text("offset").await, "4");
    let old_term = lease.term();
    drop(lease);
    let lease = within(T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(4)));
    let StoredState::Kept(state) = &lease.stored().state else { panic!("{:?}", lease.stored()) };
    assert_eq!((&state.position, state.term), (&at(10), old_term));
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_writes_offset_and_state_and_the_next_leader_finds_them() {
    let world = World::new("commit").await;
    let election = world.election();
    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::None);
    assert_eq!(lease.stored().state, StoredState::None);
    lease.commit(at(4711)).await.unwrap();
    let Term(term) = lease.term();
    assert_eq!(world.text("offset").await, "4711");
    assert_eq!(
        world.text("state").await,
        format!(
            "{{\"v\":1,\"offset\":4711,\"topic_id\":\"000000000000000000000000000000ab\",\"leader_epoch\":3,\
             \"last\":{{\"offset\":4710,\"ts\":1700000000123,\"crc32c\":7}},\"term\":{term}}}"
        )
    );
    let own = world.queue().await.remove(0);
    let (data, stat) = world.zk.get_data(&world.path(&format!("leader/{own}"))).await.unwrap();
    assert_eq!(data, std::fs::read("/proc/sys/kernel/hostname").unwrap());
    assert_eq!(stat.czxid, term);
    let before = world.zk.check_stat(&world.path("offset")).await.unwrap().unwrap().version;
    lease.release().await;

    let lease = world.lead(&election).await;
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(4711)));
    let StoredState::Kept(state) = &lease.stored().state else { panic!("{:?}", lease.stored()) };
    assert_eq!((&state.position, state.term), (&at(4711), Term(term)));
    let after = world.zk.check_stat(&world.path("offset")).await.unwrap().unwrap().version;
    assert_eq!(after, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_of_the_gem_and_of_people_are_read() {
    let world = World::new("gem-offset").await;
    let election = world.election();
    for (data, offset) in [
        ("4711", StoredOffset::At(Offset(4711))),
        ("", StoredOffset::None),
        ("abc", StoredOffset::Garbage("abc".to_owned())),
    ] {
        world.write("offset", data).await;
        let lease = world.lead(&election).await;
        assert_eq!(lease.stored().offset, offset);
        assert_eq!(world.text("offset").await, data);
        lease.release().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_stops_at_four_tenths_of_the_timeout_when_the_server_goes_silent() {
    let world = World::new("silent").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    proxy.set(Mode::Frozen);
    let frozen = Instant::now();
    let lost = within(T, lease.lost()).await;
    let grace = lease.grace();
    assert_between(frozen.elapsed(), T * 3 / 10 - SOON, T * 4 / 10 + SOON);
    assert!(matches!(lost, Lost::Unanswered(_) | Lost::Disconnected), "{lost:?}");
    assert!(grace <= T / 10, "{grace:?}");
    assert!(!lease.is_held());
    assert_eq!(lease.commit(at(1)).await, Err(lost));

    proxy.set(Mode::Open);
    drop(lease);
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::None);
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_an_unanswered_heartbeat_fails_with_the_lease() {
    let world = World::new("behind").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let lease = world.lead(&election).await;
    proxy.set(Mode::Frozen);
    let frozen = Instant::now();
    // By then a heartbeat is under way.
    pass(T / 5).await;
    let lost = within(T, lease.commit(at(1))).await.unwrap_err();
    assert!(frozen.elapsed() < T * 4 / 10 + SOON, "{:?}", frozen.elapsed());
    assert_eq!(lost, lease.lost().await);
    proxy.set(Mode::Open);
    drop(lease);
    world.eventually("the candidate is withdrawn", async || world.queue().await.is_empty()).await;
    // Only now it is known whether it counts: it was sent, behind the heartbeat and before the withdrawal.
    assert_eq!(world.text("offset").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_connection_breaks_leads_again_with_a_new_term() {
    let world = World::new("cut").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    let cut = Instant::now();
    proxy.set(Mode::Closed);
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    let noticed = cut.elapsed();
    assert!(noticed < SOON, "{noticed:?}");
    proxy.set(Mode::Open);
    let term = lease.term();
    drop(lease);
    let next = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert!(next.term() > term);
    assert_eq!(world.queue().await.len(), 1);
}

/// Its handler may still be at work: then nobody else may lead, though the session lives and the candidate could be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_lost_lets_nobody_else_lead_before_it_is_dropped() {
    let world = World::new("lost-and-held").await;
    let proxy = Proxy::to(&world.server).await;
    let (election, another) = (world.election_through(&proxy.address), world.election());
    let lease = world.lead(&election).await;
    let mut standby = another.candidate(seat(0));
    let mut next = pin!(standby.lead(&world.shutdown));
    proxy.cut().await;
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    assert!(timeout(2 * T, &mut next).await.is_err(), "a second one leads");
    assert_eq!(lease.commit(at(5)).await, Err(Lost::Disconnected));
    drop(lease);
    let next = within(SOON, next).await.unwrap().unwrap();
    assert_eq!(next.stored().offset, StoredOffset::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_leads_again_after_an_outage_longer_than_the_session() {
    let world = World::new("outage").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(5)).await.unwrap();
    proxy.set(Mode::Closed);
    assert_eq!(within(T, lease.lost()).await, Lost::Disconnected);
    world.eventually("the session has ended", async || world.queue().await.is_empty()).await;
    // Until the client itself has given the session up.
    pass(T).await;
    proxy.set(Mode::Open);
    drop(lease);
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_the_candidates_making_leaves_one_candidate() {
    let world = World::new("lost-create").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    world.lead(&election).await.release().await;
    // What comes before the making has its answer.
    proxy.set(Mode::DeafAfter("/leader/", 0));
    let (lease, ()) = tokio::join!(world.lead(&election), async {
        world.eventually("the candidate is made", async || world.queue().await.len() == 1).await;
        proxy.cut().await;
    });
    assert_eq!(world.queue().await.len(), 1);
    let own = world.queue().await.remove(0);
    let stat = world.zk.check_stat(&world.path(&format!("leader/{own}"))).await.unwrap().unwrap();
    assert_eq!(lease.term(), Term(stat.czxid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_a_commit_ends_the_lease_and_the_next_one_knows() {
    let world = World::new("lost-commit").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut candidacy = election.candidate(seat(0));
    let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
    lease.commit(at(1)).await.unwrap();
    proxy.set(Mode::Deaf);
    let lost = within(T, lease.commit(at(2))).await.unwrap_err();
    assert!(matches!(lost, Lost::Unanswered(_) | Lost::Disconnected), "{lost:?}");
    assert_eq!(world.text("offset").await, "2");
    proxy.cut().await;
    drop(lease);
    let lease = within(4 * T, candidacy.lead(&world.shutdown)).await.unwrap().unwrap();
    assert_eq!(lease.stored().offset, StoredOffset::At(Offset(2)));
    assert_eq!(world.queue().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_of_the_gem_is_waited_for_and_a_stranger_is_passed_over() {
    let world = World::new("gem").await;
    world.write("leader/stranger", "").await;
    let prefix = world.path("leader/0123456789abcdef0123456789abcdef_");
    let (_, number) = world.zk.create(&prefix, b"web1\n", &EPHEMERAL_SEQUENTIAL).await.unwrap();
    let election = world.election();
    let mut candidacy = election.candidate(seat(0));
    let (gone, led) = tokio::join!(
        async {
            world.eventually("both queue", async || world.queue().await.len() == 3).await;
            // What the gem's own heartbeats would be: it must not wake the one behind it for good.
            world.zk.set_data(&format!("{prefix}{number}"), b"web1\n", None).await.unwrap();
            world.zk.delete(&format!("{prefix}{number}"), None).await.unwrap();
            Instant::now()
        },
        async {
            let lease = candidacy.lead(&world.shutdown).await.unwrap().unwrap();
            (Instant::now(), lease)
        }
    );
    assert!(led.0.saturating_duration_since(gone) < SOON);
    assert!(led.1.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_seats_share_one_session() {
    let world = World::new("seats").await;
    let proxy = Proxy::to(&world.server).await;
    let election = world.election_through(&proxy.address);
    let mut waiting = Vec::new();
    for partition in 0..64 {
        let (election, shutdown) = (election.clone(), world.shutdown.clone());
        waiting.push(tokio::spawn(async move { election.candidate(seat(partition)).lead(&shutdown).await }));
    }
    let mut leases = Vec::new();
    for lease in waiting {
        leases.push(within(4 * T, lease).await.unwrap().unwrap().unwrap());
    }
    for (offset, lease) in (1..).zip(&leases) {
        lease.commit(at(offset)).await.unwrap();
    }
    pass(2 * T).await;
    assert!(leases.iter().all(Lease::is_held));
    assert_eq!(*proxy.accepted.borrow(), 1);
    let mut heartbeats = 0;
    for partition in 0..64 {
        let queue = format!("{}/kafka_sync/consumer/products/{partition}/indexer/leader", world.chroot);
        let own = world.zk.list_children(&queue).await.unwrap().remove(0);
        heartbeats += world.zk.get_data(&format!("{queue}/{own}")).await.unwrap().1.version;
    }
    // One by each would be 64 in each tenth of T.
    assert!((15..100).contains(&heartbeats), "{heartbeats} heartbeats in 2 T");
    let seats = election.candidates(&"products".parse().unwrap()).await.unwrap();
    assert_eq!(seats, (0..64).map(|partition| (seat(partition), 1)).collect::<Vec<_>>());
    let closing = Instant::now();
    election.close().await;
    assert!(closing.elapsed() < Duration::from_secs(1));
    assert_eq!(world.queue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_withdraws_the_candidate() {
    let world = World::new("cancel").await;
    let (first, second) = (world.election(), world.election());
    let lease = world.lead(&first).await;
    let mut candidacy = second.candidate(seat(0));
    for _ in 0..3 {
        tokio::select! {
            _ = candidacy.lead(&world.shutdown) => panic!("it leads"),
            () = world.eventually("two candidates", async || world.queue().await.len() == 2) => {}
        }
    }
    world.eventually("one candidate", async || world.queue().await.len() == 1).await;
    assert!(lease.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_the_wait_at_once() {
    let world = World::new("shutdown").await;
    let nowhere = world.election_through("127.0.0.1:1");
    let (first, second) = (world.election(), world.election());
    let _lease = world.lead(&first).await;
    let (mut away, mut standby) = (nowhere.candidate(seat(0)), second.candidate(seat(0)));
    let (waits, ()) =
        tokio::join!(async { tokio::join!(away.lead(&world.shutdown), standby.lead(&world.shutdown)) }, async {
            world.eventually("two candidates", async || world.queue().await.len() == 2).await;
            world.trigger.request();
        });
    assert!(waits.0.unwrap().is_none());
    assert!(waits.1.unwrap().is_none());
    within(SOON, nowhere.close()).await;
    world.eventually("one candidate", async || world.queue().await.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_an_error() {
    let world = World::new("acl").await;
    let read_only = CreateMode::Persistent.with_acls(Acls::anyone_read());
    world.zk.create(&world.chroot, b"", &PERSISTENT).await.unwrap();
    world.zk.create(&format!("{}/kafka_sync", world.chroot), b"", &read_only).await.unwrap();
    let election = world.election();
    let refused = within(T, election.candidate(seat(0)).lead(&world.shutdown)).await.unwrap_err();
    assert_eq!(format!("{refused:#}"), "cannot queue for products/0 as indexer: ZooKeeper refuses it: not authorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_delay_is_refused_while_its_delayer_is_alive() {
    let world = World::new("delay").await;
    let (first, second) = (world.election(), world.election());
    let topic: Topic = "products-delay".parse().unwrap();
    let seat = Seat { partition: topic.partition(0), name: "delayer".parse().unwrap() };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    assert_eq!(first.delay_of(&topic).await.unwrap(), None);
    let now = first.declare_delay(&seat, minutes(5)).await.unwrap();
    assert!(now.elapsed().unwrap() < Duration::from_secs(5), "the server's time is {now:?}");
    let lease = first.candidate(seat.clone()).lead(&world.shutdown).await.unwrap().unwrap();
    second.declare_delay(&seat, minutes(5)).await.unwrap();
    first.declare_delay(&seat, minutes(6)).await.unwrap();

    let refused = second.declare_delay(&seat, minutes(1)).await.unwrap_err().to_string();

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim_end();
    assert_eq!(
        refused,
        format!(
            "cannot delay products-delay/0 by 60s on {host}: a delayer is at work on {host} that delays it by 360s; \
             give both the same --delay"
        )
    );
    assert_eq!(second.delay_of(&topic).await.unwrap(), Some(minutes(6)));
    lease.release().await;
    second.declare_delay(&seat, minutes(1)).await.unwrap();
    assert_eq!(first.delay_of(&topic).await.unwrap(), Some(minutes(1)));
}
