//! Settings of topics that are refused: before any work, unless they are allowed by name; the command in the text mends them.

use crate::support::{End, Process, World, value};

pub const DELAY_MESSAGE: &str = r#"{"payload": {"id":1}, "created_at": 1700000000.000}"#;

impl World {
    /// Makes a topic and its delay topic with these settings besides the usual ones.
    pub fn pair(&self, name: &str, settings: [&[(&str, &str)]; 2]) -> String {
        let topic = format!("{name}-{}", self.id);
        self.kafka.create(&topic, 1, settings[0]);
        let clock = [("message.timestamp.type", "LogAppendTime")];
        self.kafka.create(&format!("{topic}-delay"), 1, &[&clock, settings[1]].concat());
        topic
    }

    pub fn configs(&self, topic: &str, setting: &str) -> String {
        let tool = format!("kafka-configs.sh --bootstrap-server {}", self.services.get("KSYNC_BOOTSTRAP_SERVER"));
        format!("mend it with: {tool} --alter --topic {topic} --add-config {setting}")
    }

    /// Runs what the texts say.
    pub fn mend(&self, texts: &[String]) {
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
