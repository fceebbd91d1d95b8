//! What topics there are, and making those that are missing.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use log::{info, warn};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::Instant;

use super::{ClientLog, Cluster, is_transient};
use crate::exit::Exit;
use crate::sys;
use crate::topic::Topic;

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

/// A client that asks about the cluster.
#[derive(Clone)]
pub struct Admin {
    client: Arc<AdminClient<ClientLog>>,
    cluster: Cluster,
}

impl Admin {
    /// Fails where the cluster's properties do not fit together; connects later.
    pub fn new(cluster: &Cluster) -> Result<Admin> {
        let client = cluster.config().create_with_context(cluster.quiet_log());
        let client = client.with_context(|| format!("cannot make a client for {cluster}"));
        Ok(Admin {
            client: Arc::new(client.map_err(|error| Exit::Misconfigured.because(error))?),
            cluster: cluster.clone(),
        })
    }

    /// Sends one request for the topics' ids, and blocks until it is answered.
    pub(super) fn topic_ids(&self, topics: &[Topic], timeout: Duration) -> Result<sys::TopicIds, KafkaError> {
        sys::topic_ids(self.client.inner(), topics, timeout)
    }

    /// How many partitions the topic has; `None` where it does not exist.
    ///
    /// Waits for a broker up to `patience`, with a line at 10 s, then every 10 s, after a minute every minute; then
    /// fails with status 75. Cancelling it is safe.
    pub async fn partitions(&self, topic: &Topic, patience: Duration) -> Result<Option<i32>> {
        let start = Instant::now();
        let mut next_line = Duration::from_secs(9);
        loop {
            let error = match self.try_partitions(topic, Duration::from_secs(3)).await {
                Ok(partitions) => return Ok(partitions),
                Err(error) if error.downcast_ref().is_some_and(is_transient) => error,
                Err(error) => return Err(Exit::Misconfigured.because(error)).context(self.context(topic)),
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

    async fn try_partitions(&self, topic: &Topic, timeout: Duration) -> Result<Option<i32>> {
        let (client, name) = (self.client.clone(), topic.clone());
        let asked = move || {
            client.inner().fetch_metadata(Some(name.as_str()), timeout).map(|metadata| {
                let topic = metadata.topics().first();
                topic.map(|topic| (topic.error().map(RDKafkaErrorCode::from), topic.partitions().len() as i32))
            })
        };
        match tokio::task::spawn_blocking(asked).await?? {
            Some((None, partitions)) => Ok(Some(partitions)),
            None | Some((Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic), _)) => {
                Ok(None)
            }
            Some((Some(error), _)) => Err(anyhow!(KafkaError::MetadataFetch(error))),
        }
    }

    /// As [`Admin::partitions`], but a topic that does not exist is made where `create` says so, else it is an error
    /// with status 78.
    pub async fn need(&self, topic: &Topic, create: Option<NewTopics>, patience: Duration) -> Result<i32> {
        if let Some(partitions) = self.partitions(topic, patience).await? {
            return Ok(partitions);
        }
        let Some(new) = create else {
            let error = anyhow!("topic {topic} does not exist; make it, or let --create-topics do it");
            return Err(Exit::Misconfigured.because(error));
        };
        self.create(topic, new).await.with_context(|| format!("cannot make topic {topic}"))?;
        // A broker may know of a new topic a moment later than it answers.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if let Some(partitions) = self.partitions(topic, patience).await? {
                info!("made topic {topic} with {partitions} partitions");
                return Ok(partitions);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Exit::Again.because(anyhow!("topic {topic} was made, but no broker knows of it yet")))
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
