//! Clocks that are wrong, jump or strobe: each delay message is held for the delay by the broker's clock, which is right.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Clock, End, Message, Process, World, is_full, value};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");
const DELAYER: &str = env!("CARGO_BIN_EXE_ksync-delayer");
const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const DELAY: Duration = Duration::from_secs(2);
const HOUR: f64 = 3600.0;
const IN_2100: i64 = 4_102_444_800;
const FOR_EVER: &str = "9223372036854775807";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn delay_message(id: usize, created_at: f64) -> Message {
    value(format!("{{\"payload\": {id}, \"created_at\": {created_at:.3}}}"))
}

fn delayer(world: &World, topic: &str, clock: &Clock) -> Process {
    // A zone with daylight saving, of half an hour: what reads it would show.
    let environment = [&clock.environment()[..], &[("TZ", "Australia/Lord_Howe")]].concat();
    world.start(DELAYER, &format!("-t {topic} --delay 2s --session-timeout 30s"), &environment)
}

/// How long each message was held, in milliseconds. Checks that all were sent on, once, in order, and none of them early.
fn held(world: &World, topic: &str) -> Vec<i64> {
    let (made, sent) = (world.kafka.records(&format!("{topic}-delay")), world.kafka.records(topic));
    let payload = |value: &Option<String>| {
        let value = value.as_ref().unwrap();
        value.strip_prefix("{\"payload\": ").unwrap().split(',').next().unwrap().to_owned()
    };
    let made_ids: Vec<_> = made.iter().map(|record| payload(&record.value)).collect();
    let sent_ids: Vec<_> = sent.iter().map(|record| record.value.clone().unwrap()).collect();
    assert_eq!(sent_ids, made_ids, "{topic}");
    let held: Vec<_> = made.iter().zip(&sent).map(|(made, sent)| sent.timestamp_ms - made.timestamp_ms).collect();
    assert!(held.iter().all(|millis| *millis >= DELAY.as_millis() as i64), "early in {topic}: {held:?}");
    held
}

fn assert_in_time(held: &[i64], topic: &str) {
    // In the short form, beside other tests, machine or broker may stand still for a while; a wrong clock makes more late.
    let late = |by: i64| held.iter().filter(|millis| **millis >= DELAY.as_millis() as i64 + by).count();
    let is_in_time = if is_full() { late(1000) == 0 } else { 2 * late(1000) <= held.len() || late(10_000) == 0 };
    assert!(is_in_time, "late in {topic}: {held:?}");
}

#[test]
fn a_clock_that_is_wrong_from_the_start_lets_nothing_through_early_and_holds_nothing_for_longer_than_the_delay() {
    const BEFORE: usize = 20;
    const AFTER: usize = 8;
    let world = World::new("wrong-clock");
    let wrong =
        [("ahead", HOUR), ("behind", -HOUR), ("day", 24.0 * HOUR), ("yesterday", -24.0 * HOUR), ("1970", -now())];
    let clocks = wrong.map(|(name, seconds_ahead)| {
        let clock = world.clock();
        clock.set(seconds_ahead);
        (world.topic_with_delay(name, 1), clock)
    });
    let produce = |ids: Range<usize>| {
        for (topic, _) in &clocks {
            // What the writer says does not count where the broker says it.
            let message = |id| delay_message(id, [0.0, now(), IN_2100 as f64][id % 3]);
            world.kafka.produce(&format!("{topic}-delay"), ids.clone().map(message));
        }
    };
    produce(0..BEFORE);
    let delayers = clocks.each_ref().map(|(topic, clock)| delayer(&world, topic, clock));
    let all_are_sent = |count| clocks.iter().all(|(topic, _)| world.kafka.count(topic) == count);
    world.eventually("all lead", || delayers.iter().all(|delayer| delayer.says(&["leading from offset 0"])));
    // Reading and sending take their time on a busy machine.
    let limit = DELAY + Duration::from_secs(if is_full() { 6 } else { 20 });
    world.within(limit, "what was there before is sent on", || all_are_sent(BEFORE as i64));
    for id in BEFORE..BEFORE + AFTER {
        produce(id..id + 1);
    }
    world.eventually("the rest is sent on", || all_are_sent((BEFORE + AFTER) as i64));
    for ((topic, _), delayer) in clocks.iter().zip(delayers) {
        assert_in_time(&held(&world, topic)[BEFORE..], topic);
        assert!(delayer.says(&["warn: the clock of this machine and that of ZooKeeper at", "s apart"]), "{topic}");
    }
}

/// What `disturb` does to the clock of a delayer, step by step, disturbs neither the messages that come meanwhile nor the
/// election. What the delayer has warned of.
fn is_undisturbed(world: &World, steps: usize, mut disturb: impl FnMut(usize, &Clock)) -> Vec<String> {
    let (topic, clock) = (world.topic_with_delay("products", 1), world.clock());
    let delay_topic = format!("{topic}-delay");
    let delayer = delayer(world, &topic, &clock);
    is_at_work(world, &topic);
    let queue = world.seat(&delay_topic, 0, "delayer").candidates();
    for step in 0..steps {
        disturb(step, &clock);
        world.kafka.produce(&delay_topic, (1..=3).map(|id| delay_message(3 * step + id, now())));
        world.for_a_while(Duration::from_millis(150), "time passes", || true);
    }
    world.eventually("all are sent on", || world.kafka.count(&topic) == 1 + 3 * steps as i64);
    assert_in_time(&held(world, &topic), &topic);
    assert_eq!(world.seat(&delay_topic, 0, "delayer").candidates(), queue);
    let mut told = [delayer.log_of("warn"), delayer.log_of("error")].concat();
    told.retain(|line| !line.contains("is short"));
    told
}

/// A first message was sent on: by then the delayer has seen the end of the partition often.
fn is_at_work(world: &World, topic: &str) {
    world.kafka.produce(&format!("{topic}-delay"), [delay_message(0, now())]);
    world.eventually("the first message is sent on", || world.kafka.count(topic) == 1);
}

#[test]
fn a_clock_that_jumps_while_messages_wait_changes_neither_their_times_nor_the_leader() {
    let world = World::new("jumps");
    let mut rng = StdRng::seed_from_u64(5);
    // A jump at each fourth step: messages come before it, and after it.
    let jumps = if is_full() { 20 } else { 4 };
    let told = is_undisturbed(&world, 4 * jumps, |step, clock| {
        if step % 4 == 2 {
            clock.set(rng.random_range(-3.0 * HOUR..3.0 * HOUR));
        }
    });
    assert!(told.len() == 1 && told[0].contains("that of the partition's broker are"), "{told:?}");
}

#[test]
fn a_clock_that_strobes_changes_neither_the_times_of_messages_nor_the_leader() {
    let world = World::new("strobe");
    let flips = if is_full() { 300 } else { 20 };
    let told = is_undisturbed(&world, flips, |step, clock| clock.set([2.0, -2.0][step % 2]));
    assert_eq!(told, [""; 0]);
}

#[test]
fn a_consumer_whose_clock_jumps_goes_on_as_before() {
    let world = World::new("consumer-jumps");
    let (products, clock, handler) = (world.topic("products", 1), world.clock(), world.handler(""));
    let consumer = world.start(
        CONSUME,
        &format!("-t {products} -n indexer --session-timeout 30s -- {handler}"),
        &clock.environment(),
    );
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let queue = seat.candidates();
    for (record, hours) in (0..).zip([1.0, -1.0, 24.0, -24.0, 0.0, -3.0]) {
        clock.set(hours * HOUR);
        world.kafka.produce(&products, [value(record.to_string())]);
        world.eventually("it is done", || seat.offset() == Some(record + 1));
    }
    assert_eq!(handler.payloads(), ["0", "1", "2", "3", "4", "5"]);
    assert_eq!((seat.candidates(), consumer.log_of("warn")), (queue, vec![]));
}

#[test]
fn a_delayer_whose_clock_is_wrong_sends_on_what_the_topic_takes_and_keeps() {
    let world = World::new("stamps");
    let sent = [("day", 24.0 * HOUR), ("1970", -now())].map(|(name, seconds_ahead)| {
        let clock = world.clock();
        clock.set(seconds_ahead);
        // The broker takes no time that is more than an hour ahead, and would soon delete what is long past.
        let topic = world.topic(name, 1);
        world.kafka.create(&format!("{topic}-delay"), 1, &[("message.timestamp.type", "LogAppendTime")]);
        let delayer = delayer(&world, &topic, &clock);
        world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
        is_at_work(&world, &topic);
        for id in 1..=8 {
            world.kafka.produce(&format!("{topic}-delay"), [delay_message(id, now())]);
            world.for_a_while(Duration::from_millis(400), "time passes", || true);
        }
        (topic, delayer)
    });
    for (topic, _delayer) in &sent {
        world.eventually("all are sent on", || world.kafka.count(topic) == 9);
        assert_in_time(&held(&world, topic)[1..], topic);
    }
}

#[test]
fn no_forged_time_lets_a_message_through_early_or_holds_those_behind_it() {
    let stamped = |millis: i64| Message { timestamp_ms: Some(millis), ..value(r#"{"payload": 1}"#) };
    let forged = [
        stamped(1),
        stamped(-1000),
        stamped(IN_2100 * 1000),
        delay_message(1, 0.0),
        delay_message(1, -1e9),
        delay_message(1, IN_2100 as f64),
        delay_message(1, 1e300),
        Message { timestamp_ms: Some(1), ..delay_message(1, IN_2100 as f64) },
        Message { timestamp_ms: Some(IN_2100 * 1000), ..delay_message(1, 0.0) },
    ];
    let world = World::new("forgeries");
    let partitions = forged.len() as i32;
    let (topic, delay_topic) = (format!("products-{}", world.id), format!("products-{}-delay", world.id));
    world.kafka.create(&topic, partitions, &[("message.timestamp.type", "LogAppendTime")]);
    // No longer the default: the broker believes all that it is told.
    world.kafka.create(&delay_topic, partitions, &[("message.timestamp.after.max.ms", FOR_EVER)]);
    let _delayer = world.delayer(&format!("-t {topic} --delay 2s --session-timeout 30s"));
    let each = |id| (0..partitions).map(move |partition| delay_message(id, now()).to(partition));
    world.kafka.produce(&delay_topic, each(0));
    world.eventually("the first messages are sent on", || world.kafka.count(&topic) == i64::from(partitions));
    let written = now();
    world.kafka.produce(&delay_topic, forged.into_iter().zip(0..).map(|(message, partition)| message.to(partition)));
    world.kafka.produce(&delay_topic, each(2));
    let written = (written, now());
    world.eventually("all are sent on", || world.kafka.count(&topic) == 3 * i64::from(partitions));
    let sent = world.kafka.records(&topic);
    for of_one in sent.chunks(3) {
        assert_eq!([0, 1, 2].map(|i| of_one[i].value.as_deref().unwrap()), ["0", "1", "2"]);
        for record in &of_one[1..] {
            assert_held_since(written, record.timestamp_ms, "a forged time");
        }
    }
}

/// Of a message that was written between two moments and sent on at that time.
fn assert_held_since((from, to): (f64, f64), sent_ms: i64, what: &str) {
    // In the short form, beside other tests, machine or broker may stand still for a while; a time that is believed makes minutes.
    let late = if is_full() { 1.0 } else { 10.0 };
    let (earliest, latest) = (from + DELAY.as_secs_f64(), to + DELAY.as_secs_f64() + late);
    let sent = sent_ms as f64 / 1000.0;
    // The broker cuts off what is less than a millisecond.
    assert!((earliest - 0.001..latest).contains(&sent), "{what}: sent on {:.3} s after it was written", sent - from);
}

#[test]
fn a_writer_whose_clock_is_wrong_makes_nothing_early_or_late() {
    let world = World::new("writers");
    let by_the_broker = world.topic_with_delay("append", 1);
    let by_the_writer = format!("create-{}", world.id);
    world.kafka.create(&by_the_writer, 1, &[("message.timestamp.type", "LogAppendTime")]);
    world.kafka.create(&format!("{by_the_writer}-delay"), 1, &[]);
    let _delayer = world.delayer(&format!("-t {by_the_broker} -t {by_the_writer} --delay 2s --session-timeout 30s"));
    let write = |topic: &str, seconds_ahead: f64| {
        let clock = world.clock();
        clock.set(seconds_ahead);
        let mut stream = world.start(STREAM, &format!("- -t {topic} --only delay"), &clock.environment());
        stream.tell(format!("{{\"id\":{seconds_ahead}}}"));
        (stream.wait(), stream.log_of("error"))
    };
    for topic in [&by_the_broker, &by_the_writer] {
        is_at_work(&world, topic);
        let written = now();
        for seconds_ahead in [600.0, -600.0] {
            assert_eq!(write(topic, seconds_ahead), (End::Status(0), vec![]));
        }
        let written = (written, now());
        world.eventually("both are sent on", || world.kafka.count(topic) == 3);
        let sent = world.kafka.records(topic);
        assert_eq!([1, 2].map(|i| sent[i].value.as_deref().unwrap()), [r#"{"id":600}"#, r#"{"id":-600}"#]);
        sent[1..].iter().for_each(|record| assert_held_since(written, record.timestamp_ms, topic));
    }
    assert_in_time(&held(&world, &by_the_broker), &by_the_broker);
    // More than the broker takes: nothing is announced, so nothing may be changed.
    let refused = format!(
        "cannot send the delay messages; nothing that they announce was changed: cannot write to topic {by_the_writer}-delay: \
         Kafka did not take the record: InvalidTimestamp (Broker: Invalid timestamp); are the clocks of this machine and of \
         the brokers right?"
    );
    assert_eq!(write(&by_the_writer, 2.0 * HOUR), (End::Status(1), vec![refused]));
}

#[test]
fn a_broker_whose_clock_is_wrong_or_jumps_has_its_messages_held_for_the_delay_all_the_same() {
    let world = World::alone("broker");
    let clock = world.clock();
    clock.set(-HOUR);
    world.services.stop("kafka");
    world.services.start_again_at("kafka", &clock);
    let topic = world.topic_with_delay("products", 1);
    let delayer = world.delayer(&format!("-t {topic} --delay 2s --session-timeout 30s"));
    world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
    // What was there before could be judged by other clocks only.
    world.for_a_while(Duration::from_secs(5), "it has seen the end of the partition", || true);
    for (round, seconds_ahead) in [-HOUR, HOUR].into_iter().enumerate() {
        clock.set(seconds_ahead);
        let ids = 10 * round..10 + 10 * round;
        world.kafka.produce(&format!("{topic}-delay"), ids.clone().map(|id| delay_message(id, now())));
        world.eventually("they are sent on", || world.kafka.count(&topic) == ids.end as i64);
    }
    let told = || {
        let is_that = |line: &&String| line.contains("that of the partition's broker are 3");
        delayer.log_of("warn").iter().filter(is_that).count()
    };
    // On a busy machine what is read late tells nothing of clocks; then a later one does.
    let mut ids = 20..;
    world.eventually("the clocks are told of", || {
        let is_told = told() > 0;
        if !is_told {
            world.kafka.produce(&format!("{topic}-delay"), ids.next().map(|id| delay_message(id, now())));
        }
        is_told
    });
    world.eventually("all are sent on", || world.kafka.count(&topic) == world.kafka.count(&format!("{topic}-delay")));
    assert_in_time(&held(&world, &topic), &topic);
    assert_eq!(told(), 1, "{:?}", delayer.log());
}

/// A topic by whose delay messages the time is as their writer says, ten minutes ago, and which is at work.
fn of_the_past(world: &World, options: &str) -> (String, Process) {
    let topic = format!("past-{}", world.id);
    world.kafka.create(&topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
    world.kafka.create(&format!("{topic}-delay"), 1, &[]);
    let delayer = world.delayer(&format!("-t {topic} --delay 2s --session-timeout 30s {options}"));
    is_at_work(world, &topic);
    (topic, delayer)
}

#[test]
fn a_wrong_time_makes_nothing_early_while_messages_flow_without_a_pause() {
    let world = World::new("past-flow");
    let (topic, _delayer) = of_the_past(&world, "");
    let (flows, each) = (3, 4000);
    let flows: Vec<_> = (0..flows)
        .map(|flow| {
            let messages = (0..each).map(|id| delay_message(flow * each + id + 1, now() - 600.0)).collect();
            world.kafka.flow(&format!("{topic}-delay"), messages, Duration::from_secs(4))
        })
        .collect();
    flows.into_iter().for_each(|flow| flow.join().unwrap());
    world.eventually("all are sent on", || world.kafka.count(&topic) == 1 + 3 * each as i64);
    held(&world, &topic);
}

#[test]
fn a_wrong_time_makes_nothing_early_that_is_read_again_after_messages_that_were_refused() {
    let world = World::new("past-again");
    let (topic, delayer) = of_the_past(&world, "-X linger.ms=100");
    world.kafka.set(&topic, &[("max.message.bytes", "1000")]);
    // One of them goes, and compression makes three no smaller than that.
    let large = |id: usize| {
        let padding: Vec<u64> = (0..30).map(|_| rand::random()).collect();
        value(format!("{{\"payload\": {{\"id\":{id},\"p\":{padding:?}}}, \"created_at\": {:.3}}}", now() - 600.0))
    };
    world.kafka.produce(&format!("{topic}-delay"), (1..=3).map(large));
    world.for_a_while(DELAY * 3 / 4, "they wait", || true);
    world.kafka.produce(&format!("{topic}-delay"), (4..=9).map(|id| delay_message(id, now() - 600.0)));
    world.eventually("all are sent on", || world.kafka.count(&topic) == 10);
    assert!(!delayer.says(&["halted"]), "{:?}", delayer.log());
    let (made, sent) = (world.kafka.records(&format!("{topic}-delay")), world.kafka.records(&topic));
    let held: Vec<_> = made.iter().zip(&sent).map(|(made, sent)| sent.timestamp_ms - made.timestamp_ms).collect();
    assert!(held.iter().all(|millis| *millis >= DELAY.as_millis() as i64), "{held:?}");
    // The refused ones go one after the other; the first is that of the start.
    assert_in_time(&held[4..], &topic);
}

#[test]
fn of_messages_that_flow_hardly_any_is_late() {
    const A_SECOND: u64 = 200;
    let world = World::new("lateness");
    let seconds = if is_full() { 10 } else { 3 };
    let delayers = [("right", 0.0), ("ahead", HOUR)].map(|(name, seconds_ahead)| {
        let (topic, clock) = (world.topic_with_delay(name, 1), world.clock());
        clock.set(seconds_ahead);
        let delayer = delayer(&world, &topic, &clock);
        is_at_work(&world, &topic);
        (topic, delayer)
    });
    let flows = delayers.each_ref().map(|(topic, _)| {
        let messages = (1..=A_SECOND * seconds).map(|id| delay_message(id as usize, now())).collect();
        world.kafka.flow(&format!("{topic}-delay"), messages, Duration::from_secs(seconds))
    });
    for flow in flows {
        flow.join().unwrap();
    }
    for (topic, _) in &delayers {
        world.eventually("all are sent on", || world.kafka.count(topic) as u64 == 1 + A_SECOND * seconds);
        let mut late: Vec<_> = held(&world, topic).iter().map(|millis| millis - DELAY.as_millis() as i64).collect();
        late.sort();
        // The nearest rank, counted from 1.
        let percentile = |p: usize| late[(late.len() * p).div_ceil(100) - 1];
        let (median, p99, most) = (percentile(50), percentile(99), percentile(100));
        eprintln!("{topic}: {} messages late by {median} ms (median), {p99} ms (p99), {most} ms (most)", late.len());
        assert!(!is_full() || p99 <= 50, "late by {p99} ms (p99)");
    }
}
