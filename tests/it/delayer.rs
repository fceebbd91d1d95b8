//! ksync-delayer: how long it holds what back, in which order, and what happens when it dies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Signal, kill_process};

use crate::support::{End, Message, World, is_full, value};

pub fn delay_message(payload: &str, created_at: f64) -> Message {
    value(format!("{{\"payload\": {payload}, \"created_at\": {created_at:.3}}}"))
}

pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn nothing_is_sent_on_early_and_all_in_order_to_the_same_partition_as_it_was() {
    let world = World::new("due");
    // A busy machine makes messages late, but not each time.
    let is_in_time = (1..=4).any(|attempt| longest_held(&world, attempt) < 3000);
    assert!(is_in_time, "messages are held back too long each time");
}

/// Has messages pass a delayer of 2 s, and gives for how many ms one of them was held back at most.
fn longest_held(world: &World, attempt: u32) -> i64 {
    let products = world.topic_with_delay(&format!("products-{attempt}"), 3);
    let delay_topic = format!("{products}-delay");
    let delayer = world.delayer(&format!("-t {products} --delay 2s"));
    let leads = |p| delayer.says(&[&format!("{delay_topic}/{p} as delayer: leading from offset 0")]);
    world.eventually("it leads", || (0..3).all(leads));
    for round in 0..4 {
        let messages = (0..90).map(|i| {
            let payload = format!("{{ \"id\":{i}, \"round\" : {round} ,\"big\":18446744073709551616}}");
            let message = delay_message(&payload, now()).to(i % 3);
            let message = if i % 2 == 0 { message.key(i.to_string()) } else { message };
            if i % 5 == 0 { message.header("a", i.to_string()).header("a", "again") } else { message }
        });
        world.kafka.produce(&delay_topic, messages);
        world.for_a_while(Duration::from_millis(300), "time passes", || true);
    }
    world.eventually("all are sent on", || world.kafka.count(&products) == 360);

    let (made, sent) = (world.kafka.records(&delay_topic), world.kafka.records(&products));
    let mut longest = 0;
    for (made, sent) in made.iter().zip(&sent) {
        let value = made.value.as_ref().unwrap();
        let payload = value.strip_prefix("{\"payload\": ").unwrap().rsplit_once(", \"created_at\"").unwrap().0;
        assert_eq!(
            (sent.partition, &sent.key, sent.value.as_deref(), &sent.headers),
            (made.partition, &made.key, Some(payload), &made.headers)
        );
        let held = sent.timestamp_ms - made.timestamp_ms;
        // Early never.
        assert!(held >= 2000, "held back for {held} ms: {made:?}");
        longest = longest.max(held);
    }
    assert_eq!(sent.len(), made.len());
    longest
}

#[test]
fn messages_that_come_one_by_one_are_each_sent_on_in_time() {
    let world = World::new("trickle");
    let products = world.topic_with_delay("products", 1);
    let delayer = world.delayer(&format!("-t {products} --delay 2s"));
    world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
    // A busy machine makes messages late, but not each time.
    for round in 1.. {
        for id in 0..8 {
            world.kafka.produce(&format!("{products}-delay"), [delay_message(&id.to_string(), now())]);
            world.for_a_while(Duration::from_millis(400), "time passes", || true);
        }
        world.eventually("all are sent on", || world.kafka.count(&products) == 8 * round);
        let (made, sent) = (world.kafka.records(&format!("{products}-delay")), world.kafka.records(&products));
        let held = made.iter().zip(&sent).map(|(made, sent)| sent.timestamp_ms - made.timestamp_ms);
        let held: Vec<_> = held.skip(8 * (round as usize - 1)).collect();
        assert!(held.iter().all(|held| *held >= 2000), "held back for {held:?} ms");
        if held.iter().all(|held| *held < 3000) {
            break;
        }
        assert!(round < 4, "held back for {held:?} ms");
    }
}

#[test]
fn no_forged_time_lets_a_message_through_early_or_holds_the_partition() {
    let world = World::new("forged");
    let products = world.topic("products", 1);
    // Without the broker's clock: what the writer says is all there is.
    let delay_topic = format!("{products}-delay");
    world.kafka.create(&delay_topic, 1, &[("message.timestamp.type", "CreateTime")]);
    let delayer = world.delayer(&format!("-t {products} --delay 6s"));
    world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
    let begun = now();
    world.kafka.produce(
        &delay_topic,
        [
            delay_message("1", 4_102_444_800.0),
            delay_message("2", 0.0),
            delay_message("3", 4_102_444_800.0),
            value(r#"{"payload": 4}"#),
            value(r#"{"payload": 5, "created_at": "soon"}"#),
            value(r#"{"payload": 6, "created_at": -1e300}"#),
            delay_message("7", 1e300),
        ],
    );
    let written = now();
    world.within(Duration::from_secs(40), "all are sent on", || world.kafka.count(&products) == 7);
    let sent = world.kafka.records(&products);
    let payloads: Vec<_> = sent.iter().map(|record| record.value.as_deref().unwrap()).collect();
    assert_eq!(payloads, ["1", "2", "3", "4", "5", "6", "7"]);
    for record in &sent {
        let sent = record.timestamp_ms as f64 / 1000.0;
        let at = format!("{:?} was sent on {} s after it was written", record.value, sent - begun);
        assert!((begun + 6.0..written + 11.5).contains(&sent), "{at}");
    }
}

#[test]
fn a_forged_past_alone_lets_no_fresh_message_through() {
    let world = World::new("forged-past");
    let products = world.topic("products", 1);
    let delay_topic = format!("{products}-delay");
    world.kafka.create(&delay_topic, 1, &[("message.timestamp.type", "CreateTime")]);
    let delayer = world.delayer(&format!("-t {products} --delay 6s"));
    world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
    world.kafka.produce(&delay_topic, [delay_message("0", now())]);
    world.eventually("it has seen the end of the partition, again and again", || world.kafka.count(&products) == 1);
    let begun = now();
    world.kafka.produce(&delay_topic, [delay_message("1", 0.0)]);
    let written = now();
    world.eventually("it is sent on", || world.kafka.count(&products) == 2);
    let sent = world.kafka.records(&products)[1].timestamp_ms as f64 / 1000.0;
    assert!((begun + 6.0..written + 11.5).contains(&sent), "sent on {} s after it was written", sent - begun);
}

#[test]
fn what_is_overdue_is_sent_on_at_once() {
    let world = World::new("overdue");
    let products = world.topic("products", 1);
    let delay_topic = format!("{products}-delay");
    world.kafka.create(&delay_topic, 1, &[]);
    world.kafka.produce(&delay_topic, [delay_message("1", now() - 400.0), delay_message("2", now() - 350.0)]);
    let _delayer = world.delayer(&format!("-t {products}"));
    world.eventually("both are sent on", || world.kafka.count(&products) == 2);
}

#[test]
fn another_delay_beside_a_delayer_is_refused_and_both_hosts_are_named() {
    let world = World::new("delays");
    let products = world.topic_with_delay("products", 1);
    let first = world.delayer(&format!("-t {products} --delay 70s"));
    world.eventually("it leads", || first.says(&["leading from offset 0"]));
    let mut second = world.delayer(&format!("-t {products} --delay 80s"));
    assert_eq!(second.wait(), End::Status(78));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let text = format!(
        "cannot delay {products}-delay/0 by 80s on {host}: a delayer is at work on {host} that delays it by 70s; give \
         both the same --delay"
    );
    assert_eq!(second.log_of("error"), [text]);
    let mut third = world.delayer(&format!("-t {products} --delay 70s"));
    world.eventually("one with the same delay queues", || {
        world.seat(&format!("{products}-delay"), 0, "delayer").candidates().len() == 2
    });
    assert!(third.is_running());
}

#[test]
fn a_delayer_killed_while_messages_flow_loses_none() {
    let world = World::new("killed");
    let products = world.topic_with_delay("products", 2);
    let delay_topic = format!("{products}-delay");
    let command = format!("-t {products} --delay 1s --session-timeout 4s");
    let mut delayers: Vec<_> = (0..2).map(|_| world.delayer(&command)).collect();
    let seats = [0, 1].map(|partition| world.seat(&delay_topic, partition, "delayer"));
    world.eventually("both queue", || seats.iter().all(|seat| seat.candidates().len() == 2));
    let messages = (0..20_000).map(|id| delay_message(&id.to_string(), now()).to(id % 2));
    // For longer than the sessions of two.
    let flow = world.kafka.flow(&delay_topic, messages.collect(), Duration::from_secs(20));
    world.eventually("messages flow", || world.kafka.count(&products) > 0);
    // Whoever leads: one after the other is killed, and another one comes.
    for _ in 0..2 {
        let before = world.kafka.count(&products);
        delayers.remove(0).kill();
        assert!(before < 20_000, "all were sent on before");
        delayers.push(world.delayer(&command));
        world.eventually("messages flow again", || world.kafka.count(&products) > before);
    }
    flow.join().unwrap();
    let offsets = || (0..2).map(|p| world.seat(&delay_topic, p, "delayer").offset()).collect::<Vec<_>>();
    world.eventually("all is done", || offsets() == [Some(10_000), Some(10_000)]);
    let sent = world.kafka.records(&products);
    for partition in 0..2 {
        let ids = sent.iter().filter(|r| r.partition == partition);
        let ids = ids.map(|record| record.value.as_ref().unwrap().parse::<i32>().unwrap());
        // In their order; what was on its way when one was killed comes once more.
        let mut next = partition;
        for id in ids {
            assert!(id <= next && id % 2 == partition, "{id} in the place of {next}");
            next = next.max(id + 2);
        }
        assert_eq!(next, 20_000 + partition);
    }
}

#[test]
fn sigterm_hands_over_at_once_and_nothing_is_sent_twice() {
    let world = World::new("delayer-term");
    let products = world.topic_with_delay("products", 1);
    let delay_topic = format!("{products}-delay");
    let command = format!("-t {products} --delay 500ms");
    let mut first = world.delayer(&command);
    world.eventually("it leads", || first.says(&["leading from offset 0"]));
    let second = world.delayer(&command);
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("two queue", || seat.candidates().len() == 2);
    world.kafka.produce(&delay_topic, (0..500).map(|id| delay_message(&id.to_string(), now())));
    world.eventually("messages flow", || world.kafka.count(&products) > 0);
    world.kafka.produce(&delay_topic, (500..1000).map(|id| delay_message(&id.to_string(), now())));

    first.signal(Signal::TERM);
    if is_full() {
        world.within(Duration::from_secs(1), "the standby leads", || second.says(&["leading from offset"]));
    }
    assert_eq!(first.wait(), End::Status(0));
    // Long before the session of the first one would have ended, however busy the machine is.
    world.within(Duration::from_secs(5), "the standby leads", || second.says(&["leading from offset"]));
    world.eventually("all are sent on", || seat.offset() == Some(1000));
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(sent, (0..1000).map(|id| id.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_broker_that_stands_still_does_not_make_threads_pile_up() {
    let world = World::alone("threads");
    let products = world.topic_with_delay("products", 2);
    let delayer = world.delayer(&format!("-t {products} --delay 2s"));
    world.kafka.produce(&format!("{products}-delay"), (0..2).map(|i| delay_message("1", now()).to(i)));
    world.eventually("both partitions are led", || world.kafka.count(&products) == 2);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", delayer.pid)).unwrap().count();
    let before = threads();
    kill_process(world.services.pid("kafka-1"), Signal::STOP).unwrap();
    // It asks each partition's leader ten times a second where the log ends, and each question waits for 5 s.
    world.for_a_while(Duration::from_secs(6), "there are few more threads", || threads() <= before + 6);
    kill_process(world.services.pid("kafka-1"), Signal::CONT).unwrap();
}

#[test]
fn a_stream_tells_of_partitions_without_a_delayer_and_refuses_to_begin_where_one_has_a_shorter_delay() {
    let world = World::new("no-delayer");
    let products = world.topic_with_delay("products", 2);
    let delay_topic = format!("{products}-delay");
    let ran = world.file("ran");
    let action = world.script(&format!("cat > /dev/null; touch {}", ran.display()));
    let stream = |options: &str| {
        let mut stream = world.stream_lines(&format!("- -t {products} {options} -- {action}"), "{\"id\":1}\n");
        (stream.wait(), stream.log_of("warn"), stream.log_of("error"))
    };
    let sent = || (ran.exists(), world.kafka.count(&delay_topic));
    let seen = format!("--zookeeper {}", world.zookeeper());
    let nobody = |which: &str| {
        let what = format!("no ksync-delayer is at work for {which} {delay_topic}");
        format!("{what}: delay messages lie there until one is started, with the same --zookeeper")
    };
    let refused = vec![format!("--require-delayer: {}", nobody("topic"))];
    assert_eq!(stream(&format!("{seen} --require-delayer")), (End::Status(78), vec![], refused));
    let away = "--zookeeper 127.0.0.1:9";
    let unseen = format!(
        "cannot see whether a ksync-delayer is at work for topic {delay_topic}: ZooKeeper at 127.0.0.1:9 has not answered \
         within 3s: deadline has elapsed"
    );
    let refused = vec![format!("--require-delayer: {unseen}")];
    assert_eq!(stream(&format!("{away} --require-delayer")), (End::Status(75), vec![], refused));
    let refused = vec!["--require-delayer can see delayers only by --zookeeper".to_owned()];
    assert_eq!(stream("--require-delayer"), (End::Status(2), vec![], refused));
    assert_eq!(sent(), (false, 0));

    let done = |warnings: Vec<String>| (End::Status(0), warnings, Vec::<String>::new());
    assert_eq!(stream(&seen), done(vec![nobody("topic")]));
    assert_eq!(sent(), (true, 1));
    let lag =
        "--max-lag: ZooKeeper at 127.0.0.1:9 has not answered within 3s: deadline has elapsed; going on without it";
    assert_eq!(stream(away), done(vec![unseen, lag.to_owned()]));
    assert_eq!(stream(&format!("{seen} --only instant --require-delayer")), done(vec![]));

    let seat = |partition| world.seat(&delay_topic, partition, "delayer");
    let _first = world.delayer(&format!("-t {products} -p 0 --delay 1h"));
    world.eventually("it leads one", || seat(0).offset().is_some());
    assert_eq!(stream(&seen), done(vec![nobody("partitions 1 of topic")]));
    assert_eq!(stream(&format!("{seen} -p 0 --require-delayer")), done(vec![]));
    let _second = world.delayer(&format!("-t {products} --delay 1h"));
    world.eventually("the other is led, too", || seat(1).offset().is_some());
    assert_eq!(stream(&format!("{seen} --require-delayer")), done(vec![]));

    let before = sent();
    let refused = format!(
        "the delay messages of {delay_topic} are held for 1h and not for 2h: what is committed later than that would be \
         announced to nobody; give the same --delay here and to ksync-delayer"
    );
    assert_eq!(stream(&format!("{seen} --delay 2h")), (End::Status(78), vec![], vec![refused]));
    assert_eq!(sent(), before);
    assert_eq!(stream(&format!("{seen} --delay 30m --require-delayer")), done(vec![]));
}
