//! Servers that are known by a name: one that nobody knows yet, or that comes to stand for another address.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::consume::ids;
use crate::support::{End, Passage, Process, STALL, Way, World, block_on, is_full};

/// As long as the address of a broker, in whose place it may be told.
const NAME: &str = "host.test";

/// What the processes that are started with it know of names.
struct Hosts {
    file: PathBuf,
    prepare: String,
}

impl Hosts {
    /// The name is unknown at first.
    fn new(world: &World) -> Hosts {
        let (file, order) = (world.file("hosts"), world.file("nsswitch"));
        // What is not in the file is unknown at once: no name server is asked.
        fs::write(&order, "hosts: files\n").unwrap();
        let mount = |file: &PathBuf, place: &str| format!("mount --bind {} {place}", file.display());
        let prepare = [mount(&file, "/etc/hosts"), mount(&order, "/etc/nsswitch.conf")].join("; ");
        let hosts = Hosts { file, prepare };
        hosts.set(None);
        hosts
    }

    /// The address that the name stands for from now on.
    fn set(&self, address: Option<&str>) {
        let line = address.map_or(String::new(), |address| format!("{address} {NAME}\n"));
        // In place: it is this very file that is mounted.
        fs::write(&self.file, format!("127.0.0.1 localhost\n{line}")).unwrap();
    }

    fn consume(&self, world: &World, arguments: &str, (variable, servers): (&str, &str)) -> Process {
        world.consume_apart(("--mount", &self.prepare), arguments, &[(variable, servers)])
    }
}

/// A way to a server by one of this machine's addresses.
struct Door {
    accepted: Arc<AtomicUsize>,
    way: JoinHandle<()>,
}

impl Door {
    fn new(listener: TcpListener, server: &str) -> Door {
        let accepted = Arc::<AtomicUsize>::default();
        let (count, server) = (accepted.clone(), server.to_owned());
        let way = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let server = server.clone();
                connections.spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Door { accepted, way }
    }

    fn is_used(&self) -> bool {
        self.accepted.load(Ordering::Relaxed) > 0
    }

    /// Refuses new connections, and ends all that there are.
    fn close(&self) {
        self.way.abort();
    }
}

/// Ways to the server by 127.0.0.1, 127.0.0.2 and 127.0.0.3, and the port that they have in common.
fn doors(server: &str) -> ([Door; 3], u16) {
    block_on(async {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let third = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
        ([first, second, third].map(|listener| Door::new(listener, server)), port)
    })
}

#[test]
fn a_process_waits_for_a_name_that_is_unknown_at_its_start_and_goes_on_once_it_is_known() {
    let world = World::new("unknown-name");
    let (products, handler, hosts) = (world.topic("products", 1), world.handler(""), Hosts::new(&world));
    world.kafka.produce(&products, ids(0..3));
    let named = |server: &str| format!("{NAME}:{}", server.rsplit_once(':').unwrap().1);
    let start = |name: &str, variable: &str, servers: &str| {
        hosts.consume(&world, &format!("-t {products} -n {name} -- {handler}"), (variable, servers))
    };
    let kafka = named(world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    let zookeeper = format!("{}/{}", named(world.services.get("KSYNC_ZOOKEEPER")), world.id);
    // Only to begin with: later librdkafka goes by what the brokers tell, which is an address here.
    let mut of_kafka = start("of-kafka", "KSYNC_BOOTSTRAP_SERVER", &kafka);
    let mut of_zookeeper = start("of-zookeeper", "KSYNC_ZOOKEEPER", &zookeeper);
    world.eventually("both say what they wait for", || {
        let asks = format!("cannot ask Kafka at {kafka} about topic {products}: ");
        let reaches = format!("cannot reach ZooKeeper at {zookeeper}; trying again");
        of_kafka.says(&["warn: ", &asks, "; trying again"]) && of_zookeeper.says(&["warn: ", &reaches])
    });
    assert_eq!(handler.runs().len(), 0);
    hosts.set(Some("127.0.0.1"));
    let offset = |name: &str| world.seat(&products, 0, name).offset();
    world.eventually("all is done", || ["of-kafka", "of-zookeeper"].map(offset) == [Some(3); 2]);
    assert_eq!(handler.payloads().len(), 6);
    for process in [&mut of_kafka, &mut of_zookeeper] {
        process.signal(Signal::TERM);
        assert_eq!((process.wait(), process.log_of("error")), (End::Status(0), vec![]));
    }
}

#[test]
fn a_leader_finds_its_zookeeper_at_the_address_that_the_name_has_come_to_stand_for() {
    let world = World::new("moved-name");
    let (products, handler, hosts) = (world.topic("products", 1), world.handler(""), Hosts::new(&world));
    let ([first, second, third], port) = doors(world.services.get("KSYNC_ZOOKEEPER"));
    let servers = format!("{NAME}:{port}/{}", world.id);
    hosts.set(Some("127.0.0.1"));
    let arguments = format!("-t {products} -n indexer -- {handler}");
    let mut consumer = hosts.consume(&world, &arguments, ("KSYNC_ZOOKEEPER", &servers));
    let seat = world.seat(&products, 0, "indexer");
    let works = |id: u32| {
        world.kafka.produce(&products, ids(id..id + 1));
        world.eventually("it is done", || seat.offset() == Some(i64::from(id) + 1));
    };
    works(0);

    hosts.set(Some("127.0.0.2"));
    first.close();
    world.eventually("it comes to the new address", || second.is_used());
    works(1);

    // For longer than its session lives.
    hosts.set(None);
    second.close();
    let lost = format!("cannot reach ZooKeeper at {servers}; trying again");
    world.eventually("it has no server", || consumer.says(&["warn: ", &lost]));
    hosts.set(Some("127.0.0.3"));
    works(2);
    assert!(third.is_used() && consumer.says(&["leading from offset 2"]), "{:?}", consumer.log());

    // What was under way when its lease ended may have come again.
    let mut done = handler.payloads();
    done.dedup();
    assert_eq!(done, [0, 1, 2].map(|id| format!("{{\"id\":{id}}}")));
    consumer.signal(Signal::TERM);
    assert_eq!((consumer.wait(), consumer.log_of("error")), (End::Status(0), vec![]));
}

#[test]
fn a_leader_finds_its_kafka_at_the_address_that_the_name_has_come_to_stand_for() {
    let world = World::new("moved-kafka");
    let (products, handler, hosts) = (world.topic("products", 1), world.handler(""), Hosts::new(&world));
    let way = Way::by_name(NAME, world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    hosts.set(Some("127.0.0.1"));
    let arguments = format!("-t {products} -n indexer -- {handler}");
    let mut consumer = hosts.consume(&world, &arguments, ("KSYNC_BOOTSTRAP_SERVER", &way.bootstrap));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..1));
    world.eventually("it works", || seat.offset() == Some(1));

    hosts.set(Some("127.0.0.2"));
    way.set(1, Passage::Closed);
    world.kafka.produce(&products, ids(1..2));
    let limit = if is_full() { STALL } else { 3 * STALL };
    world.within(limit, "it works at the new address", || seat.offset() == Some(2));

    hosts.set(None);
    way.set(2, Passage::Closed);
    world.kafka.produce(&products, ids(2..3));
    world.for_a_while(Duration::from_secs(2), "it has no broker", || seat.offset() == Some(2));
    let told = format!("cannot reach Kafka at {}: ", way.bootstrap);
    world.eventually("it is told", || consumer.says(&["warn: ", &told]));
    hosts.set(Some("127.0.0.3"));
    world.within(limit, "it works at the last address", || seat.offset() == Some(3));

    assert_eq!(handler.payloads(), [0, 1, 2].map(|id| format!("{{\"id\":{id}}}")));
    assert!(!consumer.says(&["no longer leading"]), "{:?}", consumer.log());
    consumer.signal(Signal::TERM);
    assert_eq!((consumer.wait(), consumer.log_of("error")), (End::Status(0), vec![]));
}
