//! The judgement: settings in, findings out.

use std::time::Duration;

use humantime::format_duration;

use super::Pair;
use super::finding::{Commands, Finding, Hazard};
use crate::kafka::settings::{Settings, TopicSettings};
use crate::topic::Topic;

/// For how long whoever reads a topic may be away without a loss.
pub(super) const OUTAGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Kafka's own default of retention.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// By how much the clock of a writer may be wrong.
const CLOCK: Duration = Duration::from_secs(60 * 60);

/// What is wrong with one topic, and with its delay topic. A topic that does not exist is not judged.
pub fn findings(pair: &Pair, settings: &Settings, commands: &Commands<'_>) -> Vec<Finding> {
    let on = |topic| Some(On { topic, settings: settings.topics.get(topic)?, brokers: &settings.brokers, commands });
    let topic = on(&pair.topic);
    let delay_topic = pair.delay.as_ref().and_then(|(topic, delay)| Some((on(topic)?, *delay)));
    let mut found = vec![];
    if let Some(topic) = &topic {
        found.extend([topic.name(), topic.outage(), topic.compaction()].into_iter().flatten());
        found.extend(topic.of_any());
    }
    if let Some((delay_topic, delay)) = &delay_topic {
        found.extend(delay_topic.of_delay(*delay).into_iter().flatten());
        found.extend(delay_topic.of_any());
    }
    if let (Some(topic), Some((delay_topic, _))) = (&topic, &delay_topic) {
        found.extend(topic.beside(delay_topic).into_iter().flatten());
    }
    found
}

/// What we may not read, if there is such a topic.
pub fn unreadable(settings: &Settings) -> Option<Finding> {
    let topics = settings.topics.iter().filter(|(_, settings)| !settings.is_readable());
    let topics: Vec<_> = topics.map(|(topic, _)| topic.as_str()).collect();
    (!topics.is_empty()).then(|| Finding {
        hazard: Hazard::Unreadable,
        what: format!("cannot read the settings of topic {}, so they are not checked", topics.join(", ")),
        mend: "give the login the right DescribeConfigs on it".to_owned(),
    })
}

/// One topic under judgement.
pub(super) struct On<'a> {
    pub topic: &'a Topic,
    pub settings: &'a TopicSettings,
    pub brokers: &'a [i32],
    pub commands: &'a Commands<'a>,
}

impl On<'_> {
    /// What can be wrong with a topic of either kind.
    fn of_any(&self) -> impl Iterator<Item = Finding> {
        [self.retention_bytes(), self.timestamp_limits()].into_iter().chain(self.of_replicas()).flatten()
    }

    pub fn finding(&self, hazard: Hazard, has: String, mend: String) -> Finding {
        Finding { hazard, what: format!("topic {} has {has}", self.topic), mend }
    }

    /// A finding about the setting `name`, which goes away with `better`, such as `retention.bytes=-1`.
    pub fn setting(&self, hazard: Hazard, name: &str, better: &str, why: &str) -> Option<Finding> {
        let value = self.settings.text(name)?;
        let time = self.settings.time(name).filter(|time| name.ends_with(".ms") && *time < Duration::MAX);
        let time = time.map(|time| format!(" ({})", format_duration(time))).unwrap_or_default();
        let mend = self.commands.set(self.topic, better);
        Some(self.finding(hazard, format!("{name}={value}{time}{why}"), mend))
    }

    /// The command that gives each partition so many replicas.
    pub fn replicate(&self, count: usize) -> String {
        self.commands.replicas(self.topic, &self.settings.replicas, self.brokers, count)
    }

    fn name(&self) -> Option<Finding> {
        let base = self.topic.as_str().strip_suffix("-delay")?;
        Some(Finding {
            hazard: Hazard::DelayName,
            what: format!(
                "topic {} is named as the delay topic of {base}: its messages wait for ksync-delayer",
                self.topic
            ),
            mend: format!("say -t {base}, if that is meant"),
        })
    }

    fn outage(&self) -> Option<Finding> {
        self.settings.retention().filter(|retention| *retention < OUTAGE)?;
        let why = ": a consumer that is away for longer loses records";
        self.setting(Hazard::Retention, "retention.ms", &retained(WEEK), why)
    }

    fn compaction(&self) -> Option<Finding> {
        self.settings.has_policy("compact").filter(|has| *has)?;
        let why = ": of the records with one key only the last may be read, which is enough only where a handler looks \
                   the record up by that key";
        self.setting(Hazard::Compaction, "cleanup.policy", "cleanup.policy=delete", why)
    }

    fn retention_bytes(&self) -> Option<Finding> {
        self.settings.number("retention.bytes").filter(|bytes| *bytes >= 0 && self.settings.deletes())?;
        let why = ": in a burst of records those that nobody has read yet are deleted";
        self.setting(Hazard::RetentionBytes, "retention.bytes", "retention.bytes=-1", why)
    }

    fn timestamp_limits(&self) -> Option<Finding> {
        self.settings.text("message.timestamp.type").filter(|from| *from == "CreateTime")?;
        let names = ["message.timestamp.before.max.ms", "message.timestamp.after.max.ms"];
        let name = names.into_iter().find(|name| self.settings.time(name).is_some_and(|limit| limit < CLOCK))?;
        let better = names.map(|name| format!("{name}={}", CLOCK.as_millis())).join(",");
        let why = ": records of a writer whose clock is wrong by more are refused";
        self.setting(Hazard::TimestampLimits, name, &better, why)
    }
}

/// The setting that keeps records for so long.
pub(super) fn retained(time: Duration) -> String {
    format!("retention.ms={}", time.as_millis())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A topic and its delay topic on three brokers, with nothing wrong.
    pub fn sound() -> Settings {
        let topic = |values: &[(&str, &str)]| TopicSettings {
            replicas: vec![vec![1, 2, 3], vec![2, 3, 1]],
            values: values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let both = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", "1048588"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("message.timestamp.before.max.ms", "9223372036854775807"),
            ("message.timestamp.after.max.ms", "3600000"),
        ];
        let with = |clock| topic(&[&both[..], &[("message.timestamp.type", clock)]].concat());
        let topics = [("products", with("CreateTime")), ("products-delay", with("LogAppendTime"))];
        let topics = topics.into_iter().map(|(topic, settings)| (topic.parse().unwrap(), settings));
        Settings { brokers: vec![1, 2, 3], topics: topics.collect() }
    }

    /// Changes a setting, `name=value`.
    pub fn set(settings: &mut Settings, topic: &str, setting: &str) {
        let topic = settings.topics.get_mut(&topic.parse().unwrap()).unwrap();
        let (name, value) = setting.split_once('=').unwrap();
        topic.values.insert(name.to_owned(), value.to_owned());
    }

    /// What is found by a delayer with a delay of 5 minutes.
    pub fn found(settings: &Settings) -> Vec<String> {
        let delay = Some(("products-delay".parse().unwrap(), Duration::from_secs(300)));
        let pair = Pair { topic: "products".parse().unwrap(), delay };
        let found = findings(&pair, settings, &Commands { bootstrap: "a:1" });
        found.iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn each_setting_is_judged_by_itself() {
        let (t, d) = ("products", "products-delay");
        let week = "retention.ms=604800000";
        for (topic, setting, found_of_it, better) in [
            (
                d,
                "retention.ms=600000",
                " (10m), less than a day and the delay of 5m: a delayer that is away for a day loses messages \
                 (delay-outage)",
                week,
            ),
            (
                d,
                "retention.ms=599999",
                " (9m 59s 999ms), less than twice the delay of 5m: a delay message may be deleted before it is sent on \
                 (delay-retention)",
                week,
            ),
            (
                d,
                "cleanup.policy=delete,compact",
                ": a delay message is deleted once there is a later one with its key, though their changes may differ \
                 (delay-compaction)",
                "cleanup.policy=delete",
            ),
            (
                d,
                "message.timestamp.type=CreateTime",
                ": when a delay message is due, and when it is deleted, goes by the clock of its writer (delay-timestamps)",
                "message.timestamp.type=LogAppendTime",
            ),
            (
                t,
                "max.message.bytes=1048587",
                ", less than 1048588 of products-delay: a delay message that is larger can never be sent on (message-size)",
                "max.message.bytes=1048588",
            ),
            (
                t,
                "retention.ms=86399000",
                " (23h 59m 59s): a consumer that is away for longer loses records (retention)",
                week,
            ),
            (
                t,
                "cleanup.policy=compact",
                ": of the records with one key only the last may be read, which is enough only where a handler looks the \
                 record up by that key (compaction)",
                "cleanup.policy=delete",
            ),
            (
                t,
                "retention.bytes=0",
                ": in a burst of records those that nobody has read yet are deleted (retention-bytes)",
                "retention.bytes=-1",
            ),
            (
                d,
                "unclean.leader.election.enable=true",
                ": a replica that lacks records may become the leader, and they are lost (unclean-election)",
                "unclean.leader.election.enable=false",
            ),
            (
                t,
                "message.timestamp.after.max.ms=1000",
                " (1s): records of a writer whose clock is wrong by more are refused (timestamp-limits)",
                "message.timestamp.before.max.ms=3600000,message.timestamp.after.max.ms=3600000",
            ),
        ] {
            let mut settings = sound();
            set(&mut settings, topic, setting);
            let mend = format!("kafka-configs.sh --bootstrap-server a:1 --alter --topic {topic} --add-config {better}");
            assert_eq!(found(&settings), [format!("topic {topic} has {setting}{found_of_it}; mend it with: {mend}")]);
        }
    }

    #[test]
    fn what_is_enough_or_unknown_is_not_found() {
        for (topic, setting) in [
            ("products", "retention.ms=86400000"),
            ("products", "retention.ms=-1"),
            ("products", "max.message.bytes=1048589"),
            ("products-delay", "retention.ms=86700000"),
            ("products-delay", "retention.ms=-1"),
            ("products-delay", "retention.ms=much"),
            // It counts for the writer's clock only.
            ("products-delay", "message.timestamp.after.max.ms=1000"),
        ] {
            let mut settings = sound();
            set(&mut settings, topic, setting);
            assert_eq!(found(&settings), [""; 0], "{setting} of {topic}");
        }
        let mut unknown = sound();
        unknown.topics.values_mut().for_each(|topic| topic.values = BTreeMap::new());
        assert_eq!(found(&unknown), [""; 0]);
        // What is never deleted has no use for retention.
        let mut kept = sound();
        set(&mut kept, "products", "cleanup.policy=");
        set(&mut kept, "products", "retention.ms=1");
        assert_eq!(found(&kept), [""; 0]);
    }

    #[test]
    fn a_topic_with_fewer_partitions_than_the_other_is_to_have_more() {
        let mut settings = sound();
        settings.topics.get_mut(&"products".parse().unwrap()).unwrap().replicas.pop();
        let expected = "topic products-delay has 2 partitions and products has 1: a delay message goes on to the partition \
                        with its own number (partition-count); mend it with: kafka-topics.sh --bootstrap-server a:1 --alter \
                        --topic products --partitions 2";
        assert_eq!(found(&settings), [expected]);
    }

    #[test]
    fn a_topic_that_does_not_exist_is_not_judged_and_one_that_tells_nothing_is_named() {
        let mut settings = sound();
        settings.topics.remove(&"products".parse().unwrap());
        assert_eq!((found(&settings), unreadable(&settings)), (vec![], None));
        settings.topics.values_mut().for_each(|topic| topic.values = BTreeMap::new());
        let expected = "cannot read the settings of topic products-delay, so they are not checked (unreadable); give the \
                        login the right DescribeConfigs on it";
        assert_eq!(unreadable(&settings).unwrap().to_string(), expected);
    }

    #[test]
    fn a_consumer_of_a_delay_topic_is_warned() {
        let pair = Pair { topic: "products-delay".parse().unwrap(), delay: None };
        let found = findings(&pair, &sound(), &Commands { bootstrap: "a:1" });
        let expected = "topic products-delay is named as the delay topic of products: its messages wait for ksync-delayer \
                        (delay-name); say -t products, if that is meant";
        assert_eq!(found.iter().map(|finding| finding.to_string()).collect::<Vec<_>>(), [expected]);
    }
}
