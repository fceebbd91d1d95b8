//! Writing records so that each is acknowledged by all replicas, once and in order, or known not to be.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use log::warn;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;
use tokio::sync::Notify;

use super::{BATCH, ClientLog, Cluster, drop_aside, is_transient};
use crate::exit::Exit;
use crate::mutants::Mutant;
use crate::sys;
pub use crate::sys::Plain;
use crate::topic::Topic;

/// What all lanes together may have in flight, in bytes of keys, values and headers, and what librdkafka has to a record besides.
const IN_FLIGHT: usize = 16 << 20;
/// About so many bytes it has to each.
const BESIDE: usize = 200;
/// How many records are queued at once, and how many bytes of them; one goes whatever its size.
const AT_ONCE: usize = 500;
const AT_ONCE_BYTES: usize = 256 << 10;
/// What each lane may have in flight whatever the others do, in records.
const LEAST_IN_FLIGHT: usize = 1000;

/// The producer of this process.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    cluster: Cluster,
    give_up: Duration,
    producer: RwLock<Arc<ThreadedProducer<Reports>>>,
    lanes: AtomicUsize,
}

impl Writer {
    /// A record that could not be delivered for `give_up` is reported as failed. Connects later.
    pub fn open(cluster: &Cluster, give_up: Duration) -> Result<Writer> {
        let producer = producer(cluster, give_up)
            .with_context(|| format!("cannot make a producer for {cluster}"))
            .map_err(|error| Exit::Misconfigured.because(error))?;
        let (cluster, producer) = (cluster.clone(), RwLock::new(Arc::new(producer)));
        Ok(Writer(Arc::new(Shared { cluster, give_up, producer, lanes: AtomicUsize::new(0) })))
    }

    /// A line of records of its own: for each partition that is written on its own, or for a chunk as a whole.
    pub fn lane(&self) -> Lane {
        self.0.lanes.fetch_add(1, Ordering::Relaxed);
        Lane { writer: self.clone(), reports: Arc::new(LaneReports::default()) }
    }

    /// After a fatal error a producer never sends again; what it had in flight is reported as failed.
    fn replace_producer(&self) -> Result<(), KafkaError> {
        let mut current = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
        if current.client().fatal_error().is_some() {
            warn!("the producer for {} had a fatal error; going on with a new one", self.0.cluster);
            *current = Arc::new(producer(&self.0.cluster, self.0.give_up)?);
        }
        Ok(())
    }

    fn try_send_all(
        &self,
        topic: &Topic,
        records: &[Plain<'_>],
        lane: &Arc<LaneReports>,
    ) -> Result<(), Vec<(usize, KafkaError)>> {
        let producer = self.0.producer.read().unwrap_or_else(PoisonError::into_inner);
        sys::produce(&producer, topic.as_str(), records, lane)
    }

    fn try_send(&self, record: &Outgoing<'_>, lane: Arc<LaneReports>) -> Result<(), KafkaError> {
        let mut message = BaseRecord::with_opaque_to(record.topic.as_str(), lane);
        message.partition = record.partition;
        message.key = record.key;
        message.payload = record.value;
        message.headers = record.headers.as_ref().map(|headers| headers.native.clone());
        let since = record.timestamp.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        message.timestamp = since.and_then(|since| i64::try_from(since.as_millis()).ok());
        let producer = self.0.producer.read().unwrap_or_else(PoisonError::into_inner);
        producer.send(message).map_err(|(error, _)| error)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Dropping a producer throws away what it has in its queue.
        let producer = self.producer.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !Mutant::ExitsUnflushed.is_on()
            && producer.in_flight_count() > 0
            && let Err(error) = producer.flush(Timeout::After(Duration::from_secs(1)))
        {
            log::debug!("records were still in flight at the end: {error}");
        }
        drop_aside(producer.clone());
    }
}

fn producer(cluster: &Cluster, give_up: Duration) -> Result<ThreadedProducer<Reports>, KafkaError> {
    let mut config = cluster.config();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", if Mutant::IgnoresKey.is_on() { "random" } else { "murmur2_random" })
        .set("message.timeout.ms", give_up.as_millis().to_string())
        .set("request.timeout.ms", "10000")
        // Small enough to bound the memory; as the number of messages below, more than the lanes' shares.
        .set("queue.buffering.max.kbytes", (128 << 10).to_string())
        // One record may be large where the topic allows it; a batch of them stays below the topics' default.
        .set("message.max.bytes", "100000000");
    let defaults = [
        ("compression.type", "lz4"),
        ("linger.ms", "5"),
        ("batch.size", &BATCH.to_string()),
        ("queue.buffering.max.messages", "1000000"),
    ];
    for (name, default) in defaults {
        if config.get(name).is_none() {
            config.set(name, default);
        }
    }
    config.create_with_context(Reports(cluster.log()))
}

/// A record to be written.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a Topic,
    /// `None`: by the key, as the Java client does; any partition where there is no key.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    /// `None` writes a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: Option<Headers>,
    /// `None`: this machine's time. The broker's own counts where its topic says so.
    pub timestamp: Option<SystemTime>,
}

/// A record's headers, to be sent.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    native: OwnedHeaders,
    bytes: usize,
}

impl Headers {
    pub(super) fn copied(native: OwnedHeaders, bytes: usize) -> Headers {
        Headers { native, bytes }
    }

    /// How much memory the names and values take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn with(self, name: &str, value: Option<&[u8]>) -> Headers {
        let native = self.native.insert(Header { key: name, value });
        Headers { native, bytes: self.bytes + name.len() + value.map_or(0, <[u8]>::len) }
    }
}

/// A line of records whose reports are counted together. After a failed report nothing more can be sent until the
/// failure was taken by [`Lane::settled`].
pub struct Lane {
    writer: Writer,
    reports: Arc<LaneReports>,
}

#[derive(Debug, Default)]
struct LaneReports {
    /// Records acknowledged before the first that failed.
    acknowledged: AtomicU64,
    failure: OnceLock<KafkaError>,
    has_failed: AtomicBool,
    records: AtomicUsize,
    bytes: AtomicUsize,
    changed: Notify,
}

impl Lane {
    /// Queues the record, after those before it; waits while the lane has its share in flight.
    ///
    /// Fails where an earlier record of the lane failed, or this one can never be sent (it is too large).
    pub async fn send(&mut self, record: Outgoing<'_>) -> Result<(), Undelivered> {
        let headers = record.headers.as_ref().map_or(0, |headers| headers.bytes);
        let bytes = BESIDE + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers;
        while !self.has_room() {
            self.reports.changed.notified().await;
        }
        loop {
            if self.reports.has_failed.load(Ordering::Acquire) {
                return Err(self.failure());
            }
            self.reports.records.fetch_add(1, Ordering::Relaxed);
            self.reports.bytes.fetch_add(bytes, Ordering::Relaxed);
            let Err(error) = self.writer.try_send(&record, self.reports.clone()) else {
                return Ok(());
            };
            self.reports.records.fetch_sub(1, Ordering::Relaxed);
            self.reports.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(self.undelivered(error));
            }
            if Mutant::DropsOnQueueFull.is_on() {
                return Ok(());
            }
            // The queue is shared, so the report that makes room may be another lane's.
            drop(tokio::time::timeout(Duration::from_millis(10), self.reports.changed.notified()).await);
        }
    }

    /// The same for many records of one topic, in their order. After a failure some behind the first that failed may be queued,
    /// too.
    pub async fn send_all(&mut self, topic: &Topic, records: &[Plain<'_>]) -> Result<(), Undelivered> {
        let mut rest = records;
        while !rest.is_empty() {
            while !self.has_room() {
                self.reports.changed.notified().await;
            }
            if self.reports.has_failed.load(Ordering::Acquire) {
                return Err(self.failure());
            }
            let some = at_once(rest);
            self.reports.records.fetch_add(some.len(), Ordering::Relaxed);
            self.reports.bytes.fetch_add(bytes(some), Ordering::Relaxed);
            let Err(failed) = self.writer.try_send_all(topic, some, &self.reports) else {
                rest = &rest[some.len()..];
                continue;
            };
            self.reports.records.fetch_sub(failed.len(), Ordering::Relaxed);
            let unsent = failed.iter().map(|(index, _)| bytes(&some[*index..=*index])).sum();
            self.reports.bytes.fetch_sub(unsent, Ordering::Relaxed);
            let is_full = |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            match failed.into_iter().next() {
                Some((_, error)) if !is_full(&error) => return Err(self.undelivered(error)),
                Some(_) if Mutant::DropsOnQueueFull.is_on() => rest = &rest[some.len()..],
                Some((index, _)) => {
                    rest = &rest[index..];
                    // The queue is shared, so the report that makes room may be another lane's.
                    drop(tokio::time::timeout(Duration::from_millis(10), self.reports.changed.notified()).await);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// How many records were acknowledged, counted up to the first that failed.
    pub fn acknowledged(&self) -> u64 {
        self.reports.acknowledged.load(Ordering::Acquire)
    }

    /// How many records have no report yet.
    pub fn in_flight(&self) -> usize {
        self.reports.records.load(Ordering::Acquire)
    }

    pub fn has_failed(&self) -> bool {
        self.reports.has_failed.load(Ordering::Acquire)
    }

    /// Returns at a report that came since the last call; also now and then without one.
    pub async fn reported(&self) {
        drop(tokio::time::timeout(Duration::from_secs(1), self.reports.changed.notified()).await);
    }

    /// Waits until every record has its report; then the lane may be used again, its count begins at 0.
    ///
    /// Fails with the first failure. Then the records after the acknowledged ones may be in the log all the same.
    pub async fn settled(&mut self) -> Result<(), Undelivered> {
        while self.in_flight() > 0 {
            self.reported().await;
        }
        let failure = self.has_failed().then(|| self.failure());
        self.reports = Arc::new(LaneReports::default());
        match failure {
            None => Ok(()),
            Some(failure) => {
                if let Err(error) = self.writer.replace_producer() {
                    return Err(self.undelivered(error));
                }
                Err(failure)
            }
        }
    }

    fn has_room(&self) -> bool {
        let share = IN_FLIGHT / self.writer.0.lanes.load(Ordering::Relaxed).max(1);
        let reports = &self.reports;
        reports.has_failed.load(Ordering::Acquire)
            || reports.bytes.load(Ordering::Acquire) < share
            || reports.records.load(Ordering::Acquire) < LEAST_IN_FLIGHT
    }

    fn failure(&self) -> Undelivered {
        self.undelivered(self.reports.failure.get().cloned().unwrap_or(KafkaError::Canceled))
    }

    fn undelivered(&self, error: KafkaError) -> Undelivered {
        Undelivered { error }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.writer.0.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// As many of the records as are queued together.
fn at_once<'r, 'a>(records: &'r [Plain<'a>]) -> &'r [Plain<'a>] {
    let mut room = AT_ONCE_BYTES;
    let fits = |record: &&Plain<'_>| {
        let fits = room > 0;
        room = room.saturating_sub(bytes(std::slice::from_ref(*record)));
        fits
    };
    let count = records.iter().take(AT_ONCE).take_while(fits).count();
    &records[..count]
}

fn bytes(records: &[Plain<'_>]) -> usize {
    let one = |record: &Plain<'_>| BESIDE + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    records.iter().map(one).sum()
}

/// Why a record was not acknowledged. It may be in the log all the same.
#[derive(Clone, Debug)]
pub struct Undelivered {
    error: KafkaError,
}

impl Undelivered {
    /// Whether the same record may be taken later: no broker answers, too few replicas are there.
    pub fn is_transient(&self) -> bool {
        use RDKafkaErrorCode::{Fatal, PurgeInflight, PurgeQueue};
        let rebuilt = matches!(self.error.rdkafka_error_code(), Some(Fatal | PurgeInflight | PurgeQueue));
        rebuilt || is_transient(&self.error)
    }
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.rdkafka_error_code() {
            Some(code @ RDKafkaErrorCode::InvalidTimestamp) => {
                write!(
                    f,
                    "Kafka did not take the record: {code}; are the clocks of this machine and of the brokers right?"
                )
            }
            Some(code) => write!(f, "Kafka did not take the record: {code}"),
            None => write!(f, "Kafka did not take the record: {}", self.error),
        }
    }
}

impl StdError for Undelivered {}

/// Takes the delivery reports.
struct Reports(ClientLog);

/// What [`Lane::send`] has counted for the record.
fn weight(message: &BorrowedMessage<'_>) -> usize {
    let headers = sys::Message::from(message)
        .headers()
        .iter()
        .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len))
        .sum::<usize>();
    BESIDE + message.key_len() + message.payload_len() + headers
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<LaneReports>;

    fn delivery(&self, report: &DeliveryResult<'_>, lane: Arc<LaneReports>) {
        let (Ok(message) | Err((_, message))) = report;
        match report {
            Err(_) if Mutant::IgnoresDeliveryErrors.is_on() => {
                lane.acknowledged.fetch_add(1, Ordering::Release);
            }
            Ok(_) if !lane.has_failed.load(Ordering::Acquire) => {
                lane.acknowledged.fetch_add(1, Ordering::Release);
            }
            // After a failure a later record may well be acknowledged; it does not count, it will be sent again.
            Ok(_) => {}
            Err((error, _)) => {
                // Only the first failure is kept.
                drop(lane.failure.set(error.clone()));
                lane.has_failed.store(true, Ordering::Release);
            }
        }
        lane.bytes.fetch_sub(weight(message), Ordering::Release);
        lane.records.fetch_sub(1, Ordering::Release);
        lane.changed.notify_one();
    }
}
