//! What topics there are and what is set for them, and making those that are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use log::{info, warn};
use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::Instant;

use super::settings::{Settings, TopicSettings};
use super::{Aside, ClientLog, Cluster, is_transient};
use crate::exit::Exit;
use crate::sys;
use crate::topic::Topic;

/// How long the broker that answered last is waited for before another one is asked, or twice as long as it took then.
const SOON: Duration = Duration::from_millis(500);

/// How long a topic may not be known that exists: each broker hears of a new one by itself.
const MOMENT: Duration = Duration::from_secs(3);

/// How many partitions and replicas new topics get, `3:2`; nothing means what the broker has as its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewTopics {
    pub partitions: Option<i32>,
    pub replication: Option<i32>,
}

impl FromStr for NewTopics {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<NewTopics> {
        let number = |text: &str| match text.parse::<i32>() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => bail!("'{text}' is not PARTITIONS[:REPLICATION], for example 3:2"),
        };
        match text.split_once(':') {
            None if text.is_empty() => Ok(NewTopics::default()),
            None => Ok(NewTopics { partitions: number(text)?, replication: None }),
            Some((partitions, replication)) => {
                Ok(NewTopics { partitions: number(partitions)?, replication: number(replication)? })
            }
        }
    }
}

/// How long a broker may not know of a topic that another one knows.
const FRESH: Duration = Duration::from_secs(1);
/// How long to wait before a broker is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// How long an answer about a topic may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Where a topic lies.
struct Layout {
    /// The ids of all brokers.
    brokers: Vec<i32>,
    /// Those that have each partition.
    replicas: Vec<Vec<i32>>,
}

/// A client that asks about the cluster.
#[derive(Clone)]
pub struct Admin {
    client: Aside<AdminClient<ClientLog>>,
    cluster: Cluster,
    /// `None` while no broker has answered.
    last: Arc<Mutex<Option<Last>>>,
}

/// The broker that has answered last, and how long it took.
struct Last {
    broker: i32,
    took: Duration,
}

impl Admin {
    /// Fails where the cluster's properties do not fit together; connects later.
    pub fn new(cluster: &Cluster) -> Result<Admin> {
        Ok(Admin {
            client: cluster.client(&cluster.config(), cluster.quiet_log())?,
            cluster: cluster.clone(),
            last: Arc::default(),
        })
    }

    pub(super) fn bootstrap(&self) -> &str {
        &self.cluster.bootstrap
    }

    /// Asks for the topics' ids, and blocks until it is answered.
    ///
    /// Left to itself librdkafka asks the broker that it takes for the controller. While that one is away it tries to reach
    /// it without any pause, which takes a whole core; so one is asked that has answered.
    pub(super) fn topic_ids(&self, topics: &[Topic], timeout: Duration) -> Result<sys::TopicIds, KafkaError> {
        let (client, begun) = (self.client.inner(), Instant::now());
        let left = || timeout.saturating_sub(begun.elapsed());
        let ask = |broker: Option<i32>, patience: Duration| -> Result<sys::TopicIds, KafkaError> {
            let asked = Instant::now();
            let ids = sys::topic_ids(client, broker, topics, patience)?;
            self.note_answer(broker, asked);
            Ok(ids)
        };
        // Where it is away, too, it is not to be asked a second time.
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Last { broker, took }) = last {
            let answer = ask(Some(broker), SOON.max(2 * took).min(timeout));
            // One that is slow may have had all of the time.
            if answer.is_ok() || left() < SOON {
                return answer;
            }
        }
        let asked = Instant::now();
        let metadata = client.fetch_metadata(topics.first().map(Topic::as_str), left())?;
        let broker = Some(metadata.orig_broker_id()).filter(|id| *id >= 0);
        // Where too little time is left for the ids, it is asked for them at once the next time.
        self.note_answer(broker, asked);
        ask(broker, left().max(SOON))
    }

    fn note_answer(&self, broker: Option<i32>, asked: Instant) {
        let last = broker.map(|broker| Last { broker, took: asked.elapsed() });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// How many partitions the topic has; `None` where it does not exist.
    ///
    /// Waits for a broker up to `patience`, with a line at 10 s, then every 10 s, after a minute every minute; then
    /// fails with status 75. Cancelling it is safe.
    pub async fn partitions(&self, topic: &Topic, patience: Duration) -> Result<Option<i32>> {
        let start = Instant::now();
        let mut next_line = Duration::from_secs(9);
        let mut refusal = None;
        loop {
            let error = match self.layout(topic).await {
                Ok(layout) => return Ok(layout.map(|layout| layout.replicas.len() as i32)),
                Err(error) if error.downcast_ref().is_some_and(is_transient) => error,
                Err(error) => return Err(Exit::Misconfigured.because(error)).context(self.context(topic)),
            };
            // librdkafka does not tell the same each time.
            refusal = sys::refusal(self.client.inner()).or(refusal);
            let error = match &refusal {
                Some(why) => error.context(why.clone()),
                None => error,
            };
            let waited = start.elapsed();
            if waited >= patience {
                return Err(Exit::Again.because(error)).context(self.context(topic));
            }
            if waited >= next_line {
                warn!("{}: {error:#}; trying again", self.context(topic));
                next_line = waited + Duration::from_secs(if waited.as_secs() < 60 { 9 } else { 57 });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn context(&self, topic: &Topic) -> String {
        format!("cannot ask {} about topic {topic}", self.cluster)
    }

    /// `None` where the topic does not exist.
    async fn layout(&self, topic: &Topic) -> Result<Option<Layout>> {
        let (client, name) = (self.client.clone(), topic.clone());
        let asked = move || {
            client.inner().fetch_metadata(Some(name.as_str()), TIMEOUT).map(|metadata| {
                let brokers = metadata.brokers().iter().map(|broker| broker.id()).collect();
                metadata.topics().first().map(|topic| {
                    let replicas = topic.partitions().iter().map(|partition| partition.replicas().to_vec()).collect();
                    (topic.error().map(RDKafkaErrorCode::from), Layout { brokers, replicas })
                })
            })
        };
        match tokio::task::spawn_blocking(asked).await?? {
            Some((None, layout)) => Ok(Some(layout)),
            None | Some((Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic), _)) => {
                Ok(None)
            }
            Some((Some(error), _)) => Err(anyhow!(KafkaError::MetadataFetch(error))),
        }
    }

    /// Whether records are taken from within the topic's log; `None` where its settings may not be read.
    ///
    /// Fails where no broker answers within 3 s.
    pub async fn is_compacted(&self, topic: &Topic) -> Result<Option<bool>> {
        match self.settings(&BTreeSet::from([topic.clone()]), Duration::ZERO).await {
            Ok(mut settings) => {
                let settings = settings.topics.remove(topic);
                Ok(settings.with_context(|| format!("the broker does not know topic {topic}"))?.has_policy("compact"))
            }
            Err(error) if error.downcast_ref().is_some_and(is_transient) => Err(error),
            // To be refused is to be told nothing.
            Err(_) => Ok(None),
        }
    }

    /// Which cluster it is; `None` where the brokers do not tell.
    pub async fn cluster_id(&self) -> Option<String> {
        let client = self.client.clone();
        // An error is the end of the runtime.
        tokio::task::spawn_blocking(move || client.inner().fetch_cluster_id(TIMEOUT)).await.ok().flatten()
    }

    /// What is set for those of the topics that exist. Waits for a broker up to `patience`.
    pub(super) async fn settings(&self, topics: &BTreeSet<Topic>, patience: Duration) -> Result<Settings> {
        let begun = Instant::now();
        loop {
            let settings = self.settings_now(topics).await;
            let is_final = match &settings {
                Ok(settings) => settings.are_all_of(topics) || begun.elapsed() >= FRESH,
                Err(error) => !error.downcast_ref().is_some_and(is_transient) || begun.elapsed() >= patience,
            };
            if is_final {
                return settings;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn settings_now(&self, topics: &BTreeSet<Topic>) -> Result<Settings> {
        let read = async { tokio::try_join!(self.layouts(topics), self.describe(topics)) };
        let names: Vec<_> = topics.iter().map(Topic::as_str).collect();
        let context = || format!("cannot read the settings of topic {}", names.join(", "));
        let (layouts, mut described) = read.await.with_context(context)?;
        let mut settings = Settings::default();
        for (topic, Layout { brokers, replicas }) in layouts {
            settings.brokers = brokers;
            let values = described.remove(topic.as_str()).unwrap_or_default();
            settings.topics.insert(topic, TopicSettings { replicas, values });
        }
        settings.brokers.sort_unstable();
        Ok(settings)
    }

    /// Of those that exist.
    async fn layouts(&self, topics: &BTreeSet<Topic>) -> Result<Vec<(Topic, Layout)>> {
        let mut layouts = vec![];
        for topic in topics {
            layouts.extend(self.layout(topic).await?.map(|layout| (topic.clone(), layout)));
        }
        Ok(layouts)
    }

    /// The settings of each topic by their names. There are none of a topic that does not exist, nor of one whose settings
    /// we may not read: rdkafka tells neither.
    async fn describe(&self, topics: &BTreeSet<Topic>) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
        let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic.as_str())).collect();
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let mut described = BTreeMap::new();
        for resource in self.client.describe_configs(&wanted, &options).await? {
            let resource = resource.map_err(KafkaError::AdminOp)?;
            if let OwnedResourceSpecifier::Topic(topic) = resource.specifier {
                let values = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
                described.insert(topic, values.collect());
            }
        }
        Ok(described)
    }

    /// As [`Admin::partitions`], but a topic that does not exist is made where `create` says so, else it is an error
    /// with status 78.
    pub async fn need(&self, topic: &Topic, create: Option<NewTopics>, patience: Duration) -> Result<i32> {
        // Where it is to be made, that tells whether somebody has made it.
        let moment = if create.is_some() { Duration::ZERO } else { MOMENT };
        if let Some(partitions) = self.heard_of(topic, moment, patience).await? {
            return Ok(partitions);
        }
        let Some(new) = create else {
            let error = anyhow!("topic {topic} does not exist; make it, or let --create-topics do it");
            return Err(Exit::Misconfigured.because(error));
        };
        self.create(topic, new).await.with_context(|| format!("cannot make topic {topic}"))?;
        match self.heard_of(topic, Duration::from_secs(10), patience).await? {
            Some(partitions) => {
                info!("made topic {topic} with {partitions} partitions");
                Ok(partitions)
            }
            None => Err(Exit::Again.because(anyhow!("topic {topic} was made, but no broker knows of it yet"))),
        }
    }

    /// As [`Admin::partitions`], but one that does not exist may come to be known within `moment` of the first answer.
    async fn heard_of(&self, topic: &Topic, moment: Duration, patience: Duration) -> Result<Option<i32>> {
        let mut answered = None;
        loop {
            let partitions = self.partitions(topic, patience).await?;
            if partitions.is_some() || answered.get_or_insert_with(Instant::now).elapsed() >= moment {
                return Ok(partitions);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create(&self, topic: &Topic, new: NewTopics) -> Result<()> {
        let replication = TopicReplication::Fixed(new.replication.unwrap_or(-1));
        let mut wanted = NewTopic::new(topic.as_str(), new.partitions.unwrap_or(-1), replication);
        if topic.as_str().ends_with("-delay") {
            // The broker's clock says when a delay message was made, whatever its writer's clock says.
            wanted = wanted.set("message.timestamp.type", "LogAppendTime");
        }
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let answers = self.client.create_topics([&wanted], &options).await;
        match answers.map_err(|error| Exit::Again.because(error))?.pop() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) => Ok(()),
            Some(Err((_, error))) => Err(Exit::Misconfigured.because(anyhow!(KafkaError::AdminOp(error)))),
            None => Err(anyhow!("the broker gave no answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_new_topics_are_read() {
        let new = |partitions, replication| NewTopics { partitions, replication };
        assert_eq!("".parse::<NewTopics>().unwrap(), new(None, None));
        assert_eq!("3".parse::<NewTopics>().unwrap(), new(Some(3), None));
        assert_eq!("3:2".parse::<NewTopics>().unwrap(), new(Some(3), Some(2)));
        for wrong in ["0", "a", "3:", ":2", "-1"] {
            assert!(
                wrong.parse::<NewTopics>().unwrap_err().to_string().contains("PARTITIONS[:REPLICATION]"),
                "{wrong}"
            );
        }
    }
}
