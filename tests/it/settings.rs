//! Settings of topics and their cluster: what is refused, what is warned about, and that the command in the text mends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ksync::election::{Election, ZooKeeper};
use ksync::exit::Exit;
use ksync::kafka::{self, Admin, Check, Cluster, Hazard, Pair, Reader};
use ksync::lead::{Board, End as WorkEnd, Held, Leading, Lookout, Work};
use ksync::shutdown::Shutdown;
use ksync::topic::{Name, Topic};
use tokio::sync::{OnceCell, watch};

use crate::support::{End, Process, World, block_on, log_lines, value};

const DELAY_MESSAGE: &str = r#"{"payload": {"id":1}, "created_at": 1700000000.000}"#;

impl World {
    /// Makes a topic and its delay topic with these settings besides the usual ones.
    fn pair(&self, name: &str, settings: [&[(&str, &str)]; 2]) -> String {
        let topic = format!("{name}-{}", self.id);
        self.kafka.create(&topic, 1, settings[0]);
        let clock = [("message.timestamp.type", "LogAppendTime")];
        self.kafka.create(&format!("{topic}-delay"), 1, &[&clock, settings[1]].concat());
        topic
    }

    fn configs(&self, topic: &str, setting: &str) -> String {
        let tool = format!("kafka-configs.sh --bootstrap-server {}", self.services.get("KSYNC_BOOTSTRAP_SERVER"));
        format!("mend it with: {tool} --alter --topic {topic} --add-config {setting}")
    }

    /// Runs what the texts say.
    fn mend(&self, texts: &[String]) {
        let commands = texts.iter().map(|text| text.split_once("mend it with: ").expect("there is a command").1);
        self.shell(&commands.collect::<Vec<_>>().join(" && "));
    }
}

/// What is refused, under each name: topics that have it, and the text.
fn refused(world: &World) -> Vec<(&'static str, String, String)> {
    let retention = world.pair("retention", [&[], &[("retention.ms", "599999")]]);
    let compaction = world.pair("compaction", [&[], &[("cleanup.policy", "compact,delete")]]);
    let size = world.pair("size", [&[("max.message.bytes", "1000000")], &[]]);
    let count = world.pair("count", [&[], &[]]);
    world.kafka.add_partitions(&format!("{count}-delay"), 3);
    let bootstrap = world.services.get("KSYNC_BOOTSTRAP_SERVER");
    let grow =
        format!("mend it with: kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {count} --partitions 3");
    let text = |name: &str, what: String, mend: String| {
        format!("topic {what} ({name}); accept it by --allow-unsafe {name}, or {mend}")
    };
    let delay = format!("{retention}-delay");
    let what = format!(
        "{delay} has retention.ms=599999 (9m 59s 999ms), less than twice the delay of 5m: a delay message may be deleted \
         before it is sent on"
    );
    let retention_text = text("delay-retention", what, world.configs(&delay, "retention.ms=604800000"));
    let delay = format!("{compaction}-delay");
    let what = format!(
        "{delay} has cleanup.policy=compact,delete: a delay message is deleted once there is a later one with its key, \
         though their changes may differ"
    );
    let compaction_text = text("delay-compaction", what, world.configs(&delay, "cleanup.policy=delete"));
    let what = format!(
        "{count}-delay has 3 partitions and {count} has 1: a delay message goes on to the partition with its own number"
    );
    let count_text = text("partition-count", what, grow);
    let what = format!(
        "{size} has max.message.bytes=1000000, less than 1048588 of {size}-delay: a delay message that is larger can never \
         be sent on"
    );
    let size_text = text("message-size", what, world.configs(&size, "max.message.bytes=1048588"));
    vec![
        ("delay-retention", retention, retention_text),
        ("delay-compaction", compaction, compaction_text),
        ("partition-count", count, count_text),
        ("message-size", size, size_text),
    ]
}

#[test]
fn a_refused_setting_ends_the_start_before_any_work_and_its_command_mends_it() {
    let world = World::new("refused");
    let refused = refused(&world);
    for (_, topic, text) in &refused {
        // With a key, without which a compacted topic takes nothing.
        world.kafka.produce(&format!("{topic}-delay"), [value(DELAY_MESSAGE).key("1")]);
        let action = world.script("cat > /dev/null; touch acted");
        let mut delayer = world.delayer(&format!("-t {topic}"));
        let mut streams = ["--only delay".to_owned(), format!("-- {action}")]
            .map(|how| world.stream_lines(&format!("- -t {topic} {how}"), "{\"id\":1}\n"));
        for process in [&mut delayer].into_iter().chain(&mut streams) {
            assert_eq!((process.wait(), process.log_of("error")), (End::Status(78), vec![text.clone()]));
        }
        assert_eq!(world.kafka.count(topic) + world.kafka.count(&format!("{topic}-delay")), 1, "{text}");
        let seat = world.seat(&format!("{topic}-delay"), 0, "delayer");
        assert_eq!((seat.candidates(), seat.offset()), (vec![], None), "{text}");
    }
    assert!(!world.dir.join("acted").exists());

    world.mend(&refused.iter().map(|(_, _, text)| text.clone()).collect::<Vec<_>>());
    let topics: Vec<_> = refused.into_iter().map(|(_, topic, _)| topic).collect();
    let delayer = world.delayer(&format!("-t {}", topics.join(",")));
    let leads = |delayer: &Process| delayer.log().iter().filter(|line| line.contains("leading from offset 0")).count();
    world.eventually("all six partitions are led", || leads(&delayer) == 6);
    assert_eq!(delayer.log_of("warn"), [""; 0]);
}

#[test]
fn a_refusal_is_overridden_by_its_own_name_and_is_a_warning_at_each_start() {
    let world = World::new("allowed");
    let refused = refused(&world);
    let names: Vec<_> = refused.iter().map(|(name, _, _)| *name).collect();
    let stream = env!("CARGO_BIN_EXE_ksync-stream");
    for (name, topic, text) in &refused {
        let arguments = format!("- -t {topic} --only delay");
        let (others, all) = (names.iter().filter(|other| *other != name).copied().collect::<Vec<_>>(), names.join(","));
        let mut other = world.stream_lines(&format!("{arguments} --allow-unsafe {}", others.join(",")), "{}\n");
        assert_eq!((other.wait(), other.log_of("error")), (End::Status(78), vec![text.clone()]));

        let warning = text.replace("accept it by", "accepted by").replace(", or mend", "; mend");
        let twice = format!("--allow-unsafe {} --allow-unsafe {name}", others[0]);
        for (option, variable) in [(twice.as_str(), vec![]), ("", vec![("KSYNC_ALLOW_UNSAFE", all.as_str())])] {
            let mut allowed = world.start(stream, &format!("{arguments} {option}"), &variable);
            allowed.tell("{\"id\":1}\n");
            assert_eq!((allowed.wait(), allowed.log_of("warn")), (End::Status(0), vec![warning.clone()]));
        }
    }
    let mut unknown = world.delayer("-t products --allow-unsafe delay-retention,min-insync");
    assert_eq!(unknown.wait(), End::Status(2));
    let names = "delay-retention, delay-compaction, partition-count, message-size";
    assert!(unknown.says(&["'min-insync'", "--allow-unsafe", names]), "{:?}", unknown.log());
}

#[test]
fn all_that_is_refused_is_told_at_once_and_once_for_each_topic() {
    let world = World::new("all-refused");
    let bad: [&[(&str, &str)]; 2] = [
        &[("max.message.bytes", "1000")],
        &[("retention.ms", "1000"), ("cleanup.policy", "compact,delete"), ("message.timestamp.type", "CreateTime")],
    ];
    let (products, orders) = (world.pair("products", bad), world.pair("orders", bad));
    let mut delayer = world.delayer(&format!("-t {products},{orders},{products}"));
    assert_eq!(delayer.wait(), End::Status(78));
    let names = |level: &str| {
        let lines = delayer.log_of(level);
        let name = |line: &String| line.split(" (").last().unwrap().split(')').next().unwrap().to_owned();
        let mut names: Vec<_> = lines.iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(names("warn"), ["delay-timestamps"; 2], "{:?}", delayer.log());
    let refused = ["delay-compaction", "delay-retention", "message-size"];
    assert_eq!(names("error"), refused.map(|name| [name; 2]).concat(), "{:?}", delayer.log());
}

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

/// Leads, and does nothing.
struct Idle;

impl Work for Idle {
    async fn work(&self, _: &mut kafka::Partition, _: &mut Held<'_>, shutdown: &Shutdown) -> WorkEnd {
        shutdown.requested().await;
        WorkEnd::Shutdown
    }
}

/// A delayer of this topic, but for its work, that reads the settings again all the time.
async fn leading(world: &World, topic: &str) -> Leading {
    let cluster = Cluster { bootstrap: world.services.get("KSYNC_BOOTSTRAP_SERVER").to_owned(), properties: vec![] };
    let admin = Admin::new(&cluster).unwrap();
    let (topic, delay_topic) = (topic.parse().unwrap(), format!("{topic}-delay").parse::<Topic>().unwrap());
    let pair = Pair { topic, delay: Some((delay_topic.clone(), Duration::from_secs(300))) };
    let check = Check::start(&admin, vec![pair], vec![Hazard::DelayCompaction]).await.unwrap();
    let zookeeper = ZooKeeper::connect(&world.zookeeper().parse().unwrap(), Duration::from_secs(30));
    let mut lookout = Lookout::new(check, &cluster).unwrap();
    lookout.pause = Duration::from_millis(50);
    Leading {
        reader: Reader::open(&cluster, &admin, "ksync.idle", 1, 1).unwrap(),
        mirror: None,
        admin,
        election: Election::ZooKeeper(zookeeper),
        claimed: OnceCell::new(),
        name: Name::delayer(),
        topics: BTreeMap::from([(delay_topic, BTreeSet::from([0]))]),
        grows: false,
        first_start: None,
        accept_loss: vec![],
        bounded: None,
        spread: None,
        handed: watch::Sender::default(),
        commit_interval: Duration::ZERO,
        board: Board::default(),
        lookout: Some(lookout),
    }
}

#[test]
fn what_changes_while_a_daemon_leads_is_told_once_and_ends_nothing() {
    let world = World::new("again");
    let products = world.pair("products", [&[], &[]]);
    let delay_topic = format!("{products}-delay");
    let told = |level: &str| {
        let lines = log_lines(&format!("{level} topic {products}"));
        lines.iter().map(|line| line.split_once(": ").unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(told("WARN"), [""; 0]);
    let (trigger, shutdown) = Shutdown::new();
    let leading = block_on(leading(&world, &products));
    let daemon = std::thread::spawn(move || block_on(leading.run(Idle, &shutdown)));
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("it leads", || seat.offset() == Some(0));

    world.set(&delay_topic, "retention.ms=1000");
    let short = format!("ERROR topic {delay_topic} has retention.ms=1000 (1s), less than twice the delay of 5m");
    world.eventually("it is told", || told("ERROR") == [short.as_str()]);
    world.set(&delay_topic, "retention.ms=2000");
    let longer = format!("ERROR topic {delay_topic} has retention.ms=2000 (2s), less than twice the delay of 5m");
    world.eventually("what has changed is told", || told("ERROR") == [short.as_str(), longer.as_str()]);
    // An allowed one is a warning here, too.
    world.set(&delay_topic, "cleanup.policy=[compact,delete]");
    let allowed = format!("WARN topic {delay_topic} has cleanup.policy=compact,delete");
    world.eventually("it is told", || told("WARN") == [allowed.as_str()]);
    world.set(&delay_topic, "retention.ms=604800000");
    world.for_a_while(Duration::from_secs(3), "it is looked at meanwhile", || true);
    world.set(&delay_topic, "retention.ms=1000");
    let all = [short.as_str(), longer.as_str(), short.as_str()];
    world.eventually("what was mended meanwhile is told again", || told("ERROR") == all);

    assert_eq!((seat.candidates().len(), told("WARN")), (1, vec![allowed]));
    trigger.request();
    assert_eq!(daemon.join().unwrap().unwrap(), Exit::Done);
}
