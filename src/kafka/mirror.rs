//! Showing the offsets to Kafka's own tools, as those of a group: kafka-consumer-groups, Burrow and exporters see the lag.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use log::{debug, warn};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::oneshot;

use super::{Aside, ClientLog, Cluster, thread};
use crate::topic::{Offset, TopicPartition};

/// What our commits carry, so that another program's are known from them.
const METADATA: &str = "ksync";
const INTERVAL: Duration = Duration::from_secs(1);

/// And whether the group has members, which all brokers are asked for.
const AGAIN: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many notes may wait for a thread that waits for a broker; those that come then are left out, newer ones follow.
const NOTES: usize = 1024;

/// Repeats offsets in a group of Kafka, where nothing of ksync ever reads them.
///
/// By a client of its own, which reads nothing: a commit that is not answered holds up whoever shares a client with it.
#[derive(Clone)]
pub struct Mirror {
    notes: SyncSender<Note>,
}

enum Note {
    Offset(TopicPartition, Offset),
    Close(oneshot::Sender<()>),
}

impl Mirror {
    pub fn open(cluster: &Cluster, group: &str) -> Result<Mirror> {
        let mut config = cluster.config();
        config.set("group.id", group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        let consumer = cluster.client(&config, cluster.quiet_log())?;
        let (notes, noted) = sync_channel(NOTES);
        let group = Group { name: group.to_owned(), consumer, asked: None };
        thread("mirror", move || group.repeat(&noted))?;
        Ok(Mirror { notes })
    }

    /// Never waits.
    pub fn note(&self, partition: &TopicPartition, offset: Offset) {
        // A full queue or a group that was given up: this is a copy for people to look at.
        drop(self.notes.try_send(Note::Offset(partition.clone(), offset)));
    }

    /// Waits, for at most a second, until what was noted is committed.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.notes.try_send(Note::Close(done)).is_ok() {
            drop(tokio::time::timeout(Duration::from_secs(1), closed).await);
        }
    }
}

struct Group {
    name: String,
    consumer: Aside<BaseConsumer<ClientLog>>,
    /// When it was asked for its members last, answered or not.
    asked: Option<Instant>,
}

impl Group {
    fn repeat(mut self, notes: &Receiver<Note>) {
        let mut latest = BTreeMap::new();
        let mut due = Instant::now() + INTERVAL;
        loop {
            match notes.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Note::Offset(partition, offset)) => {
                    latest.insert(partition, offset);
                    continue;
                }
                Ok(Note::Close(done)) => {
                    self.commit(&mut latest, CommitMode::Sync).unwrap_or_else(|error| debug!("{error:#}"));
                    done.send(()).ok(); // Who closes may have waited long enough.
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            due = Instant::now() + INTERVAL;
            // Answers to earlier commits; nothing else comes to a client that is assigned nothing.
            while self.consumer.poll(Duration::ZERO).is_some() {}
            if let Err(error) = self.commit(&mut latest, CommitMode::Async) {
                warn!("the offsets are not shown as those of group {}: {error:#} (--mirror-group)", self.name);
                return;
            }
        }
    }

    /// Fails where the group is another program's.
    fn commit(&mut self, latest: &mut BTreeMap<TopicPartition, Offset>, mode: CommitMode) -> Result<()> {
        if latest.is_empty() || !self.is_ours(latest.keys())? {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (TopicPartition { topic, partition }, offset) in std::mem::take(latest) {
            list.add_partition_offset(topic.as_str(), partition, At::Offset(offset.0))?;
            if let Some(mut element) = list.find_partition(topic.as_str(), partition) {
                element.set_metadata(METADATA);
            }
        }
        if let Err(error) = self.consumer.commit(&list, mode) {
            debug!("cannot commit to group {}: {error}", self.name);
        }
        Ok(())
    }

    /// Whether the group may be written to; no answer means not yet.
    fn is_ours<'a>(&mut self, partitions: impl Iterator<Item = &'a TopicPartition>) -> Result<bool> {
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition(partition.topic.as_str(), partition.partition);
        }
        let committed = match self.consumer.committed_offsets(asked, TIMEOUT) {
            Ok(committed) => committed,
            Err(error) => {
                debug!("cannot see the offsets of group {}: {error}", self.name);
                return Ok(false);
            }
        };
        let elements = committed.elements();
        let mut has_ours = false;
        for element in elements.iter().filter(|element| matches!(element.offset(), At::Offset(_))) {
            if element.metadata() != METADATA {
                bail!("{}/{} has an offset there that ksync did not write", element.topic(), element.partition());
            }
            has_ours = true;
        }
        // While it has members brokers refuse the commits of others.
        if self.asked.is_none_or(|asked| asked.elapsed() >= AGAIN) {
            match self.consumer.fetch_group_list(Some(&self.name), TIMEOUT) {
                Ok(groups) if groups.groups().iter().any(|group| !group.members().is_empty()) => {
                    bail!("it has members, so it is another program's");
                }
                Ok(_) => {}
                Err(error) => {
                    debug!("cannot see whether group {} has members: {error}", self.name);
                    // One broker that does not answer is enough. It had none before, or has offsets of ours; and what others
                    // commit is seen above.
                    if self.asked.is_none() && !has_ours {
                        return Ok(false);
                    }
                }
            }
            self.asked = Some(Instant::now());
        }
        Ok(true)
    }
}
