//! Logs that are made again, expire or are cut off, at any moment: never is a record skipped in silence.

use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use crate::brokers::delay_message;
use crate::consume::ids;
use crate::consume_offsets::printed_option;
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

/// Writes delay messages with these payloads to the delay topic.
fn write_delayed(world: &World, topic: &str, ids: std::ops::Range<u32>) {
    world.kafka.produce(&format!("{topic}-delay"), ids.map(|id| value(delay_message(&id.to_string()))));
}

/// What lies in the topic, from its beginning.
fn sent(world: &World, topic: &str) -> Vec<u32> {
    world.kafka.records(topic).into_iter().map(|record| record.value.unwrap().parse().unwrap()).collect()
}

#[test]
fn a_delay_topic_that_is_deleted_or_made_again_halts_its_delayer_and_its_offset_stays() {
    let world = World::new("delays-gone");
    let topics = ["deleted", "shorter", "longer"].map(|name| world.topic_with_delay(name, 1));
    let seat = |topic: &str| world.seat(&format!("{topic}-delay"), 0, "delayer");
    let mut delayer = world.delayer(&format!("-t {} --delay 1s", topics.join(",")));
    topics.iter().for_each(|topic| write_delayed(&world, topic, 0..5));
    world.eventually("they are sent on", || topics.iter().all(|topic| seat(topic).offset() == Some(5)));
    let before = Instant::now();
    for (topic, count) in topics.iter().zip([None, Some(2), Some(9)]) {
        let delay_topic = format!("{topic}-delay");
        world.kafka.delete(&delay_topic);
        if let Some(count) = count {
            world.kafka.create(&delay_topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
            write_delayed(&world, topic, 100..100 + count);
        }
    }
    let [gone, again] = ["does not exist any more", "the topic was deleted and made again"];
    for (topic, why) in topics.iter().zip([gone, again, again]) {
        let halted = format!("{topic}-delay/0 as delayer: halted at offset 5: ");
        world.within(Duration::from_secs(90), "it is told", || delayer.says(&["error: ", &halted, why]));
        assert_eq!(seat(topic).offset(), Some(5));
    }
    // A broker that starts again may not know it for some seconds.
    assert!(before.elapsed() >= Duration::from_secs(30), "told after {:?}", before.elapsed());
    let [deleted, shorter, longer] = &topics;
    for topic in [deleted, shorter] {
        assert_eq!(sent(&world, topic), (0..5).collect::<Vec<_>>());
    }
    delayer.signal(Signal::TERM);
    assert_eq!(delayer.wait(), End::Status(0));

    let errors: Vec<_> = delayer.log_of("error").into_iter().filter(|error| error.starts_with(longer)).collect();
    let accepted = world.delayer(&format!("-t {longer} --delay 1s --accept-loss {}", printed_option(&errors)));
    world.eventually("all that is there is sent on", || seat(longer).offset() == Some(9));
    // Before it halted it may have sent some on, too, of which nothing was committed.
    let expected: Vec<u32> = (100..109).collect();
    assert!(sent(&world, longer).ends_with(&expected), "{:?}", accepted.log());
}

#[test]
fn a_delay_topic_that_has_lost_records_or_ends_before_the_offset_halts_its_delayer_until_the_loss_is_accepted() {
    let world = World::new("delays-lost");
    let topics = ["expired", "cut"].map(|name| world.topic_with_delay(name, 1));
    let [expired, cut] = &topics;
    let seat = |topic: &str| world.seat(&format!("{topic}-delay"), 0, "delayer");
    let start = |options: &str| world.delayer(&format!("-t {expired},{cut} --delay 1s {options}"));
    let end = |mut delayer: Process| {
        delayer.signal(Signal::TERM);
        assert_eq!(delayer.wait(), End::Status(0));
        delayer.log_of("error")
    };
    let first = start("");
    topics.iter().for_each(|topic| write_delayed(&world, topic, 0..5));
    world.eventually("they are sent on", || topics.iter().all(|topic| seat(topic).offset() == Some(5)));
    assert_eq!(end(first), [""; 0]);

    write_delayed(&world, expired, 5..10);
    world.kafka.delete_records(&format!("{expired}-delay"), 0, 8);
    seat(cut).write("offset", "7");
    let halted = start("");
    for (topic, why) in [
        (expired, "the log begins at 8 now: the records from 5 to 7 are lost"),
        (cut, "the log ends at 5 now, before the kept offset 7: it was truncated"),
    ] {
        let told = format!("{topic}-delay/0 as delayer: halted: ");
        world.eventually("it is told", || halted.says(&["error: ", &told, why]));
    }
    assert_eq!([seat(expired).offset(), seat(cut).offset()], [Some(5), Some(7)]);
    let errors: Vec<_> = end(halted).into_iter().filter(|error| error.starts_with(expired)).collect();
    let _accepted = start(&format!("--accept-loss {}", printed_option(&errors)));
    world.eventually("what is there is sent on", || seat(expired).offset() == Some(10));
    assert_eq!([sent(&world, expired), sent(&world, cut)], [vec![0, 1, 2, 3, 4, 8, 9], vec![0, 1, 2, 3, 4]]);
}
