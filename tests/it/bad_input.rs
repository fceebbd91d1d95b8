//! Bad input: the text names the thing and how to mend it, the exit status says whose turn it is, nothing is lost.

use std::time::Duration;

use rustix::process::Signal;

use crate::consume::ids;
use crate::stream::delayed;
use crate::support::{End, World, block_on, primaries, value};

#[test]
fn a_topic_that_does_not_exist_is_named() {
    let world = World::new("unknown");
    let handler = world.handler("");
    let missing = format!("missing-{}", world.id);
    for (mut process, topic) in [
        (world.consume(&format!("-t {missing} -n indexer -- {handler}")), missing.clone()),
        (world.delayer(&format!("-t {missing}")), format!("{missing}-delay")),
        (world.stream_lines(&format!("- -t {missing}"), "{}\n"), missing.clone()),
        (world.stream_lines(&format!("- -t {missing} --only delay"), "{}\n"), format!("{missing}-delay")),
    ] {
        assert_eq!(process.wait(), End::Status(78));
        let text = format!("topic {topic} does not exist; make it, or let --create-topics do it");
        assert_eq!(process.log_of("error"), [text]);
    }
}

#[test]
fn a_topic_that_does_not_exist_is_not_made_where_brokers_make_whatever_they_are_asked_for() {
    let world = World::alone("auto-create");
    world.services.stop("kafka");
    // It is Kafka's default.
    let _broker = world.start_broker("kafka-1", "auto.create.topics.enable=true\n");
    let [missing, made] = ["missing", "made"].map(|name| format!("{name}-{}", world.id));
    world.eventually("another client has it make one", || {
        world.kafka.brokers(&made) == Some(1) && world.kafka.partitions(&made) == 1
    });
    let handler = world.handler("");
    for mut process in [
        world.consume(&format!("-t {missing} -n indexer -- {handler}")),
        world.delayer(&format!("-t {missing}")),
        world.stream_lines(&format!("- -t {missing}"), "{}\n"),
        world.stream_lines(&format!("- -t {missing} --only delay"), "{}\n"),
    ] {
        assert_eq!(process.wait(), End::Status(78), "{:?}", process.log());
    }
    // By Kafka's own tool, which makes none.
    let (list, server) = (world.file("topics"), world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    world.shell(&format!("kafka-topics.sh --bootstrap-server {server} --list > {}", list.display()));
    let topics = std::fs::read_to_string(&list).unwrap();
    assert_eq!(topics.lines().filter(|topic| topic.contains(&world.id)).collect::<Vec<_>>(), [&made]);
}

#[test]
fn topics_that_do_not_exist_are_made_where_that_is_wanted() {
    let world = World::new("create");
    let topic = format!("products-{}", world.id);
    let action = world.script("cat > /dev/null");
    let command = format!("- -t {topic} --create-topics=3:1 -- {action}");
    assert_eq!(world.stream_lines(&command, "{\"id\":1}\n").wait(), End::Status(0));
    assert_eq!((world.kafka.partitions(&topic), world.kafka.partitions(&format!("{topic}-delay"))), (3, 3));
}

#[test]
fn a_broker_that_does_not_answer_is_named_waited_for_by_daemons_and_ends_other_runs_with_status_75() {
    let world = World::new("no-broker");
    let handler = world.handler("");
    let nowhere = "-b 127.0.0.1:9 -t products";
    let stream = world.stream_lines(&format!("- {nowhere}"), "{}\n");
    let bounded = world.consume(&format!("{nowhere} -n indexer -e -- {handler}"));
    let mut daemons = [world.consume(&format!("{nowhere} -n indexer -- {handler}")), world.delayer(nowhere)];
    for daemon in &mut daemons {
        world.eventually("it says what it cannot reach", || daemon.says(&["warn: ", "127.0.0.1:9", "trying again"]));
    }
    for daemon in &mut daemons {
        assert!(daemon.is_running());
        daemon.signal(Signal::TERM);
        // It does not wait for an answer, for which it has 5 s.
        world.within(Duration::from_millis(4800), "it has ended", || !daemon.is_running());
        assert_eq!(daemon.wait(), End::Status(0));
    }
    for mut process in [stream, bounded] {
        assert_eq!(process.wait(), End::Status(75));
        assert!(process.says(&["warn: ", "127.0.0.1:9", "trying again"]));
        let errors = process.log_of("error");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("cannot ask Kafka at 127.0.0.1:9 about topic products: "), "{errors:?}");
    }
}

#[test]
fn a_zookeeper_that_does_not_answer_is_named_and_waited_for() {
    let world = World::new("no-zookeeper");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    let nowhere = format!("--zookeeper 127.0.0.1:9/shop -t {products}");
    let mut daemons = [world.consume(&format!("{nowhere} -n indexer -- {handler}")), world.delayer(&nowhere)];
    for daemon in &mut daemons {
        world.eventually("it says what it cannot reach", || {
            daemon.says(&["warn: ", "cannot reach ZooKeeper at 127.0.0.1:9/shop", "; trying again"])
        });
        assert!(daemon.is_running());
        daemon.signal(Signal::TERM);
        // It does not wait for an answer, for which it has 5 s.
        world.within(Duration::from_millis(4800), "it has ended", || !daemon.is_running());
        assert_eq!(daemon.wait(), End::Status(0));
    }
    // A bounded run does not wait for ever, and does not take this for another leader.
    let mut bounded = world.consume(&format!("{nowhere} -n indexer -e --wait 1s -- {handler}"));
    assert_eq!(bounded.wait(), End::Status(75));
    assert!(bounded.says(&["error: ", "ZooKeeper", "127.0.0.1:9/shop"]));
}

#[test]
fn a_command_that_cannot_be_started_is_named_before_anything_is_read() {
    let world = World::new("command");
    let products = world.topic("products", 1);
    let text = world.file("text");
    std::fs::write(&text, "").unwrap();
    for (command, why) in [
        ("./missing", "cannot start './missing': No such file or directory (os error 2); is the path right?"),
        ("ksync-missing", "cannot start 'ksync-missing': No such file or directory (os error 2); is it on the PATH?"),
        (
            text.to_str().unwrap(),
            &format!("cannot start '{}': Permission denied (os error 13); is it executable?", text.display()),
        ),
    ] {
        let consumer = world.consume(&format!("-t {products} -n indexer -- {command}"));
        let stream = world.stream(&format!("- -t {products} -- {command}"));
        for mut process in [consumer, stream] {
            assert_eq!(process.wait(), End::Status(78), "{command}");
            assert_eq!(process.log_of("error"), [why], "{command}");
        }
    }
}

#[test]
fn a_line_that_is_not_json_is_told_by_its_number_and_nothing_of_its_chunk_is_sent() {
    let world = World::new("not-json");
    let products = world.topic_with_delay("products", 1);
    let lines = "{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n{\"id\":4\n{\"id\":5}\n";
    let script = world.script("cat > /dev/null");
    for (topic, action) in [(products.clone(), ""), (world.topic_with_delay("orders", 1), &*format!("-- {script}"))] {
        let mut stream = world.stream_lines(&format!("- -t {topic} --chunk-size 2 {action}"), lines);
        assert_eq!(stream.wait(), End::Status(1));
        let errors = stream.log_of("error");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("line 4 of stdin is not JSON: "), "{errors:?}");
        let sent: Vec<_> = world.kafka.records(&topic).iter().map(|record| record.line()).collect();
        assert_eq!(sent, [r#"1|{"id":1}"#, r#"2|{"id":2}"#], "{action}");
        let covered = if action.is_empty() { vec![] } else { vec![r#"{"id":1}"#, r#"{"id":2}"#] };
        assert_eq!(delayed(&world, &topic), covered, "{action}");
    }
}

#[test]
fn a_key_column_that_does_not_exist_and_a_table_without_a_key_are_named() {
    let world = World::new("no-key");
    let products = world.topic("products", 1);
    for primary in block_on(primaries("bad_key")) {
        block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(9))"));
        block_on(primary.execute("CREATE TABLE log (text VARCHAR(9))"));
        for (source, why) in [
            ("--table products --key nope", "table products has no column 'nope'; its columns are id, name"),
            ("--table log", "table log has no primary key; name the columns of a unique key with --key"),
            ("--table missing", "cannot read table missing: "),
            ("--query 'SELECT id FROM nowhere' --key id", "cannot read the query: "),
        ] {
            let mut stream = world.stream(&format!("-t {products} --database {} {source}", primary.url));
            assert_eq!(stream.wait(), End::Status(78), "{primary:?}: {source}: {:?}", stream.log());
            let errors = stream.log_of("error");
            let is_it = |error: &String| error == why || error.ends_with(why) || error.starts_with(why);
            assert!(errors.len() == 1 && is_it(&errors[0]), "{primary:?}: {source}: {errors:?}");
        }
    }
    assert_eq!(world.kafka.count(&products), 0);
}

#[test]
fn a_wrong_command_line_is_told_with_status_2_before_anything_is_opened() {
    let world = World::new("usage");
    let nowhere = "-b 127.0.0.1:9 -t products";
    let table = "--database sqlite:/nowhere.db --table products";
    for (mut process, why) in [
        (world.stream(nowhere), "nothing to read: name --table or --query, or - for JSON lines on stdin"),
        (
            world.stream(&format!("{nowhere} --table products")),
            "no database is named: set DATABASE_URL, or KSYNC_DATABASE, or --database",
        ),
        (world.stream(&format!("{nowhere} {table} --sql 'UPDATE products SET a = 1'")), "cannot use --sql: "),
        (
            world.stream(&format!("{nowhere} --database postgres://me:Canary@db/shop --table products")),
            "a password in --database would be seen by everybody on this machine; put the URL into DATABASE_URL, or \
             into a file that KSYNC_DATABASE_FILE names",
        ),
        (
            world.stream(&format!("- {nowhere} -X sasl.password=Canary")),
            "the value of sasl.password would be seen by everybody on this machine; put it into a file for -F",
        ),
        (world.consume(&format!("{nowhere} -n indexer")), "<COMMAND>"),
        (world.consume(&format!("{nowhere} -n a/b -- true")), "the name 'a/b' is not one that Kafka takes"),
        (world.delayer(&format!("{nowhere} -X acks=1")), "the property acks cannot be set"),
    ] {
        assert_eq!(process.wait(), End::Status(2), "{why}");
        assert!(process.says(&[why]), "{why}: {:?}", process.log());
        assert!(!process.says(&["Canary"]), "{why}");
    }
}

#[test]
fn a_statement_without_keys_says_what_it_wants() {
    let world = World::new("no-keys");
    let command = "-t products --database sqlite:/nowhere.db --table products --sql 'UPDATE products SET a = 1'";
    let mut stream = world.stream(command);
    assert_eq!(stream.wait(), End::Status(2));
    assert!(stream.says(&["cannot use --sql: ", ":keys"]), "{:?}", stream.log());
}

#[test]
fn a_record_that_is_not_json_halts_its_partition_and_the_others_go_on() {
    let world = World::new("halt");
    let products = world.topic("products", 2);
    world.kafka.produce(&products, [value("1").to(1), value("2").to(1), value("{\"id\":").to(1), value("4").to(1)]);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("the partition halts", || consumer.says(&["error: ", "halted"]));
    world.kafka.produce(&products, ids(1..=3).map(|message| message.to(0)));
    let (zero, one) = (world.seat(&products, 0, "indexer"), world.seat(&products, 1, "indexer"));
    world.eventually("the other partition goes on", || zero.offset() == Some(3));

    assert_eq!(one.offset(), Some(2));
    let errors = consumer.log_of("error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    let begin = format!(
        "{products}/1 as indexer: halted at offset 2: the value at offset 2 cannot be given to the handler: it is not \
         JSON: "
    );
    assert!(errors[0].starts_with(&begin), "{errors:?}");
    assert!(errors[0].ends_with("; mend its writer and let --on-invalid dead-letter put it aside"), "{errors:?}");
    assert!(consumer.is_running());

    let mut bounded = world.consume(&format!("-t {products} -n other -e -- {handler}"));
    assert_eq!(bounded.wait(), End::Status(1));
}

#[test]
fn a_record_that_is_not_json_is_put_aside_byte_for_byte_where_that_is_wanted() {
    let world = World::new("dead");
    let products = world.topic("products", 2);
    let dead = format!("{products}-indexer-dead");
    world.kafka.create(&dead, 1, &[]);
    world.kafka.produce(
        &products,
        [
            value("1").to(1),
            value(b"{\"id\":\xff\n").key(b"\x00k").header("a", "b").to(1),
            value("").to(1),
            value("4").to(1),
        ],
    );
    let handler = world.handler("");
    let options = "--on-invalid dead-letter --dead-letter";
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(3));
    assert_eq!(handler.payloads(), ["1", "4"]);
    assert_eq!(world.seat(&products, 1, "indexer").offset(), Some(4));

    let letters = world.kafka.records(&dead);
    let whole: Vec<_> = letters.iter().map(|letter| (letter.key.as_deref(), letter.value.as_deref())).collect();
    assert_eq!(whole, [(Some("\0k"), Some(r#"{\"id\":\xff\n"#)), (None, Some(""))]);
    let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let added = |offset: &str, error: &str| {
        vec![
            of("ksync.topic", &products),
            of("ksync.partition", "1"),
            of("ksync.offset", offset),
            of("ksync.name", "indexer"),
            of("ksync.error", error),
        ]
    };
    let mut first = letters[0].headers.clone();
    let error = first.pop().unwrap();
    assert!(error.0 == "ksync.error" && error.1.starts_with("it is not JSON: "), "{error:?}");
    assert_eq!(first, [vec![of("a", "b")], added("1", "")[..4].to_vec()].concat());
    assert_eq!(letters[1].headers, added("2", "it is empty"));
}

#[test]
fn input_without_a_line_break_ends_before_it_takes_all_memory() {
    let world = World::new("endless-line");
    let products = world.topic("products", 1);
    let stream = env!("CARGO_BIN_EXE_ksync-stream");
    let mut piped = world.start("sh", &format!("-c \"yes | tr -d '\\n' | {stream} - -t {products}\""), &[]);
    assert_eq!(piped.wait(), End::Status(1), "{:?}", piped.log());
    assert_eq!(piped.log_of("error"), ["line 1 of stdin is longer than 134217728 bytes"]);
    assert_eq!(world.kafka.count(&products), 0);
}

#[test]
fn letters_that_are_too_large_together_are_put_aside_one_by_one() {
    let world = World::new("dead-large");
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    let random = || (0..60).map(|_| rand::random::<char>()).collect::<String>();
    let values: Vec<_> = (0..5).map(|_| format!("no JSON: {}", random())).collect();
    let handler = world.handler("");
    let options = format!("--on-invalid dead-letter --dead-letter={dead} --batch-wait 1s");
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    world.kafka.set(&dead, &[("max.message.bytes", "900")]);
    world.kafka.produce(&products, values.iter().map(value));
    world.eventually("all are passed", || seat.offset() == Some(5));
    let letters: Vec<_> = world.kafka.records(&dead).into_iter().map(|letter| letter.value.unwrap()).collect();
    assert_eq!(letters, values);
    consumer.signal(Signal::TERM);
    assert_eq!((consumer.wait(), consumer.says(&["halted"])), (End::Status(0), false));
}

#[test]
fn a_delay_message_that_is_none_halts_its_partition_and_the_others_go_on() {
    let world = World::new("delayer-halt");
    let products = world.topic_with_delay("products", 2);
    let delay_topic = format!("{products}-delay");
    let good = |payload: u32| value(format!("{{\"payload\": {payload}, \"created_at\": 1700000000.000}}"));
    world.kafka.produce(&delay_topic, [good(1).to(1), value("{\"id\":").to(1), good(3).to(1)]);
    let delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    world.eventually("the partition halts", || delayer.says(&["error: ", "halted"]));
    world.kafka.produce(&delay_topic, [good(5).to(0)]);
    let (zero, one) = (world.seat(&delay_topic, 0, "delayer"), world.seat(&delay_topic, 1, "delayer"));
    world.eventually("the other partition goes on", || zero.offset() == Some(1));

    assert_eq!(one.offset(), Some(1));
    let errors = delayer.log_of("error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    let begin = format!(
        "{delay_topic}/1 as delayer: halted at offset 1: the message at offset 1 cannot be sent on: it is not a delay \
         message: "
    );
    assert!(errors[0].starts_with(&begin), "{errors:?}");
    assert!(errors[0].ends_with("; mend its writer and let --on-invalid dead-letter put it aside"), "{errors:?}");
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|r| (r.partition, r.value.unwrap())).collect();
    assert_eq!(sent, [(0, "5".to_owned()), (1, "1".to_owned())]);
}

#[test]
fn a_delay_message_that_is_none_is_put_aside_where_that_is_wanted() {
    let world = World::new("delayer-dead");
    let products = world.topic_with_delay("products", 1);
    let (delay_topic, dead) = (format!("{products}-delay"), format!("{products}-bad"));
    world.kafka.create(&dead, 1, &[]);
    let good = |payload: u32| value(format!("{{\"payload\": {payload}, \"created_at\": 1700000000.000}}"));
    world.kafka.produce(
        &delay_topic,
        [good(1), value("{\"id\":\n").key("k").header("a", "b"), value(r#"{"id":7}"#), Default::default(), good(5)],
    );
    let command = format!("-t {products} --delay 100ms --on-invalid dead-letter --dead-letter={dead}");
    let _delayer = world.delayer(&command);
    world.eventually("all is done", || world.seat(&delay_topic, 0, "delayer").offset() == Some(5));
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(sent, ["1", "5"]);
    let letters = world.kafka.records(&dead);
    let values: Vec<_> = letters.iter().map(|letter| letter.value.as_deref()).collect();
    assert_eq!(values, [Some("{\"id\":\n"), Some(r#"{"id":7}"#), None]);
    assert_eq!(letters[0].key.as_deref(), Some("k"));
    let named: Vec<&str> = letters[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(named, ["a", "ksync.topic", "ksync.partition", "ksync.offset", "ksync.name", "ksync.error"]);
    assert_eq!(letters[0].headers[1].1, delay_topic);
}
