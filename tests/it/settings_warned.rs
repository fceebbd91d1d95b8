//! Settings of topics and their cluster that are warned about, and that the command in the text mends them.

use crate::settings::DELAY_MESSAGE;
use crate::support::{End, Process, World, value};

#[test]
fn what_may_lose_records_on_one_broker_is_a_warning_and_its_command_mends_it() {
    let world = World::new("warned");
    let products = world.pair(
        "products",
        [
            &[
                ("retention.ms", "3600000"),
                ("retention.bytes", "1000000000"),
                ("cleanup.policy", "compact,delete"),
                ("unclean.leader.election.enable", "true"),
                ("message.timestamp.before.max.ms", "60000"),
                ("min.insync.replicas", "1"),
            ],
            &[("retention.ms", "3600000"), ("message.timestamp.type", "CreateTime")],
        ],
    );
    let delay_topic = format!("{products}-delay");
    let warning =
        |topic: &str, what: &str, better: &str| format!("topic {topic} has {what}; {}", world.configs(topic, better));
    let of_topic = [
        warning(
            &products,
            "retention.ms=3600000 (1h): a consumer that is away for longer loses records (retention)",
            "retention.ms=604800000",
        ),
        warning(
            &products,
            "cleanup.policy=compact,delete: of the records with one key only the last may be read, which is enough only \
             where a handler looks the record up by that key (compaction)",
            "cleanup.policy=delete",
        ),
        warning(
            &products,
            "retention.bytes=1000000000: in a burst of records those that nobody has read yet are deleted (retention-bytes)",
            "retention.bytes=-1",
        ),
        warning(
            &products,
            "message.timestamp.before.max.ms=60000 (1m): records of a writer whose clock is wrong by more are refused \
             (timestamp-limits)",
            "message.timestamp.before.max.ms=3600000,message.timestamp.after.max.ms=3600000",
        ),
        warning(
            &products,
            "unclean.leader.election.enable=true: a replica that lacks records may become the leader, and they are lost \
             (unclean-election)",
            "unclean.leader.election.enable=false",
        ),
    ];
    let of_delay_topic = [
        warning(
            &delay_topic,
            "retention.ms=3600000 (1h), less than a day and the delay of 5m: a delayer that is away for a day loses \
             messages (delay-outage)",
            "retention.ms=604800000",
        ),
        warning(
            &delay_topic,
            "message.timestamp.type=CreateTime: when a delay message is due, and when it is deleted, goes by the clock of \
             its writer (delay-timestamps)",
            "message.timestamp.type=LogAppendTime",
        ),
    ];
    let of_both = [&of_topic[..], &of_delay_topic].concat();
    let handler = world.handler("");
    let run = |instant: &[String], both: &[String]| {
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        let mut reindex = world.stream_lines(&format!("- -t {products}"), "{\"id\":1}\n");
        let mut update = world.stream_lines(&format!("- -t {products} --only delay"), "{\"id\":1}\n");
        for (process, warnings) in [(&mut consumer, instant), (&mut reindex, instant), (&mut update, both)] {
            assert_eq!((process.wait(), process.log_of("warn")), (End::Status(0), warnings.to_vec()));
        }
        let delayer = world.delayer(&format!("-t {products}"));
        world.eventually("it leads", || delayer.says(&["leading from offset"]));
        assert_eq!(delayer.log_of("warn"), both);
    };
    run(&of_topic, &of_both);
    world.mend(&of_both);
    run(&[], &[]);
}

#[test]
fn who_has_nothing_to_do_with_the_delay_topic_does_not_look_at_it() {
    let world = World::new("instant-only");
    let products = world.pair("products", [&[], &[("retention.ms", "1000"), ("cleanup.policy", "compact,delete")]]);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    let mut reindex = world.stream_lines(&format!("- -t {products}"), "{\"id\":1}\n");
    let mut instant = world.stream_lines(&format!("- -t {products} --only instant -- cat"), "{\"id\":1}\n");
    for process in [&mut consumer, &mut reindex, &mut instant] {
        assert_eq!((process.wait(), process.log_of("warn")), (End::Status(0), vec![]));
    }
}

#[test]
fn a_consumer_of_a_delay_topic_is_warned_and_goes_on() {
    let world = World::new("of-delay");
    let products = world.pair("products", [&[], &[]]);
    world.kafka.produce(&format!("{products}-delay"), [value(DELAY_MESSAGE)]);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products}-delay,{products}-delay -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let text = format!(
        "topic {products}-delay is named as the delay topic of {products}: its messages wait for ksync-delayer (delay-name); \
         say -t {products}, if that is meant"
    );
    assert_eq!((consumer.log_of("warn"), handler.payloads()), (vec![text], vec![DELAY_MESSAGE.to_owned()]));
}

#[test]
fn replicas_are_judged_where_there_are_several_brokers_and_the_command_mends_them() {
    let world = World::alone_with("brokers", 3);
    let create = |name: &str, replicas, least| {
        world.kafka.create_replicated(
            &format!("{name}-{}", world.id),
            (2, replicas),
            &[("min.insync.replicas", least)],
        );
        format!("{name}-{}", world.id)
    };
    let (one, few, all) = (create("one", 1, "1"), create("few", 3, "1"), create("all", 3, "3"));
    let good = create("good", 3, "2");
    let topics = format!("-t {one} -t {few} -t {all} -t {good}");
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("{topics} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let warnings = consumer.log_of("warn");
    let (what, mend): (Vec<_>, Vec<_>) = warnings.iter().map(|text| text.split_once("; mend").unwrap()).unzip();
    let expected = [
        format!("topic {one} has 1 replica on 3 brokers: with that broker all of its records are lost (replication)"),
        format!(
            "topic {few} has min.insync.replicas=1: what one broker has acknowledged alone is lost with it (min-insync)"
        ),
        format!(
            "topic {all} has min.insync.replicas=3 of 3: nothing can be written while one of its brokers is away \
             (min-insync-all)"
        ),
    ];
    assert_eq!(what, expected);
    assert!(mend[0].contains("kafka-reassign-partitions.sh"), "{mend:?}");

    world.mend(&warnings);
    world.set(&one, "min.insync.replicas=2");
    let runs = || {
        let mut consumer = world.consume(&format!("{topics} -n indexer -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0));
        consumer.log_of("warn")
    };
    world.eventually("nothing is wrong any more", || runs().is_empty());
    // Only those that go on tell of it.
    let daemon = world.consume(&format!("{topics} -n indexer -- {handler}"));
    let told =
        format!("ZooKeeper at {} is one server, beside 3 brokers: while it is away nobody works", world.zookeeper());
    world.eventually("ZooKeeper is judged, too", || daemon.says(&["warn: ", &told]));
}

/// Starts the only broker of this world anew, such that it keeps to access control lists where there are some.
pub fn guarded_broker(world: &World) -> Process {
    let (jars, file) =
        (world.services.get("KSYNC_KAFKA_CLASSPATH"), world.services.dir.join("kafka-1/server.properties"));
    world.services.stop("kafka");
    let settings = std::fs::read_to_string(&file).unwrap();
    let authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
    let guard = format!("authorizer.class.name={authorizer}\nallow.everyone.if.no.acl.found=true\n");
    std::fs::write(&file, settings + &guard).unwrap();
    world.start("java", &format!("-Xmx512m -cp '{jars}' kafka.Kafka {}", file.display()), &[])
}

#[test]
fn settings_that_may_not_be_read_are_one_warning_and_hold_nothing_up() {
    let world = World::alone("forbidden");
    let _broker = guarded_broker(&world);
    let products = world.pair("products", [&[], &[("retention.ms", "1000")]]);
    let tool = format!("kafka-acls.sh --bootstrap-server {} --add", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    let topics = format!("--topic {products} --topic {products}-delay");
    world.shell(&format!(
        "{tool} --allow-principal User:ANONYMOUS --operation All {topics} && \
         {tool} --deny-principal User:ANONYMOUS --operation DescribeConfigs {topics}"
    ));
    let mut stream = world.stream_lines(&format!("- -t {products} --only delay"), "{\"id\":1}\n");
    let warning = format!(
        "cannot read the settings of topic {products}, {products}-delay, so they are not checked (unreadable); give the \
         login the right DescribeConfigs on it"
    );
    assert_eq!((stream.wait(), stream.log_of("warn")), (End::Status(0), vec![warning]));
    assert_eq!(world.kafka.count(&format!("{products}-delay")), 1);
}
