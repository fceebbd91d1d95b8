//! Servers whose disk takes no more bytes.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use ksync::announce::UNCOVERED;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::brokers::delay_message;
use crate::consume::ids;
use crate::support::{End, Flow, MISSED, STALL, Seat, World, is_full, reigns, value};

/// From now on all that the server writes to files fails, as on a full disk, which would have to be a file system of its own.
///
/// Java ignores SIGXFSZ, so that a write ends with EFBIG, an IOException as ENOSPC is one. With their present size as the limit
/// of its files ZooKeeper would go on for a while, in what it has put aside for its log.
fn fill_disk(server: Pid) {
    let limits = Rlimit { current: Some(0), maximum: getrlimit(Resource::Fsize).maximum };
    prlimit(Some(server), Resource::Fsize, limits).unwrap();
}

#[test]
fn zookeeper_without_room_on_its_disk_ends_the_work_until_it_has_some_and_no_offset_goes_back() {
    let (world, since) = (World::alone("zookeeper-disk"), SystemTime::now());
    let products = world.topic("products", 1);
    let (handler, batch, records) = (world.handler(""), 10, 400);
    let options = format!("-n indexer --session-timeout 2s --batch-size {batch}");
    let consumer = world.consume(&format!("-t {products} {options} -- {handler}"));
    let (seat, server) = (world.seat(&products, 0, "indexer"), world.services.pid("zookeeper-1"));
    let flow = world.kafka.flow(&products, ids(0..records).collect(), Duration::from_secs(4));
    world.eventually("it is at work", || seat.offset() > Some(0));
    fill_disk(server);
    world.eventually("it no longer leads", || consumer.says(&["no longer leading: "]));
    flow.join().unwrap();
    let runs = handler.runs().len();
    world.for_a_while(Duration::from_secs(3), "no handler runs", || handler.runs().len() == runs);

    // The server may have ended itself.
    world.services.stop("zookeeper");
    world.services.start_again("zookeeper");
    // The session of this test may have ended with the server.
    let seat = Seat { client: Seat::connect(world.services.get("KSYNC_ZOOKEEPER")), ..seat };
    world.eventually("all is committed", || seat.offset() == Some(i64::from(records)));
    let done = handler.payloads();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), records as usize);
    // What was done and could not be committed comes again.
    let stops = consumer.log_of("warn").iter().filter(|line| line.contains("no longer leading: ")).count();
    assert!(done.len() <= records as usize + batch as usize * stops, "{} were done, {stops} stops", done.len());
    let reigns = reigns(&world.services, since, &seat);
    assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), Some(i64::from(records)));
}

#[test]
fn with_no_room_on_the_brokers_disk_no_action_runs_and_the_delayer_keeps_its_offset_until_there_is_some() {
    let world = World::alone("broker-disk");
    let (products, orders) = (world.topic_with_delay("products", 1), world.topic_with_delay("orders", 1));
    let (acted, action) = (world.dir.join("acted"), world.script("cat > /dev/null; touch acted"));
    let delayer = world.delayer(&format!("-t {orders} --delay 10s --session-timeout 10s"));
    let mut stream = world.stream(&format!("- -t {products} -- {action}"));
    stream.tell("{\"id\":1}\n");
    world.eventually("both are at work", || {
        delayer.says(&["leading from offset 0"]) && world.kafka.count(&products) == 1
    });
    fs::remove_file(&acted).unwrap();
    let (delay_topic, server) = (format!("{orders}-delay"), world.services.pid("kafka-1"));
    world.kafka.produce(&delay_topic, (1..=3).map(|id| value(delay_message(&id.to_string()))));
    fill_disk(server);
    stream.tell("{\"id\":2}\n");
    let seat = world.seat(&delay_topic, 0, "delayer");
    // Longer than these messages are held back.
    world.for_a_while(Duration::from_secs(12), "nothing is done", || seat.offset() == Some(0) && !acted.exists());
    if is_full() {
        world.within(Duration::from_secs(90), "ksync-stream gives up", || !stream.is_running());
        assert_eq!((stream.wait(), acted.exists()), (End::Status(75), false));
        let told = format!("{UNCOVERED}: cannot write to topic {products}-delay");
        assert!(stream.log_of("error")[0].starts_with(&told), "{:?}", stream.log());
    }

    // The server may have ended itself.
    world.services.stop("kafka");
    world.services.start_again("kafka");
    world.within(Duration::from_secs(60), "all are sent on", || seat.offset() == Some(3));
    let sent: Vec<_> = world.kafka.records(&orders).into_iter().filter_map(|record| record.value).collect();
    assert_eq!(sent, ["1", "2", "3"]);
    if !is_full() {
        assert_eq!((stream.wait(), acted.exists()), (End::Status(0), true));
        let topics = [&products, &format!("{products}-delay")];
        assert_eq!(topics.map(|topic| world.kafka.count(topic)), [2, 2]);
    }
}

#[test]
fn with_no_room_on_the_brokers_disk_no_record_is_put_aside_and_the_offset_stays_until_there_is_some() {
    let world = World::alone("letter-disk");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    world.kafka.produce(&products, [value("1"), value("{")]);
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let options = format!("--on-invalid dead-letter --dead-letter={dead} --session-timeout 10s");
    let consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    fill_disk(world.services.pid("kafka-1"));
    gate.open();
    world.eventually("it is done", || handler.payloads() == ["1"]);
    let seat = world.seat(&products, 0, "indexer");
    world.for_a_while(Duration::from_secs(4), "nothing is committed", || seat.offset() == Some(0));
    world.eventually("it tells what it waits for", || {
        consumer.ask();
        consumer.says(&["leading term", "offset 0; waits for Kafka"])
    });
    assert!(consumer.says(&["warn: ", "the record at offset 1 goes to ", &dead]), "{:?}", consumer.log());
    if is_full() {
        let again = format!("; writing to {dead} again");
        world.within(Duration::from_secs(150), "it writes it again", || consumer.says(&["warn: ", &again]));
        assert_eq!(seat.offset(), Some(0));
    }

    // The server may have ended itself.
    world.services.stop("kafka");
    world.services.start_again("kafka");
    world.eventually("both are done with", || seat.offset() == Some(2));
    assert_eq!((world.kafka.count(&dead), handler.payloads()), (1, vec!["1".to_owned()]), "{:?}", consumer.log());
}

#[test]
fn a_leader_without_room_on_its_disk_is_followed_by_another_and_no_message_is_lost_or_sent_twice() {
    let world = World::alone_with("leader-disk", 3);
    let flow = Flow::start(&world, &[&[1, 2, 3], &[2, 3, 1]]);
    flow.goes_on();
    fill_disk(world.services.pid("kafka-1"));
    for topic in &flow.topics {
        world.leads(topic, 0, (2, &[2, 3]));
    }
    flow.goes_on();
    // It ends by itself, but hands nothing over.
    flow.end(MISSED + STALL);
}
