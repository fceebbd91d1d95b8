//! What the Ruby gem has written is honoured, and what ksync writes follows the gem's rules (research: kafka_sync 0.1.0).

use std::time::{Duration, Instant};

use serde_json::json;
use zookeeper::Acls;

use crate::consume::ids;
use crate::processes::SOON;
use crate::support::{EPHEMERAL_SEQUENTIAL, End, PERSISTENT, Seat, World, block_on, value};

const GEM: &str = "0123456789abcdef0123456789abcdef_";

/// A candidate as the gem makes it, in a session of its own; gives its node's name.
fn candidate_of_the_gem(session: &zookeeper::Client, seat: &Seat) -> String {
    let path = seat.path(&format!("leader/{GEM}"));
    let (_, sequence) = block_on(session.create(&path, b"web1\n", &EPHEMERAL_SEQUENTIAL)).unwrap();
    format!("{GEM}{sequence}")
}

#[test]
fn ksync_waits_behind_a_candidate_of_the_gem_and_leads_within_100_ms_of_its_going() {
    let world = World::new("gem-queue");
    let products = world.topic("products", 1);
    let seat = world.seat(&products, 0, "indexer");
    seat.write("offset", "0");
    let gem = Seat::connect(world.services.get("KSYNC_ZOOKEEPER"));
    let mut name = candidate_of_the_gem(&gem, &seat);
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.kafka.produce(&products, ids(1..=1));

    // The machine may be busy: the best round tells what ksync itself needs.
    let mut quickest = Duration::MAX;
    for round in 1..=10 {
        world.eventually("ksync queues behind the gem", || {
            let queue = seat.candidates();
            queue.len() == 2 && queue[0] == name
        });
        let offset = seat.node("offset").unwrap();
        let ran = handler.runs().len();
        world.for_a_while(Duration::from_millis(300), "ksync waits", || {
            seat.node("offset").unwrap().1.version == offset.1.version && handler.runs().len() == ran
        });
        // A new leader first writes the offset to itself.
        let (_, _, taken_over) = block_on(seat.client.get_and_watch_data(&seat.path("offset"))).unwrap();
        let gone = Instant::now();
        block_on(gem.delete(&seat.path(&format!("leader/{name}")), None)).unwrap();
        block_on(taken_over.changed());
        quickest = quickest.min(gone.elapsed());
        world.eventually("ksync leads", || seat.offset() == Some(1));
        if quickest < SOON || round == 10 {
            break;
        }
        // The gem comes back, and ksync goes to the end of the queue.
        name = candidate_of_the_gem(&gem, &seat);
        let own = seat.candidates()[0].clone();
        assert_ne!(own, name);
        seat.delete(&format!("leader/{own}"));
    }
    assert!(quickest < SOON, "ksync led {quickest:?} after the candidate's going");
    assert_eq!(handler.payloads(), [r#"{"id":1}"#]);
    drop(consumer);
}

#[test]
fn ksync_goes_on_from_an_offset_of_the_gem() {
    let world = World::new("gem-offset");
    let products = world.topic("products", 2);
    world.kafka.produce(&products, (0..2).flat_map(|p| ids(1..=5).map(move |message| message.to(p))));
    world.seat(&products, 0, "indexer").write("offset", "3");
    // The gem takes an empty one for none.
    world.seat(&products, 1, "indexer").write("offset", "");
    let handler = world.handler("");
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    let mut runs = handler.runs();
    runs.sort_by_key(|run| run.partition);
    let offsets: Vec<_> = runs.iter().map(|run| (run.partition, run.offsets())).collect();
    assert_eq!(offsets, [(0, vec![3, 4]), (1, vec![0, 1, 2, 3, 4])]);
    // From its first commit on it is kept as ksync keeps it.
    for partition in 0..2 {
        let seat = world.seat(&products, partition, "indexer");
        let state = seat.state();
        let kept = (seat.text("offset"), &state["v"], &state["offset"], &state["last"]["offset"]);
        assert_eq!(kept, (Some("5".to_owned()), &json!(1), &json!(5), &json!(4)));
        assert!(state["topic_id"].as_str().is_some_and(|id| id.len() == 32), "{state}");
    }
}

#[test]
fn delay_messages_of_the_gem_are_sent_on() {
    let world = World::new("gem-delay");
    let products = world.topic_with_delay("products", 2);
    world.kafka.produce(
        &format!("{products}-delay"),
        [
            value(r#"{"payload":{"id":1},"created_at":1795359635.0841503}"#).to(1),
            value(r#"{"payload":{"name":"größe"},"created_at":1795359635.1}"#).to(1),
        ],
    );
    let _delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    world.eventually("both are sent on", || world.kafka.count(&products) == 2);
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|r| (r.partition, r.key, r.value)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(sent, [(1, None, text(r#"{"id":1}"#)), (1, None, text(r#"{"name":"größe"}"#))]);
}

#[test]
fn what_ksync_makes_in_zookeeper_follows_the_rules_of_the_gem() {
    let world = World::new("gem-nodes");
    let products = world.topic_with_delay("products", 1);
    world.kafka.produce(&products, ids(1..=3));
    let handler = world.handler("");
    let _consumers: Vec<_> = (0..2).map(|_| world.consume(&format!("-t {products} -n indexer -- {handler}"))).collect();
    let _delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    let indexer = world.seat(&products, 0, "indexer");
    let delayer = world.seat(&format!("{products}-delay"), 0, "delayer");
    world.eventually("all are at work", || {
        indexer.candidates().len() == 2 && indexer.offset() == Some(3) && delayer.offset() == Some(0)
    });

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned() + "\n";
    for seat in [&indexer, &delayer] {
        for name in seat.candidates() {
            let (process, sequence) = name.split_once('_').unwrap();
            let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            assert!(process.len() == 32 && process.bytes().all(is_hex), "{name}");
            assert!(sequence.len() == 10 && sequence.bytes().all(|b| b.is_ascii_digit()), "{name}");
            let (data, stat) = seat.node(&format!("leader/{name}")).unwrap();
            // Below that stands what the gem never reads.
            assert!(data.starts_with(&host), "{data:?}");
            assert_ne!(stat.ephemeral_owner, 0, "{name} is ephemeral");
        }
        let (offset, stat) = seat.node("offset").unwrap();
        assert!(offset.bytes().all(|b| b.is_ascii_digit()), "{offset:?}");
        assert_eq!(stat.ephemeral_owner, 0);
        // What is above the nodes: persistent, empty, open to anyone.
        let (mut path, mut checked) = (seat.path("leader"), 0);
        while path.contains("kafka_sync") {
            let (data, stat) = block_on(seat.client.get_data(&path)).unwrap();
            assert_eq!((data.len(), stat.ephemeral_owner), (0, 0), "{path}");
            let (acl, _) = block_on(seat.client.get_acl(&path)).unwrap();
            assert_eq!(acl, Acls::anyone_all().iter().cloned().collect::<Vec<_>>(), "{path}");
            path.truncate(path.rfind('/').unwrap());
            checked += 1;
        }
        assert_eq!(checked, 6);
    }
    let mut children = block_on(indexer.client.list_children(&indexer.path)).unwrap();
    children.sort();
    assert_eq!(children, ["leader", "offset", "state"]);
}

#[test]
fn a_stranger_in_the_queue_is_passed_over_and_named() {
    let world = World::new("stranger");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=1));
    let seat = world.seat(&products, 0, "indexer");
    seat.write("offset", "0");
    block_on(seat.client.create(&seat.path("leader/notes"), b"", &PERSISTENT)).unwrap();
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    assert!(consumer.says(&["warn: ", "passing over ", "/leader/notes, which is no candidate; delete it"]));
}
