//! Settings that are changed while a daemon leads: told once, and nothing ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ksync::election::{Election, ZooKeeper};
use ksync::exit::Exit;
use ksync::kafka::{self, Admin, Check, Cluster, Hazard, Pair, Reader};
use ksync::lead::{Board, End as WorkEnd, Held, Leading, Lookout, Work};
use ksync::shutdown::Shutdown;
use ksync::topic::{Name, Topic};
use tokio::sync::{OnceCell, watch};

use crate::support::{World, block_on, log_lines};

/// Leads, and does nothing.
struct Idle;

impl Work for Idle {
    async fn work(&self, _: &mut kafka::Partition, _: &mut Held<'_>, shutdown: &Shutdown) -> WorkEnd {
        shutdown.requested().await;
        WorkEnd::Shutdown
    }
}

/// A delayer of this topic, but for its work, that reads the settings again all the time.
async fn leading(world: &World, topic: &str) -> Leading {
    let cluster = Cluster { bootstrap: world.services.get("KSYNC_BOOTSTRAP_SERVER").to_owned(), properties: vec![] };
    let admin = Admin::new(&cluster).unwrap();
    let (topic, delay_topic) = (topic.parse().unwrap(), format!("{topic}-delay").parse::<Topic>().unwrap());
    let pair = Pair { topic, delay: Some((delay_topic.clone(), Duration::from_secs(300))) };
    let check = Check::start(&admin, vec![pair], vec![Hazard::DelayCompaction]).await.unwrap();
    let zookeeper = ZooKeeper::connect(&world.zookeeper().parse().unwrap(), Duration::from_secs(30));
    let mut lookout = Lookout::new(check, &cluster).unwrap();
    // Left to itself it reads them again within five minutes.
    assert!(lookout.pause <= Duration::from_secs(5 * 60), "{:?}", lookout.pause);
    lookout.pause = Duration::from_millis(50);
    Leading {
        reader: Reader::open(&cluster, &admin, "ksync.idle", 1, 1).unwrap(),
        mirror: None,
        admin,
        election: Election::ZooKeeper(zookeeper),
        claimed: OnceCell::new(),
        name: Name::delayer(),
        topics: BTreeMap::from([(delay_topic, BTreeSet::from([0]))]),
        grows: false,
        first_start: None,
        accept_loss: vec![],
        bounded: None,
        spread: None,
        handed: watch::Sender::default(),
        commit_interval: Duration::ZERO,
        board: Board::default(),
        lookout: Some(lookout),
    }
}

#[test]
fn what_changes_while_a_daemon_leads_is_told_once_and_ends_nothing() {
    let world = World::new("again");
    let products = world.pair("products", [&[], &[]]);
    let delay_topic = format!("{products}-delay");
    let told = |level: &str| {
        let lines = log_lines(&format!("{level} topic {products}"));
        lines.iter().map(|line| line.split_once(": ").unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(told("WARN"), [""; 0]);
    let (trigger, shutdown) = Shutdown::new();
    let leading = block_on(leading(&world, &products));
    let daemon = std::thread::spawn(move || block_on(leading.run(Idle, &shutdown)));
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("it leads", || seat.offset() == Some(0));

    world.set(&delay_topic, "retention.ms=1000");
    let short = format!("ERROR topic {delay_topic} has retention.ms=1000 (1s), less than twice the delay of 5m");
    world.eventually("it is told", || told("ERROR") == [short.as_str()]);
    world.set(&delay_topic, "retention.ms=2000");
    let longer = format!("ERROR topic {delay_topic} has retention.ms=2000 (2s), less than twice the delay of 5m");
    world.eventually("what has changed is told", || told("ERROR") == [short.as_str(), longer.as_str()]);
    // An allowed one is a warning here, too.
    world.set(&delay_topic, "cleanup.policy=[compact,delete]");
    let allowed = format!("WARN topic {delay_topic} has cleanup.policy=compact,delete");
    world.eventually("it is told", || told("WARN") == [allowed.as_str()]);
    world.set(&delay_topic, "retention.ms=604800000");
    world.for_a_while(Duration::from_secs(3), "it is looked at meanwhile", || true);
    world.set(&delay_topic, "retention.ms=1000");
    let all = [short.as_str(), longer.as_str(), short.as_str()];
    world.eventually("what was mended meanwhile is told again", || told("ERROR") == all);

    assert_eq!((seat.candidates().len(), told("WARN")), (1, vec![allowed]));
    trigger.request();
    assert_eq!(daemon.join().unwrap().unwrap(), Exit::Done);
}
