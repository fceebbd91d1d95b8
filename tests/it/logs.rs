//! Logs that are made again, expire or are cut off, at any moment: never is a record skipped in silence.

use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use crate::consume::ids;
use crate::logs_scene::{Case, Moment, Scene};
use crate::support::{End, Process, World, is_full, value};

/// Topics of one partition.
fn topics(world: &World, round: u64, count: usize) -> Vec<(String, i32)> {
    (0..count).map(|number| (world.topic(&format!("t{round}-{number}"), 1), 0)).collect()
}

/// Rounds, and the partitions of each.
fn amount() -> (u64, usize) {
    if is_full() { (5, 10) } else { (1, 3) }
}

/// Each by itself may have had all records that were lost later: what a client has read ahead is given on.
fn some_halted_in_a_handler(halts: &[Moment]) {
    assert!(!is_full() || halts.contains(&Moment::Handling), "{halts:?}");
}

fn topics_made_again(test: &str, is_longer: bool) {
    let world = World::new(test);
    let (rounds, count) = amount();
    for round in 0..rounds {
        let mut scene = Scene::new(&world, topics(&world, round, count).into_iter(), round);
        scene.write(30..100, None);
        scene.read();
        for case in &mut scene.cases {
            let (before, offset) = (case.before.clone(), case.offset(&world) as usize);
            let records = match is_longer {
                true => before.len() + scene.rng.random_range(1..30),
                false => scene.rng.random_range(0..=offset.saturating_sub(1)),
            };
            world.kafka.delete(&case.topic);
            world.kafka.create(&case.topic, 1, &[]);
            case.write(&world, records, None);
            case.before = before;
        }
        scene.go_on();
        let halts = scene.judge(|_, offset| format!("what followed offset {offset} is lost"));
        assert_eq!(halts.len(), count);
    }
}

#[test]
fn a_topic_made_again_that_is_shorter_is_never_taken_for_the_old_one() {
    topics_made_again("shorter", false);
}

#[test]
fn a_topic_made_again_that_is_longer_is_never_taken_for_the_old_one() {
    topics_made_again("longer", true);
}

#[test]
fn what_retention_has_deleted_before_it_was_read_is_named_to_the_record() {
    /// In 2023.
    const LONG_AGO: i64 = 1_700_000_000_000;
    let world = World::alone("retention");
    world.services.stop("kafka");
    let often = "log.retention.check.interval.ms=100\nlog.initial.task.delay.ms=100\n";
    let _broker = world.start_broker("kafka-1", often);
    let ((rounds, count), mut all_halts) = (amount(), vec![]);
    for round in 0..rounds {
        let mut scene = Scene::new(&world, topics(&world, round, count).into_iter(), round);
        scene.write(30..100, Some(LONG_AGO));
        scene.read();
        for case in &mut scene.cases {
            // Also of what those who are away have not seen.
            let unseen = scene.rng.random_range(1..30);
            case.write(&world, unseen, Some(LONG_AGO));
            let end = case.before.len() as i64;
            world.kafka.set(&case.topic, &[("retention.ms", "3600000")]);
            world.eventually("the log begins behind it", || world.kafka.log(&case.topic, 0) == (end, end));
            let later = scene.rng.random_range(0..30);
            case.write(&world, later, None);
            case.before.truncate(end as usize);
        }
        scene.go_on();
        let away = scene.cases.iter().filter(|case| case.moment == Moment::Away).count();
        let why = |case: &Case, offset: i64| format!("the records from {offset} to {} are lost", case.before.len() - 1);
        let halts = scene.judge(why);
        assert!(halts.len() >= away, "{halts:?}, {away} were away");
        all_halts.extend(halts);
    }
    some_halted_in_a_handler(&all_halts);
}

#[test]
fn what_an_unclean_election_has_cut_off_is_never_skipped_in_silence() {
    let (rounds, count) = if is_full() { (5, 10) } else { (1, 6) };
    let world = World::alone_with("unclean", 3);
    let (mut leader, mut follower) = (1, 2);
    // The first ones are those of `scripts/services`, and end here.
    let first = [world.services.pid("kafka-1"), world.services.pid("kafka-2")];
    let (mut brokers, mut all_halts): ([Option<Process>; 2], _) = ([None, None], vec![]);
    for round in 0..rounds {
        let topic = format!("products{round}-{}", world.id);
        let settings = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
        world.kafka.create_on(&topic, &vec![&[leader, follower][..]; count], &settings);
        let mut scene = Scene::new(&world, (0..count as i32).map(|partition| (topic.clone(), partition)), round);
        scene.write(20..60, None);
        let mut end = |broker: i32, signal| match &mut brokers[broker as usize - 1] {
            Some(process) => {
                process.signal(signal);
                process.wait();
            }
            None => world.end_broker(first[broker as usize - 1], signal),
        };
        end(follower, Signal::TERM);
        world.leads(&topic, 0, (leader, &[leader]));
        // These have only one replica, and go with it.
        scene.write(20..60, None);
        scene.read();
        // One that is killed is missed after 9 s only.
        end(leader, if is_full() { Signal::KILL } else { Signal::TERM });
        brokers[follower as usize - 1] = Some(world.start_broker(&format!("kafka-{follower}"), ""));
        for partition in 0..count {
            world.leads(&topic, partition, (follower, &[follower]));
        }
        for case in &mut scene.cases {
            let before = case.before.clone();
            // Nothing, less than was lost, or more.
            let records = [0, 10, 80][scene.rng.random_range(0..3)];
            case.write(&world, records, None);
            case.before = before;
        }
        scene.go_on();
        let away = scene.cases.iter().filter(|case| case.moment == Moment::Away).count();
        let halts = scene.judge(|_, _| "truncated".to_owned());
        assert!(halts.len() >= away, "{halts:?}, {away} were away");
        all_halts.extend(halts);
        if round + 1 == rounds {
            break;
        }
        brokers[leader as usize - 1] = Some(world.start_broker(&format!("kafka-{leader}"), ""));
        for partition in 0..count {
            world.leads(&topic, partition, (follower, &[1, 2]));
        }
        (leader, follower) = (follower, leader);
    }
    some_halted_in_a_handler(&all_halts);
}

#[test]
fn records_that_are_deleted_behind_the_offset_change_nothing() {
    let world = World::new("behind");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..5));
    let gate = world.gate();
    // All but the first records are held up.
    let handler = world.handler(&format!("[ $KSYNC_BATCH_FIRST_OFFSET -lt 5 ] || await {gate}"));
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the first are done", || seat.offset() == Some(5));
    world.kafka.produce(&products, ids(5..10));
    world.eventually("the next are at the handler", || handler.runs().iter().any(|run| run.first == 5));
    let delete = |until: i64| {
        world.kafka.delete_records(&products, 0, until);
        world.eventually("the log begins there", || world.kafka.log(&products, 0).0 == until);
    };
    // Further behind, and right up to it.
    delete(3);
    delete(5);
    gate.open();
    world.kafka.produce(&products, ids(10..15));
    world.eventually("all are done", || seat.offset() == Some(15));
    delete(15);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    world.kafka.produce(&products, ids(15..20));
    let mut next = world.consume(&format!("-t {products} -n indexer --session-timeout 30s -e -- {handler}"));
    assert_eq!(next.wait(), End::Status(0));
    assert_eq!(handler.payloads(), (0..20).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>());
    for process in [consumer, next] {
        assert_eq!([process.log_of("warn"), process.log_of("error")].concat(), Vec::<String>::new());
    }
}

#[test]
fn a_topic_that_is_deleted_while_it_is_led_halts_and_its_offset_stays() {
    let world = World::new("deleted");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, [value("1"), value("2")]);
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("both are done", || seat.offset() == Some(2));
    let before = Instant::now();
    world.kafka.delete(&products);
    let told = format!("halted at offset 2: topic {products} does not exist any more");
    world.eventually("it is told", || consumer.says(&["error: ", &told]));
    // A broker that starts again may not know it for some seconds.
    assert!(before.elapsed() >= Duration::from_secs(30), "told after {:?}", before.elapsed());
    assert_eq!((seat.offset(), handler.payloads().len()), (Some(2), 2));
}
