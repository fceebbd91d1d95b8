//! Reading partitions: one consumer for the process, a queue of its own for each partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Error, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::partition::{Event, Partition, Source, list_of};
use super::slots::Slots;
use super::{Admin, Aside, ClientLog, Cluster, TopicIds, thread};
use crate::mutants::Mutant;
use crate::record::LastRecord;
use crate::topic::{Epoch, Offset, Topic, TopicPartition};

/// How long a question may take as a whole, and how long it may take to hear anew where the leaders are.
const TIMEOUT: Duration = Duration::from_secs(5);
const HEARING: Duration = Duration::from_secs(1);
/// How long it may take to read one record: with many partitions it has to wait for its turn.
const READING: Duration = Duration::from_secs(30);

type Client = BaseConsumer<ClientLog>;

impl ConsumerContext for ClientLog {}

/// The consumer that all partitions of this process are read with.
#[derive(Clone)]
pub struct Reader {
    source: Source,
    ids: TopicIds,
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

/// What a reader finds at one offset.
#[derive(Debug)]
pub enum Found {
    Record(LastRecord),
    /// No record that a consumer is given.
    Nothing,
    /// What is there cannot be read, for this reason.
    Damaged(Error),
}

impl Reader {
    /// `group` is what librdkafka wants to assign partitions; nothing is ever committed to it by this client.
    /// `partitions` is how many will be read, at most `ahead` of them with much to be read at once: what the client holds
    /// is shared among them.
    pub fn open(cluster: &Cluster, admin: &Admin, group: &str, partitions: usize, ahead: usize) -> Result<Reader> {
        let partitions = partitions.min(ahead);
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
            .set("auto.offset.reset", if Mutant::JumpsToLatest.is_on() { "latest" } else { "error" })
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
        let consumer: Aside<Client> = cluster.client(&config, cluster.log())?;
        let alive = Arc::new(AtomicBool::new(true));
        serve_own_queue(Arc::clone(&consumer), alive.clone())?;
        // Not the reading client: a broker answers a connection's requests one by one, and lets a fetch wait for records.
        let asked = admin.clone();
        let ids = TopicIds::new(move |topics, timeout| asked.topic_ids(topics, timeout))?;
        let take = (4096 / partitions.max(1)).clamp(64, 4096);
        let source = Source { consumer, slots: Slots::new(ahead), take };
        Ok(Reader { source, ids, _alive: Arc::new(Alive(alive)) })
    }

    pub fn ids(&self) -> &TopicIds {
        &self.ids
    }

    /// Asks the partition's leader where the log begins and ends.
    ///
    /// Fails where it does not answer within 5 s.
    pub async fn log(&self, partition: &TopicPartition) -> Result<Log> {
        let asked = partition.clone();
        let ask = move |consumer: &Client, timeout: Duration| {
            let begun = Instant::now();
            let ask = |timeout: Duration| consumer.fetch_watermarks(asked.topic.as_str(), asked.partition, timeout);
            match ask(timeout)? {
                // librdkafka asks two questions. Where only the first one failed it may take the end for the beginning, too, and
                // what is there would be passed over (rdkafka.c).
                (begin, end) if begin == end && end > 0 => ask(timeout.saturating_sub(begun.elapsed())),
                log => Ok(log),
            }
        };
        let (begin, end) = self
            .ask_leader(&partition.topic, ask)
            .await
            .with_context(|| format!("cannot read where the log of {partition} begins and ends"))?;
        Ok(Log { begin: Offset(begin), end: Offset(end) })
    }

    /// The first offset whose record's timestamp is not before `time`; `None` where there is none yet.
    pub async fn offset_at(&self, partition: &TopicPartition, time: SystemTime) -> Result<Option<Offset>> {
        let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let list = list_of(partition, At::Offset(millis))?;
        let ask = move |consumer: &Client, timeout| offset_at(consumer, list.clone(), timeout);
        let found = self.ask_leader(&partition.topic, ask).await;
        found.with_context(|| format!("cannot look up a time in {partition}"))
    }

    /// Looks what is at `offset`, which lies within the log.
    ///
    /// Fails where nothing was read within 30 s, or the log is not what it was any more.
    pub async fn record_at(&self, partition: &TopicPartition, offset: Offset) -> Result<Found> {
        let (mut records, mut trouble) = (self.partition(partition, offset, None), None);
        let look = async {
            loop {
                match records.poll() {
                    Some(Event::Record(message)) if message.offset() == offset => {
                        return Ok(Found::Record(LastRecord::of(&message.record())));
                    }
                    // Another broker than the one that told the log's end, which is not as far.
                    Some(Event::End(end)) if end <= offset => bail!("the log is shown up to {end} only"),
                    Some(Event::Record(_) | Event::End(_)) => return Ok(Found::Nothing),
                    Some(Event::Damaged(why)) => return Ok(Found::Damaged(why)),
                    Some(Event::OutOfLog) => bail!("it is not in the log any more"),
                    Some(Event::Trouble(why)) => {
                        trouble = Some(why);
                        continue;
                    }
                    None => {}
                }
                records.readable().await;
            }
        };
        let looked = tokio::time::timeout(READING, look).await;
        let found = looked.unwrap_or_else(|elapsed| Err(trouble.unwrap_or_else(|| elapsed.into())));
        found.with_context(|| format!("cannot read the record at offset {offset} of {partition}"))
    }

    /// Asks the leader of a partition; a second time, if it did not answer, once librdkafka has heard anew where the leaders
    /// are. It would go on believing what it heard last, that a partition has none or one that is gone, until
    /// topic.metadata.refresh.interval.ms are over: for a partition that is not read it looks no sooner.
    async fn ask_leader<A: Send + 'static>(
        &self,
        topic: &Topic,
        ask: impl Fn(&Client, Duration) -> KafkaResult<A> + Send + 'static,
    ) -> Result<A> {
        let (consumer, topic) = (self.source.consumer.clone(), topic.clone());
        let ask = move || {
            let begun = Instant::now();
            let answer = ask(&consumer, TIMEOUT - HEARING);
            if answer.is_ok() || consumer.fetch_metadata(Some(topic.as_str()), HEARING).is_err() {
                return answer;
            }
            match TIMEOUT.checked_sub(begun.elapsed()) {
                Some(left) => ask(&consumer, left),
                None => answer,
            }
        };
        match tokio::task::spawn_blocking(ask).await? {
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) => {
                bail!("no broker leads it at present, or there is no such partition any more")
            }
            answer => Ok(answer?),
        }
    }

    /// Begins to read at `from`, as [`Partition::readable`] waits for it. With the epoch that belongs to the offset a log
    /// that was truncated meanwhile is noticed: [`Partition::poll`] then gives [`super::Event::OutOfLog`].
    pub fn partition(&self, partition: &TopicPartition, from: Offset, epoch: Option<Epoch>) -> Partition {
        Partition::new(self.source.clone(), partition, from, epoch)
    }
}

/// Asks about one partition; in the place of a time its beginning or its end may be asked for. `None` where nothing is as late.
fn offset_at(consumer: &Client, list: TopicPartitionList, timeout: Duration) -> KafkaResult<Option<Offset>> {
    let answer = consumer.offsets_for_times(list, timeout)?;
    let Some(element) = answer.elements().pop() else { return Ok(None) };
    element.error()?;
    Ok(if let At::Offset(offset) = element.offset() { Some(Offset(offset)) } else { None })
}

/// librdkafka wants the consumer's own queue served, though all records come through those of the partitions.
fn serve_own_queue(consumer: Arc<Client>, alive: Arc<AtomicBool>) -> Result<()> {
    thread("queue", move || {
        while alive.load(Ordering::Relaxed) {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(stray)) => log::warn!("a record of {} came to the wrong queue", stray.topic()),
                Some(Err(error)) => log::debug!("consumer: {error}"),
                None => {}
            }
        }
    })
}

/// The group that stands for a name in Kafka's own tools.
pub fn group(name: &crate::topic::Name) -> Result<String> {
    let group = format!("ksync.{name}");
    ensure!(group.len() <= 255, "the name {name} is too long");
    Ok(group)
}
