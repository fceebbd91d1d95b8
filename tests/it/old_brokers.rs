//! Brokers before Kafka 2.8, which tell no ids of topics, by librdkafka's own mock of a broker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ksync::fit::AcceptLoss;
use ksync::lead::Leading;
use ksync::shutdown::Shutdown;
use rdkafka::types::RDKafkaApiKey::{Fetch, Metadata};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::consume_offsets::printed_option;
use crate::mock::{Mock, Take, leading};
use crate::support::{End, Message, World, block_on, log_lines, value};

/// The id of a topic where brokers tell none.
const UNKNOWN: &str = "00000000000000000000000000000000";

/// Leads the mock's partition until it is so; gives what was taken.
fn led(world: &World, mock: &Mock, accepted: &[AcceptLoss], is_so: impl FnMut() -> bool) -> Vec<String> {
    let (taken, (trigger, shutdown)) = (Arc::<Mutex<Vec<String>>>::default(), Shutdown::new());
    let work = Take(taken.clone());
    // Each mock is a cluster of its own.
    let claimed = OnceCell::new_with(Some(()));
    let leading = Leading { claimed, accept_loss: accepted.to_vec(), ..block_on(leading(world, mock)) };
    let daemon = std::thread::spawn(move || block_on(leading.run(work, &shutdown)));
    world.eventually("it is led so far", is_so);
    trigger.request();
    daemon.join().unwrap().unwrap();
    let taken = taken.lock().unwrap();
    taken.clone()
}

/// What was said of this topic.
fn said(level: &str, topic: &str) -> Vec<String> {
    log_lines(&format!("{level} ")).into_iter().filter(|line| line.contains(topic)).collect()
}

#[test]
fn without_ids_a_topic_that_was_made_again_is_recognised_by_the_last_record_that_was_read() {
    for (fourth, last) in [("4", 3), ("half", 2)] {
        let world = World::new(&format!("no-ids-{last}"));
        let topic = format!("products-{}", world.id);
        assert_eq!(said("WARN", &topic), [""; 0]);
        let seat = world.seat(&topic, 0, "indexer");
        let mock = Mock::without_ids(&topic);
        (1..=3).for_each(|id| mock.produce(&id.to_string()));
        assert_eq!(led(&world, &mock, &[], || seat.offset() == Some(3)), ["1", "2", "3"]);
        assert_eq!(seat.state()["topic_id"], json!(UNKNOWN));
        let told = format!(
            "WARN topic {topic}: the brokers tell no id of it; Kafka tells ids since 2.8, where inter.broker.protocol.version is \
             at least that, too: "
        );
        let warnings = said("WARN", &topic);
        assert!(warnings.len() == 1 && warnings[0].starts_with(&told), "{warnings:?}");
        // It is the same still.
        mock.produce(fourth);
        assert_eq!(led(&world, &mock, &[], || seat.offset() == Some(4)), [fourth]);
        assert_eq!(said("ERROR", &topic), [""; 0]);

        // Longer than the old one: the offset looks as if it fitted.
        let again = Mock::without_ids(&topic);
        ["a", "b", "c", "d", "e"].iter().for_each(|text| again.produce(text));
        let halted = led(&world, &again, &[], || said("ERROR", &topic).len() == 1);
        assert_eq!((halted, seat.offset()), (vec![], Some(4)));
        let error = said("ERROR", &topic).remove(0);
        let told = format!(": the record at offset {last} is not the one that was read there: ");
        assert!(error.contains(&told), "{error}");
        let (_, option) = error.split_once("--accept-loss ").unwrap();
        let accepted: AcceptLoss = option.split_once(": ").unwrap().0.parse().unwrap();
        assert_eq!(accepted.to_string(), format!("{topic}/0:4-0@{UNKNOWN}"));
        let taken = led(&world, &again, &[accepted], || seat.offset() == Some(5));
        assert_eq!(taken, ["a", "b", "c", "d", "e"]);
    }
}

#[test]
fn brokers_that_become_newer_and_tell_ids_are_not_taken_for_other_topics() {
    for is_made_again in [false, true] {
        let world = World::new(&format!("new-ids-{is_made_again}"));
        let topic = format!("products-{}", world.id);
        let seat = world.seat(&topic, 0, "indexer");
        assert_eq!(said("ERROR", &topic), [""; 0]);
        let mock = Mock::without_ids(&topic);
        (1..=3).for_each(|id| mock.produce(&id.to_string()));
        led(&world, &mock, &[], || seat.offset() == Some(3));

        if is_made_again {
            let again = Mock::new(&topic);
            (1..=4).for_each(|id| again.produce(&format!("other {id}")));
            let taken = led(&world, &again, &[], || !said("ERROR", &topic).is_empty());
            assert_eq!((taken, seat.offset()), (vec![], Some(3)));
            continue;
        }
        mock.broker.apiversion(Metadata, Some(0), Some(12)).unwrap();
        mock.broker.apiversion(Fetch, Some(0), Some(16)).unwrap();
        // Also where nothing is read until then.
        assert_eq!(led(&world, &mock, &[], || seat.state()["topic_id"] != json!(UNKNOWN)), [""; 0]);
        mock.produce("4");
        assert_eq!(led(&world, &mock, &[], || seat.offset() == Some(4)), ["4"]);
        assert_ne!(seat.state()["topic_id"], json!(UNKNOWN));
        assert_eq!(said("ERROR", &topic), [""; 0]);
    }
}

#[test]
fn brokers_that_become_older_and_tell_ids_no_more_take_nothing_from_what_is_known() {
    let world = World::new("old-ids");
    let topic = format!("products-{}", world.id);
    let seat = world.seat(&topic, 0, "indexer");
    assert_eq!(said("ERROR", &topic), [""; 0]);
    let mock = Mock::new(&topic);
    (1..=3).for_each(|id| mock.produce(&id.to_string()));
    led(&world, &mock, &[], || seat.offset() == Some(3));
    let id = seat.state()["topic_id"].clone();
    assert_ne!(id, json!(UNKNOWN));

    mock.broker.apiversion(Metadata, Some(0), Some(9)).unwrap();
    mock.broker.apiversion(Fetch, Some(0), Some(12)).unwrap();
    mock.produce("4");
    assert_eq!(led(&world, &mock, &[], || seat.offset() == Some(4)), ["4"]);
    assert_eq!((&seat.state()["topic_id"], said("ERROR", &topic)), (&id, vec![]));

    // By it another topic is known once they tell ids again.
    let again = Mock::new(&topic);
    (1..=5).for_each(|id| again.produce(&format!("other {id}")));
    let taken = led(&world, &again, &[], || !said("ERROR", &topic).is_empty());
    assert_eq!((taken, seat.offset()), (vec![], Some(4)));
    let error = said("ERROR", &topic).remove(0);
    assert!(error.contains("the topic was deleted and made again (its id was "), "{error}");
}

#[test]
fn a_log_that_ends_before_the_offset_for_a_moment_is_looked_at_again_and_then_read_on() {
    // On a busy machine it may be looked at for the first time when it is whole again, but not each time.
    let took: Vec<_> = (1..=3).map(ends_before_the_offset_for_a_moment).take_while(|took| took.as_secs() < 4).collect();
    assert!(took.len() < 3, "it was looked at once each time: {took:?}");
}

/// A broker that has become the leader of a log knows the last record only a second after the partition is led again; how long it
/// took until more was read. Each broker is a mock of its own, with the same records and the same epoch.
fn ends_before_the_offset_for_a_moment(attempt: u32) -> Duration {
    let world = World::new(&format!("moment-{attempt}"));
    let topic = format!("products-{}", world.id);
    assert_eq!(said("ERROR", &topic), [""; 0]);
    let seat = world.seat(&topic, 0, "indexer");
    let [before, next] = ["before", "next"].map(|_| Mock::without_ids(&topic));
    // By its time, too, the last record is recognised.
    let write = |mock: &Mock, ids: std::ops::RangeInclusive<i32>| {
        let message = |id: i32| Message { timestamp_ms: Some(1_700_000_000_000), ..value(id.to_string()) };
        mock.write(ids.map(message));
    };
    write(&before, 1..=3);
    led(&world, &before, &[], || seat.offset() == Some(3));
    assert_eq!(seat.state()["leader_epoch"], json!(0));
    write(&next, 1..=2);
    let version = || seat.node("offset").unwrap().1.version;
    let (kept, mut since, mut is_whole, mut took) = (version(), None::<Instant>, false, Duration::ZERO);
    let taken = led(&world, &next, &[], || {
        if since.is_none() && version() > kept {
            since = Some(Instant::now());
        }
        let passed = since.map_or(Duration::ZERO, |since| since.elapsed());
        if !is_whole && passed > Duration::from_secs(1) {
            write(&next, 3..=4);
            is_whole = true;
        }
        took = passed;
        seat.offset() == Some(4) || !said("ERROR", &topic).is_empty()
    });
    assert_eq!((taken, said("ERROR", &topic)), (vec!["4".to_owned()], vec![]));
    took
}

/// A broker of today, whose topics' ids are forgotten again: the mock of one has no transactions.
#[test]
fn without_ids_a_topic_that_was_made_again_is_recognised_where_no_record_is_any_more() {
    let world = World::new("no-record");
    for is_aborted in [false, true] {
        let products = world.topic(&format!("products-{is_aborted}"), 1);
        let seat = world.seat(&products, 0, "indexer");
        let handler = world.handler("");
        let consume = || world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        world.kafka.produce(&products, ["1", "2", "3"].map(value));
        assert_eq!((consume().wait(), seat.offset()), (End::Status(0), Some(3)));
        let mut state = seat.state();
        state["topic_id"] = json!(UNKNOWN);
        seat.write("state", &state.to_string());

        world.kafka.delete(&products);
        world.kafka.create(&products, 1, &[]);
        // At offset 2, where the last record was, is a marker, or what was aborted.
        match is_aborted {
            false => world.kafka.transaction(&products, ["7", "8"].map(value)).commit(),
            true => world.kafka.transaction(&products, ["7", "8", "9"].map(value)).abort(),
        }
        world.kafka.produce(&products, ["4", "5"].map(value));
        let mut halted = consume();
        assert_eq!((halted.wait(), seat.offset()), (End::Status(1), Some(3)));
        let errors = halted.log_of("error");
        let told = ": the record at offset 2 that was read is not there any more: ";
        assert!(errors.len() == 1 && errors[0].contains(told), "{errors:?}");
        assert!(printed_option(&errors).starts_with(&format!("{products}/0:3-0@")), "{errors:?}");
        assert_eq!(handler.payloads(), ["1", "2", "3"]);

        // Then it may be the same log still.
        world.kafka.set(&products, &[("cleanup.policy", "compact")]);
        world.eventually("what may be compacted is read on", || consume().wait() == End::Status(0));
        assert_eq!(handler.payloads(), ["1", "2", "3", "4", "5"]);
    }
}
