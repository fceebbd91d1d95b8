//! What processes that share a seat, or a place in ZooKeeper, make of each other: other names, other versions, other
//! handlers, other clusters.

use std::collections::BTreeSet;

use rustix::process::Signal;
use zookeeper::Acls;

use crate::consume::ids;
use crate::support::{EPHEMERAL_SEQUENTIAL, End, PERSISTENT, Process, Seat, World, block_on, value};

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Where it is noted which Kafka cluster the offsets of this world belong to.
fn cluster(world: &World) -> Seat {
    let Seat { client, .. } = world.seat("", 0, "");
    Seat { client, path: format!("/{}/kafka_sync", world.id) }
}

#[test]
fn of_processes_on_hosts_with_one_name_one_leads_and_each_has_a_name_of_its_own_in_the_queue() {
    let world = World::new("one-host");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let start = || world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let mut consumers: Vec<Process> = (0..3).map(|_| start()).collect();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("all queue", || seat.candidates().len() == 3);
    let queue = seat.candidates();
    let hosts =
        queue.iter().map(|name| seat.text(&format!("leader/{name}")).unwrap().lines().next().unwrap().to_owned());
    assert_eq!(hosts.collect::<BTreeSet<_>>(), BTreeSet::from([hostname()]));
    let names: BTreeSet<_> = queue.iter().map(|name| name.split_once('_').unwrap().0).collect();
    assert_eq!(names.len(), 3, "{queue:?}");

    world.kafka.produce(&products, ids(1..=3));
    world.eventually("they are done", || seat.offset() == Some(3));
    let leaders = || consumers.iter().filter(|consumer| consumer.says(&["leading from offset"])).count();
    world.eventually("the leader tells of it", || leaders() == 1);
    assert_eq!((leaders(), handler.payloads().len()), (1, 3));
    // A process that comes back is another one, too.
    let leader = consumers.iter().position(|consumer| consumer.says(&["leading from offset"])).unwrap();
    consumers[leader].signal(Signal::TERM);
    assert_eq!(consumers[leader].wait(), End::Status(0));
    let _again = start();
    world.eventually("all queue", || seat.candidates().len() == 3);
    let (before, after) = (BTreeSet::from_iter(queue), BTreeSet::from_iter(seat.candidates()));
    assert_eq!(before.intersection(&after).count(), 2);
}

/// States as releases write them, TOPIC for the topic's id: of the first one, after a take-over and after a record; of
/// later ones, with members that this one does not know.
const STATES: [&str; 4] = [
    r#"{"v":1,"offset":3,"topic_id":"TOPIC","leader_epoch":null,"last":null,"term":12}"#,
    r#"{"v":1,"offset":3,"topic_id":"TOPIC","leader_epoch":0,"last":{"offset":2,"ts":TS,"crc32c":CRC},"term":12}"#,
    r#"{"v":1,"offset":3,"topic_id":"TOPIC","leader_epoch":0,"last":{"offset":2,"ts":TS,"crc32c":CRC},"skipped":1,"term":12}"#,
    r#"{"by":{"host":"web1"},"v":1,"offset":3,"topic_id":"TOPIC","leader_epoch":0,"last":{"offset":2,"ts":TS,"crc32c":CRC,"key":"7"},"term":12,"done":[5,7]}"#,
];

#[test]
fn what_an_older_release_or_the_next_one_has_stored_is_read() {
    let world = World::new("releases");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let handler = world.handler("");
    let consume = |name: &str| world.consume(&format!("-t {products} -n {name} -e -- {handler}"));
    assert_eq!(consume("now").wait(), End::Status(0));
    let now = world.seat(&products, 0, "now").state();
    world.kafka.produce(&products, ids(4..=5));
    for (number, state) in STATES.iter().enumerate() {
        let name = format!("then-{number}");
        let seat = world.seat(&products, 0, &name);
        let state = state.replace("TOPIC", now["topic_id"].as_str().unwrap());
        let state = state.replace("TS", &now["last"]["ts"].to_string());
        seat.write("state", &state.replace("CRC", &now["last"]["crc32c"].to_string()));
        seat.write("offset", "3");
        let mut consumer = consume(&name);
        assert_eq!((consumer.wait(), consumer.log_of("warn")), (End::Status(0), vec![]), "{state}");
        let runs = handler.runs();
        let run = runs.last().unwrap();
        assert_eq!((run.name.as_str(), run.offsets(), seat.offset()), (name.as_str(), vec![3, 4], Some(5)), "{state}");
    }
}

#[test]
fn what_another_release_shows_of_itself_is_read_as_far_as_it_is_known() {
    let world = World::new("shown");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    let (seat, delayer) = (world.seat(&products, 0, "indexer"), world.seat(&format!("{products}-delay"), 0, "delayer"));
    let others = Seat::connect(world.services.get("KSYNC_ZOOKEEPER"));
    let queue = |seat: &Seat, data: &str| {
        let path = seat.path("leader/0123456789abcdef0123456789abcdef_");
        block_on(others.create(&path, data.as_bytes(), &EPHEMERAL_SEQUENTIAL)).unwrap();
    };
    seat.write("offset", "0");
    // The first one has no more than the first line.
    queue(&seat, "web1\n");
    let mut standby = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let is_behind = |process: &Process, host: &str| {
        process.ask();
        process.log().iter().any(|line| line.ends_with(&format!("standby, behind {host}")))
    };
    world.eventually("it is behind that", || is_behind(&standby, "web1"));
    standby.kill();
    queue(&seat, "web2\nzone eu 1\nhandler of-the-next-one\nmood good\n");
    let second = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("it is behind the other", || is_behind(&second, "web2"));

    delayer.write("delay", r#"{"unit":"ms","delay_ms":70000,"host":"web1"}"#);
    queue(&delayer, "web1\n");
    let mut refused = world.delayer(&format!("-t {products} --delay 80s"));
    assert_eq!(refused.wait(), End::Status(78));
    assert!(refused.says(&["error: ", "a delayer is at work on web1 that delays it by 70s"]));
    let agrees = world.delayer(&format!("-t {products} --delay 70s"));
    world.eventually("it queues", || delayer.candidates().len() == 2);
    assert_eq!(agrees.log_of("warn"), Vec::<String>::new());
}

#[test]
fn another_handler_under_the_same_name_is_told_once_without_its_arguments() {
    let world = World::new("two-handlers");
    let products = world.topic("products", 3);
    let seat = world.seat(&products, 2, "indexer");
    let start = |arguments: &str| world.consume(&format!("-t {products} -n indexer --no-spread -- /bin/{arguments}"));
    let first = start("true --token Canary1");
    world.eventually("it leads", || (0..3).all(|p| world.seat(&products, p, "indexer").offset() == Some(0)));
    let same = start("true --token Canary1");
    world.eventually("both queue", || seat.candidates().len() == 2);
    let other = start("true --token Canary2");
    world.eventually("all queue", || {
        other.ask();
        let log = other.log_of("info");
        let standby = |partition| format!("{products}/{partition} as indexer: standby, behind {}", hostname());
        (0..3).all(|partition| log.contains(&standby(partition)))
    });
    let shown = |name: &str| seat.text(&format!("leader/{name}")).unwrap();
    let [ours, ours_too, theirs] = &seat.candidates().iter().map(|name| shown(name)).collect::<Vec<_>>()[..] else {
        panic!("three queue")
    };
    let digest = |card: &str| card.strip_prefix(&format!("{}\nhandler true ", hostname())).unwrap().trim().to_owned();
    assert_eq!(digest(ours), digest(ours_too));
    assert_ne!(digest(ours), digest(theirs));
    let [told] = &other.log_of("warn")[..] else { panic!("it is told once: {:?}", other.log()) };
    let text = told.split_once(" as indexer: ").unwrap().1;
    let (own, ahead) = (digest(theirs), digest(ours));
    assert_eq!(
        text,
        format!(
            "the process ahead in the queue, on {}, has another handler: true {ahead}, and here it is true {own}; one of them \
             gets what the other one does not, so give each its own --name (if it is a new version: this passes)",
            hostname()
        )
    );
    for process in [&first, &same, &other] {
        assert!(!process.says(&["Canary"]));
    }
    assert_eq!((first.log_of("warn"), same.log_of("warn")), (vec![], vec![]));
    assert!(![ours, ours_too, theirs].iter().any(|card| card.contains("Canary")));
}

#[test]
fn offsets_of_another_kafka_cluster_are_refused_before_anything_of_them_is_touched() {
    let world = World::new("two-clusters");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    let consume = || world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consume().wait(), End::Status(0));
    let node = cluster(&world);
    let ours = node.text("cluster").unwrap();
    assert_eq!((ours.len(), ours.lines().count()), (22, 1), "{ours:?}");
    let noted = node.node("cluster");
    assert_eq!((consume().wait(), node.node("cluster") == noted), (End::Status(0), true));

    block_on(node.client.set_data(&node.path("cluster"), b"of-another-one\nmore\n", None)).unwrap();
    world.kafka.produce(&products, [value("1")]);
    let seats = [world.seat(&products, 0, "indexer"), world.seat(&format!("{products}-delay"), 0, "delayer")];
    let stored = || seats.each_ref().map(|seat| (seat.node("offset"), seat.node("state"), seat.node("delay")));
    let before = stored();
    let daemon = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    for mut process in [consume(), daemon, world.delayer(&format!("-t {products}"))] {
        assert_eq!(process.wait(), End::Status(78));
        let text = format!(
            "ZooKeeper at {} has the offsets of Kafka cluster of-another-one, and this is cluster {ours}: give each cluster a \
             path of its own there (--zookeeper HOST:PORT/PATH), or, if the offsets are meant for this one, delete {}",
            world.zookeeper(),
            node.path("cluster")
        );
        assert_eq!(process.log_of("error"), [text]);
    }
    assert_eq!((stored() == before, seats[0].candidates(), handler.runs().len()), (true, vec![], 0));

    node.delete("cluster");
    assert_eq!((consume().wait(), handler.payloads()), (End::Status(0), vec!["1".to_owned()]));
    assert_eq!(node.text("cluster"), Some(ours));
}

#[test]
fn without_the_right_to_note_the_cluster_there_is_a_warning_and_the_work_goes_on() {
    let world = World::new("no-note");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let node = cluster(&world);
    block_on(node.client.mkdir(&node.path("consumer"), &PERSISTENT)).unwrap();
    let read_only: Vec<_> = Acls::anyone_read().iter().cloned().collect();
    block_on(node.client.set_acl(&node.path, &read_only, None)).unwrap();
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!((consumer.wait(), handler.payloads().len()), (End::Status(0), 3));
    let [warning] = &consumer.log_of("warn")[..] else { panic!("it is told: {:?}", consumer.log()) };
    let text = format!("cannot note at {} that the offsets are those of Kafka cluster ", node.path("cluster"));
    assert!(warning.contains(&text) && warning.contains(": not authorized; "), "{warning}");
}
