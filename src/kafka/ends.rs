//! Where logs end, for those who do not read them and want to know how far behind the readers are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::{Aside, ClientLog, Cluster};
use crate::topic::{Offset, Topic};

/// How long the brokers may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A client that asks where logs end, and reads nothing.
#[derive(Clone)]
pub struct Ends {
    client: Aside<BaseConsumer<ClientLog>>,
}

/// Takes what the client has to say while nobody asks: nothing but errors, which the next answer tells, too.
fn drain(client: &BaseConsumer<ClientLog>) {
    while client.poll(Duration::from_millis(1)).is_some() {}
}

impl Ends {
    /// Fails where the cluster's properties do not fit together; connects later.
    pub fn open(cluster: &Cluster) -> Result<Ends> {
        Ends::with(cluster, "read_committed")
    }

    /// The same, for ends behind transactions that are not over.
    pub fn of_uncommitted(cluster: &Cluster) -> Result<Ends> {
        Ends::with(cluster, "read_uncommitted")
    }

    fn with(cluster: &Cluster, isolation: &str) -> Result<Ends> {
        let mut config = cluster.config();
        config.set("isolation.level", isolation);
        Ok(Ends { client: cluster.client(&config, cluster.quiet_log())? })
    }

    /// The next record to be written in each of these partitions, as far as a reader of committed records may see, if the
    /// client is one: one request to each broker that leads some of them.
    ///
    /// Fails where one of them does not answer within 3 s.
    pub async fn of(&self, topic: &Topic, partitions: BTreeSet<i32>) -> Result<BTreeMap<i32, Offset>> {
        // In the place of a time it means the latest.
        let ends = self.at(topic, partitions, At::End).await;
        let ends = ends.with_context(|| format!("cannot read where the logs of topic {topic} end"))?;
        Ok(ends.into_iter().filter_map(|(partition, end)| Some((partition, end?))).collect())
    }

    /// The first record in each of these partitions that was written at this time or later; `None` where there is none yet.
    ///
    /// Fails where a broker does not answer within 3 s.
    pub async fn since(
        &self,
        topic: &Topic,
        partitions: BTreeSet<i32>,
        time: SystemTime,
    ) -> Result<BTreeMap<i32, Option<Offset>>> {
        let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let first = self.at(topic, partitions, At::Offset(i64::try_from(millis).unwrap_or(i64::MAX))).await;
        first.with_context(|| format!("cannot look up a time in topic {topic}"))
    }

    /// To be called now and then while nothing is asked, since errors pile up.
    pub async fn idle(&self) {
        let client = self.client.clone();
        // An error is the end of the runtime.
        tokio::task::spawn_blocking(move || drain(&client)).await.ok();
    }

    /// What the brokers tell of those partitions of which they tell anything.
    async fn at(&self, topic: &Topic, partitions: BTreeSet<i32>, time: At) -> Result<BTreeMap<i32, Option<Offset>>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (client, name) = (self.client.clone(), topic.clone());
        let ask = move || {
            drain(&client);
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition_offset(name.as_str(), partition, time)?;
            }
            client.offsets_for_times(list, TIMEOUT)
        };
        let answer = tokio::task::spawn_blocking(ask).await??;
        let answered = answer.elements().into_iter().filter(|element| element.error().is_ok());
        let offset = |at| if let At::Offset(offset) = at { Some(Offset(offset)) } else { None };
        Ok(answered.map(|element| (element.partition(), offset(element.offset()))).collect())
    }
}
