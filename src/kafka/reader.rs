//! Reading partitions: one consumer for the process, a queue of its own for each partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::Notify;

use super::{Admin, ClientLog, Cluster, Headers, TopicIds};
use crate::exit::Exit;
use crate::record::Record;
use crate::sys::{self, Records};
use crate::topic::{Offset, TopicPartition};

const TIMEOUT: Duration = Duration::from_secs(5);

impl ConsumerContext for ClientLog {}

/// The consumer that all partitions of this process are read with.
#[derive(Clone)]
pub struct Reader {
    consumer: Arc<BaseConsumer<ClientLog>>,
    ids: TopicIds,
    /// How many records are taken from librdkafka at once.
    take: usize,
    // Ends the thread that serves the consumer's own queue.
    _alive: Arc<Alive>,
}

struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Where a partition's log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub begin: Offset,
    /// The next record that will be written, as far as a reader of committed records may see.
    pub end: Offset,
}

impl Reader {
    /// `group` is what librdkafka wants to assign partitions; nothing is ever committed to it by this client.
    /// `partitions` is how many will be read at once: what the client holds ahead is shared among them.
    pub fn open(cluster: &Cluster, admin: &Admin, group: &str, partitions: usize) -> Result<Reader> {
        // An answer is held until all of its records are taken, also those of the slowest of its partitions. So the more
        // there are, the less is read ahead for each, and the fewer share an answer.
        let fetch = ((1 << 20) / partitions.max(1)).clamp(32 << 10, 1 << 20);
        let answer = (8 * fetch).clamp(256 << 10, 2 << 20);
        let queued_kib = ((2 << 10) / partitions.max(1)).clamp(32, 256);
        let mut config = cluster.config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", "100")
            // Without it librdkafka would raise fetch.max.bytes to the default of this.
            .set("message.max.bytes", answer.to_string())
            // These five bound what is held ahead, and let one partition be read at full speed (docs/design.md).
            .set("fetch.message.max.bytes", fetch.to_string())
            .set("fetch.max.bytes", answer.to_string())
            .set("fetch.queue.backoff.ms", "1")
            .set("queued.max.messages.kbytes", queued_kib.to_string())
            .set("queued.min.messages", "1000")
            // No answer is larger than what the broker took. With the default of 100 MB one large record breaks the
            // connection again and again, and no partition of the process gets on.
            .set("receive.message.max.bytes", i32::MAX.to_string());
        let consumer: BaseConsumer<ClientLog> = config
            .create_with_context(cluster.log())
            .with_context(|| format!("cannot make a consumer for {cluster}"))
            .map_err(|error| Exit::Misconfigured.because(error))?;
        let consumer = Arc::new(consumer);
        let alive = Arc::new(AtomicBool::new(true));
        serve_own_queue(consumer.clone(), alive.clone());
        // Not the reading client: a broker answers a connection's requests one by one, and lets a fetch wait for records.
        let asked = admin.clone();
        let ids = TopicIds::new(move |topics, timeout| asked.topic_ids(topics, timeout));
        let take = (4096 / partitions.max(1)).clamp(64, 4096);
        Ok(Reader { consumer, ids, take, _alive: Arc::new(Alive(alive)) })
    }

    pub fn ids(&self) -> &TopicIds {
        &self.ids
    }

    /// Asks the partition's leader where the log begins and ends.
    ///
    /// Fails where it does not answer within 5 s.
    pub async fn log(&self, partition: &TopicPartition) -> Result<Log> {
        let (consumer, asked) = (self.consumer.clone(), partition.clone());
        let ask = move || consumer.fetch_watermarks(asked.topic.as_str(), asked.partition, TIMEOUT);
        let (begin, end) = tokio::task::spawn_blocking(ask)
            .await?
            .with_context(|| format!("cannot read where the log of {partition} begins and ends"))?;
        Ok(Log { begin: Offset(begin), end: Offset(end) })
    }

    /// The first offset whose record's timestamp is not before `time`; `None` where there is none yet.
    pub async fn offset_at(&self, partition: &TopicPartition, time: SystemTime) -> Result<Option<Offset>> {
        let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let (consumer, list) = (self.consumer.clone(), list_of(partition, At::Offset(millis))?);
        let found = tokio::task::spawn_blocking(move || consumer.offsets_for_times(list, TIMEOUT)).await?;
        let found = found.with_context(|| format!("cannot look up a time in {partition}"))?;
        match found.elements().first().map(|element| element.offset()) {
            Some(At::Offset(offset)) => Ok(Some(Offset(offset))),
            _ => Ok(None),
        }
    }

    /// Begins to read at `from`. With the epoch that belongs to it a log that was truncated meanwhile is noticed:
    /// [`Partition::poll`] then gives [`Event::OutOfLog`].
    pub async fn partition(&self, partition: &TopicPartition, from: Offset, epoch: Option<i32>) -> Result<Partition> {
        let (name, number) = (partition.topic.as_str(), partition.partition);
        let queue = self.consumer.split_partition_queue(name, number);
        let mut queue = queue.with_context(|| format!("cannot make a queue for {partition}"))?;
        let records = Records::new(&self.consumer, (name, number), self.take);
        let records = records.with_context(|| format!("cannot read the queue of {partition}"))?;
        let filled = Arc::new(Notify::new());
        let wake = filled.clone();
        queue.set_nonempty_callback(move || wake.notify_one());
        let list = list_of(partition, At::Offset(from.0))?;
        let assigned = self.consumer.incremental_assign(&list);
        assigned.with_context(|| format!("cannot assign {partition}"))?;
        let reading = Partition {
            partition: partition.clone(),
            records,
            _split: queue,
            consumer: self.consumer.clone(),
            filled,
            next: from,
        };
        if let Some(epoch) = epoch {
            // Assigning alone does not check the epoch; seeking does.
            let (consumer, mut list) = (self.consumer.clone(), list);
            sys::set_leader_epoch(&mut list, epoch);
            let sought = tokio::task::spawn_blocking(move || consumer.seek_partitions(list, TIMEOUT)).await?;
            sought.with_context(|| format!("cannot seek in {partition}"))?;
        }
        Ok(reading)
    }
}

/// librdkafka wants the consumer's own queue served, though all records come through those of the partitions.
fn serve_own_queue(consumer: Arc<BaseConsumer<ClientLog>>, alive: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while alive.load(Ordering::Relaxed) {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(stray)) => log::warn!("a record of {} came to the wrong queue", stray.topic()),
                Some(Err(error)) => log::debug!("consumer: {error}"),
                None => {}
            }
        }
    });
}

fn list_of(partition: &TopicPartition, at: At) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(partition.topic.as_str(), partition.partition, at)?;
    Ok(list)
}

/// One partition as it is read. Dropping it ends the reading.
pub struct Partition {
    partition: TopicPartition,
    records: Records<ClientLog>,
    // Calls back when there is something in the queue.
    _split: PartitionQueue<ClientLog>,
    consumer: Arc<BaseConsumer<ClientLog>>,
    filled: Arc<Notify>,
    next: Offset,
}

/// What comes next in a partition.
pub enum Event<'a> {
    Record(Message<'a>),
    /// Everything that is there was read; the offset of what will come next.
    End(Offset),
    /// The offset, or its epoch, is not in the log: truncated, expired, or another topic of the same name.
    OutOfLog,
    /// Something that may pass by itself; librdkafka tries again.
    Trouble(anyhow::Error),
}

impl Partition {
    /// What is there already, without waiting; `None` where nothing is.
    pub fn poll(&mut self) -> Option<Event<'_>> {
        // What lies before was fetched for an earlier assignment of the same partition.
        match self.records.poll(self.next.0)? {
            Ok(message) => {
                self.next = Offset(message.offset() + 1);
                Some(Event::Record(Message(message)))
            }
            Err(failure) => Some(match failure.code {
                RDKafkaErrorCode::PartitionEOF => {
                    self.next = self.next.max(Offset(failure.offset));
                    Event::End(self.next)
                }
                RDKafkaErrorCode::AutoOffsetReset => Event::OutOfLog,
                code => Event::Trouble(anyhow!("cannot read: {code}")),
            }),
        }
    }

    /// Has [`Partition::poll`] give the record again that it gave last.
    pub fn put_back(&mut self) {
        self.next = Offset(self.next.0 - 1);
        self.records.put_back();
    }

    /// The offset of what comes next.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// Whatever lies before it was fetched from the broker before this call.
    pub fn fetched(&self) -> Offset {
        self.records.last_taken().map_or(self.next, |last| self.next.max(Offset(last + 1)))
    }

    /// Returns when [`Partition::poll`] may have something; also now and then without a reason.
    pub async fn readable(&mut self) {
        drop(tokio::time::timeout(Duration::from_secs(1), self.filled.notified()).await);
    }

    /// Goes back to `offset`, to read from there again.
    pub async fn seek(&mut self, offset: Offset) -> Result<()> {
        let list = list_of(&self.partition, At::Offset(offset.0))?;
        let consumer = self.consumer.clone();
        let sought = tokio::task::spawn_blocking(move || consumer.seek_partitions(list, TIMEOUT)).await?;
        let sought = sought.with_context(|| format!("cannot seek to {offset} in {}", self.partition))?;
        for element in sought.elements() {
            element.error().with_context(|| format!("cannot seek to {offset} in {}", self.partition))?;
        }
        // What librdkafka fetched before the seek is outdated by its version: it does not hand it out any more.
        self.records.forget();
        self.next = offset;
        Ok(())
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let unassigned = list_of(&self.partition, At::Invalid)
            .and_then(|list| self.consumer.incremental_unassign(&list).context("cannot end reading"));
        if let Err(error) = unassigned {
            log::debug!("{}: {error:#}", self.partition);
        }
    }
}

/// A record as librdkafka holds it.
pub struct Message<'a>(sys::Message<'a>);

/// Whose clock gave a record its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamp {
    /// The broker's, when it appended the record.
    Append(SystemTime),
    /// The producer's.
    Create(SystemTime),
    None,
}

impl Message<'_> {
    pub fn offset(&self) -> Offset {
        Offset(self.0.offset())
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.0.key()
    }

    pub fn value(&self) -> Option<&[u8]> {
        self.0.value()
    }

    pub fn leader_epoch(&self) -> Option<i32> {
        self.0.leader_epoch()
    }

    pub fn timestamp(&self) -> Timestamp {
        let time = |millis: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis.max(0) as u64);
        match self.0.timestamp() {
            rdkafka::Timestamp::LogAppendTime(millis) => Timestamp::Append(time(millis)),
            rdkafka::Timestamp::CreateTime(millis) => Timestamp::Create(time(millis)),
            rdkafka::Timestamp::NotAvailable => Timestamp::None,
        }
    }

    /// A copy of the headers, to send them on; `None` where there are none.
    pub fn headers(&self) -> Option<Headers> {
        let native = self.0.copied_headers()?;
        let bytes = self.0.headers().iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum();
        Some(Headers::copied(native, bytes))
    }

    pub fn record(&self) -> Record<'_> {
        Record {
            offset: self.offset(),
            timestamp_ms: self.0.timestamp().to_millis(),
            key: self.0.key(),
            headers: self.0.headers(),
            value: self.0.value(),
            leader_epoch: self.leader_epoch(),
        }
    }
}

/// The group that stands for a name in Kafka's own tools.
pub fn group(name: &crate::topic::Name) -> Result<String> {
    let group = format!("ksync.{name}");
    ensure!(group.len() <= 255, "the name {name} is too long");
    Ok(group)
}
