//! One partition as it is read, for as long as it has a slot of its consumer's or nothing to hold.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use log::{debug, warn};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::message::Message;
use super::slots::{Slot, Slots};
use super::{Aside, ClientLog};
use crate::sys::{self, Records};
use crate::topic::{Epoch, Offset, TopicPartition};

const TIMEOUT: Duration = Duration::from_secs(5);

/// What any partition may hold: so a steady flow through many partitions needs no turns.
const FEW: usize = 64;
const FEW_BYTES: usize = 64 << 10;

/// One partition as it is read. Dropping it ends the reading.
pub struct Partition {
    partition: TopicPartition,
    source: Source,
    next: Offset,
    /// Of what was read last.
    epoch: Option<Epoch>,
    /// `None` where nothing is read ahead.
    ahead: Option<Ahead>,
}

/// What comes next in a partition.
pub enum Event<'a> {
    Record(Message<'a>),
    /// Everything that is there was read; the offset of what will come next.
    End(Offset),
    /// The offset, or its epoch, is not in the log: truncated, expired, or another topic of the same name.
    OutOfLog,
    /// What comes next is damaged. It is read anew when [`Partition::poll`] is called again, and never passed.
    Damaged(Error),
    /// Something that may pass by itself; librdkafka tries again.
    Trouble(Error),
}

/// What partitions are read with.
#[derive(Clone)]
pub(super) struct Source {
    pub consumer: Aside<BaseConsumer<ClientLog>>,
    pub slots: Arc<Slots>,
    /// How many records are taken from librdkafka at once.
    pub take: usize,
}

impl Partition {
    /// To be read from `from`. With the epoch that belongs to it a log that was truncated meanwhile is noticed:
    /// [`Partition::poll`] then gives [`Event::OutOfLog`].
    pub(super) fn new(source: Source, partition: &TopicPartition, from: Offset, epoch: Option<Epoch>) -> Partition {
        Partition { partition: partition.clone(), source, next: from, epoch, ahead: None }
    }

    /// What is there already, without waiting; `None` where nothing is.
    pub fn poll(&mut self) -> Option<Event<'_>> {
        if !self.ahead.as_mut()?.may_go_on(self.next, &self.source.slots) {
            self.let_go();
        }
        let ahead = self.ahead.as_mut()?;
        // What lies before was fetched for an earlier assignment of the same partition.
        match ahead.records.poll(self.next.0)? {
            Ok(message) => {
                let message = Message(message);
                self.next = message.offset().next();
                self.epoch = message.leader_epoch().map(|number| Epoch { number, end: self.next });
                Some(Event::Record(message))
            }
            Err(failure) => Some(match failure.code {
                RDKafkaErrorCode::PartitionEOF => {
                    ahead.slot = None;
                    self.next = self.next.max(Offset(failure.offset));
                    Event::End(self.next)
                }
                RDKafkaErrorCode::AutoOffsetReset => Event::OutOfLog,
                // librdkafka tells it once, and means to go on behind it (rdkafka_msgset_reader.c).
                RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::BadCompression
                | RDKafkaErrorCode::NotImplemented
                | RDKafkaErrorCode::MessageSizeTooLarge => {
                    ahead.assigned.end();
                    ahead.slot = None;
                    Event::Damaged(anyhow!(
                        "what comes at offset {} cannot be read: {}; another replica may have it as it was: make that one the \
                         leader",
                        self.next,
                        failure.text
                    ))
                }
                code @ RDKafkaErrorCode::TopicAuthorizationFailed => {
                    // librdkafka tells it once, and goes on when the right is there.
                    warn!("{}: cannot read: {code}; trying again", self.partition);
                    Event::Trouble(anyhow!("cannot read: {code}"))
                }
                code => Event::Trouble(anyhow!("cannot read: {code}")),
            }),
        }
    }

    /// Has [`Partition::poll`] give the record again that it gave last.
    pub fn put_back(&mut self) {
        self.next = Offset(self.next.0 - 1);
        if let Some(ahead) = &mut self.ahead {
            ahead.records.put_back();
        }
    }

    /// The offset of what comes next.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// Whatever lies before it was fetched from the broker before this call.
    pub fn fetched(&self) -> Offset {
        let taken = self.ahead.as_ref().and_then(|ahead| ahead.records.last_taken());
        taken.map_or(self.next, |last| self.next.max(Offset(last + 1)))
    }

    /// Returns when [`Partition::poll`] may have something; also now and then without a reason. Cancelling loses nothing.
    pub async fn readable(&mut self) {
        match &self.ahead {
            Some(ahead) => drop(timeout(Duration::from_secs(1), ahead.assigned.changed.notified()).await),
            None => {
                if let Err(error) = self.begin().await {
                    debug!("{}: {error:#}", self.partition);
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// While nothing is to be read: lets go what is held once others want to read. Never returns; cancelling loses nothing.
    pub async fn idle<T>(&mut self) -> T {
        while let Some(ahead) = &self.ahead {
            match ahead.assigned.is_over() {
                true => self.let_go(),
                false => ahead.assigned.changed.notified().await,
            }
        }
        std::future::pending().await
    }

    /// Goes to `offset`, to read from there; `epoch` as where the reading began.
    pub fn seek(&mut self, offset: Offset, epoch: Option<Epoch>) {
        (self.next, self.epoch, self.ahead) = (offset, epoch, None);
    }

    fn let_go(&mut self) {
        debug!("{}: others are read instead, for a while; it comes again from offset {}", self.partition, self.next);
        self.ahead = None;
    }

    async fn begin(&mut self) -> Result<()> {
        let assigned = Assigned::new(&self.source.consumer, &self.partition);
        let slot = self.source.slots.get(assigned.recall()).await;
        // Nothing is waited for from here on: what is begun and given up could come after a later `seek`, and undo it.
        self.ahead = Some(Ahead::new(&self.source, assigned, slot, (self.next, self.epoch))?);
        Ok(())
    }
}

/// What librdkafka reads, and holds for us.
struct Ahead {
    records: Records<ClientLog>,
    // Calls back when there is something in the queue.
    _split: PartitionQueue<ClientLog>,
    /// `None` where no more than a little is held.
    slot: Option<Slot>,
    assigned: Arc<Assigned>,
}

impl Ahead {
    fn new(
        source: &Source,
        assigned: Arc<Assigned>,
        slot: Slot,
        (next, epoch): (Offset, Option<Epoch>),
    ) -> Result<Ahead> {
        let (consumer, partition) = (&source.consumer, &assigned.partition);
        let (name, number) = (partition.topic.as_str(), partition.partition);
        let split = consumer.split_partition_queue(name, number);
        let mut split = split.with_context(|| format!("cannot make a queue for {partition}"))?;
        let records = Records::new(consumer, (name, number), source.take);
        let records = records.with_context(|| format!("cannot read the queue of {partition}"))?;
        let filled = assigned.clone();
        split.set_nonempty_callback(move || filled.changed.notify_one());
        let ahead = Ahead { records, _split: split, slot: Some(slot), assigned };
        ahead.assigned.begin(next, epoch)?;
        Ok(ahead)
    }

    /// Whether it may hold what it has: for more than a little it wants a slot.
    fn may_go_on(&mut self, from: Offset, slots: &Arc<Slots>) -> bool {
        if self.assigned.is_over() {
            return false;
        }
        if self.slot.is_none() && self.records.poll(from.0).is_some() {
            self.records.put_back();
            if !self.records.are_few(FEW, FEW_BYTES) {
                self.slot = slots.free(self.assigned.recall());
                return self.slot.is_some();
            }
        }
        true
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.assigned.end();
    }
}

/// That librdkafka reads the partition. Its end may come from elsewhere.
struct Assigned {
    consumer: Aside<BaseConsumer<ClientLog>>,
    partition: TopicPartition,
    is_begun: Mutex<bool>,
    is_over: AtomicBool,
    /// There is something to be read, or it is over.
    changed: Notify,
}

impl Assigned {
    fn new(consumer: &Aside<BaseConsumer<ClientLog>>, partition: &TopicPartition) -> Arc<Assigned> {
        let (is_begun, is_over, changed) = Default::default();
        Arc::new(Assigned { consumer: consumer.clone(), partition: partition.clone(), is_begun, is_over, changed })
    }

    /// What ends it.
    fn recall(self: &Arc<Assigned>) -> impl FnOnce() + Send + 'static {
        let this = self.clone();
        move || this.end()
    }

    fn begin(&self, next: Offset, epoch: Option<Epoch>) -> Result<()> {
        // What lies between is nothing that a consumer is given, or is passed over.
        let from = epoch.map_or(next, |epoch| epoch.end.min(next));
        let mut list = self.list(At::Offset(from.0))?;
        let mut is_begun = self.is_begun.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over() {
            return Ok(());
        }
        self.consumer.incremental_assign(&list).with_context(|| format!("cannot assign {}", self.partition))?;
        *is_begun = true;
        if let Some(epoch) = epoch {
            // Assigning alone does not check the epoch; seeking does. librdkafka only notes where, as for an assignment.
            sys::set_leader_epoch(&mut list, epoch.number);
            let sought = self.consumer.seek_partitions(list, TIMEOUT);
            let each = sought.and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
            each.with_context(|| format!("cannot seek in {}", self.partition))?;
        }
        Ok(())
    }

    fn end(&self) {
        let mut is_begun = self.is_begun.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_over.store(true, Ordering::Release);
        if std::mem::take(&mut *is_begun) {
            let ended = self.list(At::Invalid).and_then(|list| Ok(self.consumer.incremental_unassign(&list)?));
            if let Err(error) = ended {
                debug!("{}: cannot end reading: {error:#}", self.partition);
            }
        }
        self.changed.notify_one();
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn list(&self, at: At) -> Result<TopicPartitionList> {
        list_of(&self.partition, at)
    }
}

pub(super) fn list_of(partition: &TopicPartition, at: At) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(partition.topic.as_str(), partition.partition, at)?;
    Ok(list)
}
