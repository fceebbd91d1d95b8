//! Servers of a ZooKeeper of three that are killed while records flow: the one that our leader is connected to, ZooKeeper's own
//! leader, two of them, all.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use crate::consume::ids;
use crate::ensemble::told;
use crate::support::{End, Handler, Process, Seat, Services, World, is_full, reigns};

/// The session timeout.
const T: Duration = Duration::from_secs(4);
const BATCH: usize = 10;
/// How many records come around each fault, and in which time.
const RECORDS: u32 = 300;
const FLOW: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    OwnServer,
    Leader,
    Quorum,
    All,
}

const FAULTS: [Fault; 4] = [Fault::OwnServer, Fault::Leader, Fault::Quorum, Fault::All];

impl Fault {
    /// The servers that it hits: 0, 1 and 2.
    fn victims(self, servers: &[&str], seat: &Seat) -> Vec<usize> {
        let leader = leader(servers);
        match self {
            Fault::OwnServer => {
                let candidate = seat.candidates().remove(0);
                let (_, stat) = seat.node(&format!("leader/{candidate}")).unwrap();
                let session = format!("sid=0x{:x},", stat.ephemeral_owner);
                let own = servers.iter().position(|server| told(server, "cons").contains(&session));
                let own = own.expect("it is connected");
                assert_ne!(own, leader, "it is at a follower");
                vec![own]
            }
            Fault::Leader => vec![leader],
            Fault::Quorum => vec![leader, (leader + 1) % servers.len()],
            Fault::All => (0..servers.len()).collect(),
        }
    }

    /// For how long nothing can be committed.
    fn outage(self) -> Option<Duration> {
        match self {
            Fault::OwnServer | Fault::Leader => None,
            Fault::Quorum if is_full() => Some(Duration::from_secs(600)),
            Fault::All if is_full() => Some(3 * T),
            Fault::Quorum | Fault::All => Some(T),
        }
    }
}

/// Which of the servers leads the others.
fn leader(servers: &[&str]) -> usize {
    servers.iter().position(|server| told(server, "srvr").contains("Mode: leader")).expect("one leads")
}

/// How many different records are done.
fn done(handler: &Handler) -> usize {
    handler.payloads().into_iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn whichever_servers_of_zookeeper_are_killed_all_is_done_and_nobody_leads_before_the_old_leader_is_gone() {
    let (world, since) = (World::new("servers-gone"), SystemTime::now());
    let ensemble = Services::ensemble(&world.id);
    let address = ensemble.get("KSYNC_ZOOKEEPER");
    let servers: Vec<&str> = address.split(',').collect();
    let products = world.topic("products", 1);
    let handler = world.handler("sleep 0.02");
    // They know those alone that follow at first: then the first fault is not the second one, too.
    let (mut followers, first) = (servers.clone(), leader(&servers));
    followers.remove(first);
    let zookeeper = format!("{}/{}", followers.join(","), world.id);
    let options = format!("-n indexer --zookeeper {zookeeper} --session-timeout 4s --batch-size {BATCH}");
    let consumers = [0, 1].map(|_| world.consume(&format!("-t {products} {options} -- {handler}")));
    let stops = || consumers.iter().flat_map(Process::log).filter(|line| line.contains("no longer leading: ")).count();
    // By sessions of its own, which do not end with the servers.
    let seat = || Seat { client: Seat::connect(address), ..world.seat(&products, 0, "indexer") };
    let mut written = 0;
    for fault in FAULTS {
        world.eventually("one leads, the other stands by", || seat().candidates().len() == 2);
        let victims = fault.victims(&servers, &seat());
        let pids: Vec<Pid> = victims.iter().map(|server| ensemble.pid(&format!("zookeeper-{}", server + 1))).collect();
        let flow = world.kafka.flow(&products, ids(written..written + RECORDS).collect(), FLOW);
        world.eventually("records flow", || done(&handler) > written as usize);
        written += RECORDS;
        let before = stops();
        pids.iter().for_each(|pid| kill_process(*pid, Signal::KILL).unwrap());
        if let Some(outage) = fault.outage() {
            world.eventually("nobody leads", || stops() > before);
            let runs = handler.runs().len();
            world.for_a_while(outage, "no handler runs", || handler.runs().len() == runs);
        } else {
            world.eventually("two servers are enough", || done(&handler) == written as usize);
        }
        ensemble.start_again("zookeeper");
        flow.join().unwrap();
        world.eventually(&format!("all is done after {fault:?}"), || {
            done(&handler) == written as usize && seat().offset() == Some(i64::from(written))
        });
    }
    // Each time that one stops leading, a batch may be done that was not committed.
    let all = handler.payloads().len();
    assert!(all <= written as usize + BATCH * stops(), "{all} were done, and leaders stopped {} times", stops());
    let reigns = reigns(&ensemble, since, &seat());
    assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), Some(i64::from(written)));
    for mut consumer in consumers {
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
    }
}

#[test]
fn a_server_that_serves_for_reading_only_is_never_taken_for_zookeeper() {
    let world = World::new("reading-only");
    let ensemble = Services::ensemble_for_readers(&world.id);
    let address = ensemble.get("KSYNC_ZOOKEEPER");
    let last = address.rsplit(',').next().unwrap();
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let options = format!("-t {products} -n indexer --zookeeper {address}/{} --session-timeout 4s", world.id);
    let consumer = world.consume(&format!("{options} -- {handler}"));
    world.kafka.produce(&products, ids(0..5));
    world.eventually("the first are done", || done(&handler) == 5);
    let others = [1, 2].map(|server| ensemble.pid(&format!("zookeeper-{server}")));
    others.iter().for_each(|pid| kill_process(*pid, Signal::KILL).unwrap());
    world.eventually("the last one serves readers", || told(last, "srvr").contains("Mode: read-only"));
    world.eventually("nobody leads", || consumer.says(&["no longer leading: "]));
    world.kafka.produce(&products, ids(5..10));
    let late = world.consume(&format!("{options} -- {handler}"));
    world.eventually("another process waits", || {
        late.ask();
        late.says(&["ZooKeeper is not reached"])
    });
    let runs = handler.runs().len();
    world.for_a_while(T + T / 2, "nobody is connected, no handler runs", || {
        handler.runs().len() == runs && !told(last, "cons").contains("sid=0x")
    });
    assert!(!late.says(&["leading from offset"]), "{:?}", late.log());
    ensemble.start_again("zookeeper");
    world.eventually("all is done", || done(&handler) == 10);
}
