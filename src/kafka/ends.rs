//! Where logs end, for those who write and want to know how far behind the readers are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::{ClientLog, Cluster};
use crate::exit::Exit;
use crate::topic::{Offset, Topic};

/// How long the brokers may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A client that asks where logs end, and reads nothing.
#[derive(Clone)]
pub struct Ends {
    client: Arc<BaseConsumer<ClientLog>>,
}

impl Ends {
    /// Fails where the cluster's properties do not fit together; connects later.
    pub fn open(cluster: &Cluster) -> Result<Ends> {
        let client = cluster.config().create_with_context(cluster.quiet_log());
        let client = client.with_context(|| format!("cannot make a client for {cluster}"));
        Ok(Ends { client: Arc::new(client.map_err(|error| Exit::Misconfigured.because(error))?) })
    }

    /// The next record to be written in each of these partitions, as far as a reader of committed records may see: one
    /// request to each broker that leads some of them.
    ///
    /// Fails where one of them does not answer within 3 s.
    pub async fn of(&self, topic: &Topic, partitions: BTreeSet<i32>) -> Result<BTreeMap<i32, Offset>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (client, name) = (self.client.clone(), topic.clone());
        let ask = move || {
            // Nothing but errors, which the answer tells, too.
            while client.poll(Duration::ZERO).is_some() {}
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                // In the place of a time it means the latest.
                list.add_partition_offset(name.as_str(), partition, At::End)?;
            }
            client.offsets_for_times(list, TIMEOUT)
        };
        let answer = tokio::task::spawn_blocking(ask).await?;
        let answer = answer.with_context(|| format!("cannot read where the logs of topic {topic} end"))?;
        let mut ends = BTreeMap::new();
        for element in answer.elements() {
            if let (Ok(()), At::Offset(end)) = (element.error(), element.offset()) {
                ends.insert(element.partition(), Offset(end));
            }
        }
        Ok(ends)
    }
}
