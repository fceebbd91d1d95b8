//! Brokers that refuse, hold back or take away: transactions, too few replicas, messages that became too large.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use rustix::process::{Signal, kill_process};

use crate::consume::ids;
use crate::settings_warned::guarded_broker;
use crate::support::{End, World, is_full, value};

/// A delay message with this payload.
pub fn delay_message(payload: &str) -> String {
    format!(r#"{{"payload": {payload}, "created_at": 1700000000.000}}"#)
}

#[test]
fn records_of_an_aborted_transaction_are_not_given_and_the_offset_passes_its_marker() {
    let world = World::new("aborted");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    world.kafka.transaction(&products, [value("1"), value("2")]).abort();
    world.kafka.transaction(&products, [value("3"), value("4")]).commit();
    world.kafka.produce(&products, [value("5")]);
    world.kafka.transaction(&products, [value("6")]).abort();
    let seat = world.seat(&products, 0, "indexer");
    for _ in 0..2 {
        // Six records and three markers; the second time there is nothing to do.
        assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
        assert_eq!((seat.offset(), handler.payloads()), (Some(9), ["3", "4", "5"].map(str::to_owned).to_vec()));
    }
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.kafka.transaction(&products, [value("7")]).abort();
    world.eventually("nothing is left to be read", || seat.offset() == Some(11));
    world.kafka.produce(&products, [value("8")]);
    world.eventually("the next one is done", || seat.offset() == Some(12));
    assert_eq!((handler.payloads().last().unwrap().as_str(), consumer.log_of("warn")), ("8", vec![]));
}

#[test]
fn the_offset_of_a_delayer_passes_what_nobody_is_given_behind_the_last_message() {
    let world = World::new("aborted-delay");
    let products = world.topic_with_delay("products", 1);
    let delay_topic = format!("{products}-delay");
    let delayer = world.delayer(&format!("-t {products} --delay 1s"));
    let seat = world.seat(&delay_topic, 0, "delayer");
    let message = |id: i32| value(delay_message(&id.to_string()));
    world.kafka.transaction(&delay_topic, [message(1)]).abort();
    world.eventually("the first ones are none", || seat.offset() == Some(2));
    world.kafka.produce(&delay_topic, [message(2)]);
    world.kafka.transaction(&delay_topic, [message(3)]).commit();
    world.kafka.transaction(&delay_topic, [message(4)]).abort();
    world.eventually("nothing is left to be read", || seat.offset() == Some(7));
    let sent: Vec<_> = world.kafka.records(&products).into_iter().filter_map(|record| record.value).collect();
    assert_eq!((sent, seat.state()["offset"].as_i64()), (vec!["2".to_owned(), "3".to_owned()], Some(7)));
    drop(delayer);
}

#[test]
fn an_open_transaction_holds_back_what_follows_it_and_nothing_is_skipped() {
    let world = World::new("open");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    world.kafka.produce(&products, [value("1")]);
    let open = world.kafka.transaction(&products, [value("2"), value("3")]);
    world.kafka.produce(&products, [value("4")]);
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the first is done", || seat.offset() == Some(1));
    world.for_a_while(Duration::from_secs(1), "nothing more is given", || handler.payloads() == ["1"]);
    open.commit();
    // The marker too.
    world.eventually("all are done", || seat.offset() == Some(5));
    assert_eq!(
        (handler.payloads(), consumer.log_of("warn")),
        (["1", "2", "3", "4"].map(str::to_owned).to_vec(), vec![])
    );
}

#[test]
fn a_marker_that_a_later_leader_has_written_is_no_sign_of_a_log_that_was_cut_off() {
    let world = World::alone("marker");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let open = world.kafka.transaction(&products, [value("1"), value("2")]);
    world.services.stop("kafka");
    world.services.start_again("kafka");
    open.commit();
    let seat = world.seat(&products, 0, "indexer");
    for _ in 0..2 {
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!((consumer.wait(), consumer.log_of("warn")), (End::Status(0), vec![]));
        assert_eq!((seat.offset(), handler.payloads()), (Some(3), ["1", "2"].map(str::to_owned).to_vec()));
    }
    world.kafka.produce(&products, [value("3")]);
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    assert_eq!(handler.payloads(), ["1", "2", "3"]);
}

#[test]
fn with_too_few_replicas_no_action_runs_and_the_delayer_keeps_its_offset_until_they_are_back() {
    let world = World::alone_with("too-few", 3);
    let [products, orders, carts, dead] =
        ["products", "orders", "carts", "dead"].map(|topic| format!("{topic}-{}", world.id));
    let clock = ("message.timestamp.type", "LogAppendTime");
    for topic in [&products, &format!("{products}-delay"), &orders, &carts, &dead] {
        world.kafka.create_on(topic, &[&[1, 2]], &[("min.insync.replicas", "2"), clock]);
    }
    let (delay_topic, carts_delay) = (format!("{orders}-delay"), format!("{carts}-delay"));
    for topic in [&delay_topic, &carts_delay] {
        world.kafka.create_on(topic, &[&[1, 3]], &[("min.insync.replicas", "2"), clock]);
    }
    let (acted, action) = (world.dir.join("acted"), world.script("cat > /dev/null; touch acted"));
    let mut stream = world.stream(&format!("- -t {products} -- {action}"));
    stream.tell("{\"id\":1}\n");
    world.eventually("it is at work", || world.kafka.count(&products) == 1);
    fs::remove_file(&acted).unwrap();
    world.end_broker(world.services.pid("kafka-2"), Signal::TERM);
    for topic in [&products, &orders] {
        world.leads(topic, 0, (1, &[1]));
    }

    let delayer = world.delayer(&format!("-t {orders} --delay 500ms --session-timeout 10s"));
    world.kafka.produce(&delay_topic, (1..=3).map(|id| value(delay_message(&id.to_string()))));
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("the delayer leads", || delayer.says(&["leading from offset 0"]));
    // What cannot be put aside holds no end up.
    let options =
        format!("-t {carts} --delay 500ms --session-timeout 10s --on-invalid dead-letter --dead-letter={dead}");
    let (mut first, aside) = (world.delayer(&options), world.seat(&carts_delay, 0, "delayer"));
    world.kafka.produce(&carts_delay, [value("{")]);
    world.eventually("the message waits to be put aside", || {
        first.ask();
        first.says(&["offset 0; waits for Kafka"])
    });
    first.signal(Signal::TERM);
    assert_eq!((first.wait(), aside.candidates(), aside.offset()), (End::Status(0), vec![], Some(0)));
    // It tries to send them for a minute.
    stream.tell("{\"id\":2}\n");
    world.for_a_while(Duration::from_secs(2), "nothing is done", || {
        seat.offset() == Some(0) && world.kafka.count(&orders) == 0 && !acted.exists()
    });
    if is_full() {
        // Longer than both try to send a message.
        world.within(Duration::from_secs(90), "ksync-stream gives up", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(75));
        let text = format!(
            "cannot send the delay messages; nothing that they announce was changed: cannot write to topic {products}-delay"
        );
        assert!(stream.log_of("error")[0].starts_with(&text), "{:?}", stream.log());
        let text = format!("cannot send messages from offset 0 on to {orders}");
        world.within(Duration::from_secs(90), "the delayer begins anew", || delayer.says(&[&text, "trying again"]));
        // Nor is anything announced that was not done.
        let left = (seat.offset(), acted.exists(), world.kafka.count(&products));
        assert_eq!(left, (Some(0), false, 1));
    }
    let _broker = world.start_broker("kafka-2", "");
    world.within(Duration::from_secs(60), "all are sent on", || seat.offset() == Some(3));
    let sent: Vec<_> = world.kafka.records(&orders).into_iter().filter_map(|record| record.value).collect();
    assert_eq!(sent, ["1", "2", "3"]);
    assert_eq!(world.kafka.count(&dead), 0);
    let _next = world.delayer(&options);
    world.eventually("the next one puts it aside", || aside.offset() == Some(1));
    assert_eq!((world.kafka.count(&dead), world.kafka.count(&carts)), (1, 0));
    if !is_full() {
        assert_eq!(stream.wait(), End::Status(0));
        assert!(acted.exists());
    }
}

#[test]
fn a_partition_that_had_no_leader_is_led_as_soon_as_its_broker_is_back() {
    let world = World::alone_with("no-leader", 3);
    let products = format!("products-{}", world.id);
    world.kafka.create_on(&products, &[&[2]], &[]);
    world.kafka.produce(&products, [value("1")]);
    world.end_broker(world.services.pid("kafka-2"), Signal::TERM);
    let consumer = world.consume(&format!("-t {products} -n indexer -- cat"));
    world.eventually("it has heard so", || consumer.says(&["cannot read where the log", "no broker leads it"]));
    let _broker = world.start_broker("kafka-2", "");
    world.leads(&products, 0, (2, &[2]));
    world.within(Duration::from_secs(30), "it leads", || consumer.says(&["leading from offset"]));
}

#[test]
fn delay_messages_that_were_long_on_their_way_are_sent_again_before_the_action_begins() {
    let world = World::alone_with("long-on-their-way", 3);
    let products = format!("products-{}", world.id);
    let delay_topic = format!("{products}-delay");
    for topic in [&products, &delay_topic] {
        let settings = [("min.insync.replicas", "2"), ("message.timestamp.type", "LogAppendTime")];
        world.kafka.create_on(topic, &[&[1, 3], &[1, 2]], &settings);
    }
    let action = world.script("cat > /dev/null; touch acted");
    let mut stream = world.stream(&format!("- -t {products} --delay 6s -X linger.ms=500 -- {action}"));
    let acted = world.dir.join("acted");
    stream.tell("{\"id\":20}\n");
    world.eventually("it is at work", || world.kafka.count(&products) == 1);
    fs::remove_file(&acted).unwrap();
    let count = || world.kafka.records(&delay_topic).into_iter().filter(|record| record.partition == 0).count();
    let before = count();
    // A replica of the other partition.
    let broker = world.services.pid("kafka-2");
    kill_process(broker, Signal::STOP).unwrap();
    stream.tell((0..20).map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>());
    world.eventually("those of one partition are there", || count() > before);
    let first = count();
    world.for_a_while(Duration::from_secs(4), "those of the other are waited for", || {
        !acted.exists() && count() == first
    });
    kill_process(broker, Signal::CONT).unwrap();
    assert_eq!(stream.wait(), End::Status(0));
    assert!(first < before + 20 && count() > first, "{first} came first, then {}", count());
    let acted = acted.metadata().unwrap().modified().unwrap();
    let acted_ms = acted.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut latest = HashMap::new();
    let records = world.kafka.records(&delay_topic);
    for record in records.into_iter().filter(|record| record.key.as_deref() != Some("20")) {
        let known = latest.entry(record.key).or_insert(0);
        *known = record.timestamp_ms.max(*known);
    }
    assert_eq!(latest.len(), 20);
    let oldest_ms = acted_ms - latest.values().min().unwrap();
    assert!(oldest_ms < 6000, "the action ended {oldest_ms} ms after a record's last delay message");
}

#[test]
fn a_message_that_became_too_large_halts_its_partition_of_the_delayer_and_no_other() {
    let world = World::new("too-large");
    let products = world.topic_with_delay("products", 2);
    let delay_topic = format!("{products}-delay");
    let delayer = world.delayer(&format!("-t {products} --delay 2s"));
    world.eventually("both are led", || {
        (0..2).all(|p| delayer.says(&[&format!("{delay_topic}/{p} as delayer: leading from offset 0")]))
    });
    world.kafka.set(&products, &[("max.message.bytes", "1000")]);
    // Such that compression does not make it small.
    let large: Vec<u64> = (0..500).map(|_| rand::random()).collect();
    let large = format!("{large:?}");
    let messages = [delay_message("1"), delay_message(&large), delay_message("2")];
    world.kafka.produce(&delay_topic, messages.iter().map(|message| value(message).to(0)));
    world.kafka.produce(&delay_topic, [value(delay_message("3")).to(1)]);
    let halted =
        format!("{delay_topic}/0 as delayer: halted at offset 1: cannot send the message of offset 1 on to {products}");
    world.eventually("it halts", || delayer.says(&["error: ", &halted, "Message size too large"]));
    let (first, other) = (world.seat(&delay_topic, 0, "delayer"), world.seat(&delay_topic, 1, "delayer"));
    world.eventually("the other partition goes on", || other.offset() == Some(1));
    assert_eq!(first.offset(), Some(1));

    world.kafka.set(&products, &[("max.message.bytes", "1048588")]);
    drop(delayer);
    let _mended = world.delayer(&format!("-t {products} --delay 2s"));
    world.eventually("all are sent on", || first.offset() == Some(3));
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|record| record.value.unwrap()).collect();
    assert!(sent.iter().map(|value| value.replace(' ', "")).eq(["1", &large.replace(' ', ""), "2", "3"]), "{sent:?}");
}

#[test]
fn a_right_that_is_taken_away_is_told_and_the_work_goes_on_once_it_is_back() {
    let world = World::alone("rights");
    let _broker = guarded_broker(&world);
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(1..=3));
    world.eventually("the first are done", || seat.offset() == Some(3));
    let orders = world.topic_with_delay("orders", 1);
    let delayer = world.delayer(&format!("-t {orders} --delay 100ms"));
    let delayed = world.seat(&format!("{orders}-delay"), 0, "delayer");
    let delay = |id: &str| world.kafka.produce(&format!("{orders}-delay"), [value(delay_message(id))]);
    delay("1");
    world.eventually("the first is sent on", || delayed.offset() == Some(1));

    let tool = format!("kafka-acls.sh --bootstrap-server {} --add", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    let give = |topic: &str, rights: &[&str]| {
        let rights: String = rights.iter().map(|right| format!(" --operation {right}")).collect();
        world.shell(&format!("{tool} --topic {topic} --allow-principal User:ANONYMOUS{rights}"));
    };
    // With these a topic has no others. What is told of the second one holds for the first, too.
    give(&orders, &["Describe", "Read"]);
    give(&products, &["Describe", "Write"]);
    let told = format!("warn: {products}/0: cannot read: TopicAuthorizationFailed");
    world.eventually("it is told", || consumer.says(&[&told]));
    delay("2");
    let told = format!("halted at offset 1: cannot send the message of offset 1 on to {orders}: ");
    world.within(Duration::from_secs(60), "it is told of writing, too", || {
        delayer.says(&["error: ", &told, "TopicAuthorizationFailed"])
    });
    world.kafka.produce(&products, ids(4..=6));
    world.for_a_while(Duration::from_millis(500), "nothing more is read or sent on", || {
        (seat.offset(), delayed.offset()) == (Some(3), Some(1)) && world.kafka.count(&orders) == 1
    });
    give(&products, &["Read"]);
    world.eventually("all are done", || seat.offset() == Some(6));
    let lines = consumer.log_of("warn");
    assert_eq!(lines.len(), 1, "{lines:?}");
    if is_full() {
        give(&orders, &["Write"]);
        // What is halted is tried again after a minute.
        world.within(Duration::from_secs(75), "the rest is sent on", || delayed.offset() == Some(2));
        let sent: Vec<_> = world.kafka.records(&orders).into_iter().filter_map(|record| record.value).collect();
        assert_eq!(sent, ["1", "2"]);
    }
}
