//! Writing records so that each is acknowledged by all replicas, once and in order, or known not to be.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use log::warn;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;

use super::lane::{BESIDE, Lane, LaneReports, Undelivered};
use super::{Aside, BATCH, ClientLog, Cluster};
use crate::mutants::Mutant;
use crate::sys;
pub use crate::sys::Plain;
use crate::topic::Topic;

/// The producer of this process.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    cluster: Cluster,
    give_up: Duration,
    producer: RwLock<Aside<ThreadedProducer<Reports>>>,
    lanes: AtomicUsize,
}

impl Writer {
    /// How long a record may be on its way where somebody waits for it.
    pub const AWAITED: Duration = Duration::from_secs(60);

    /// A record that could not be delivered for `give_up` is reported as failed. Connects later.
    pub fn open(cluster: &Cluster, give_up: Duration) -> Result<Writer> {
        let producer = cluster.client(&config(cluster, give_up), Reports(cluster.log()))?;
        let (cluster, producer) = (cluster.clone(), RwLock::new(producer));
        Ok(Writer(Arc::new(Shared { cluster, give_up, producer, lanes: AtomicUsize::new(0) })))
    }

    /// A line of records of its own: for each partition that is written on its own, or for a chunk as a whole.
    pub fn lane(&self) -> Lane {
        self.0.lanes.fetch_add(1, Ordering::Relaxed);
        Lane::new(self.clone())
    }

    /// How many lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.0.lanes.load(Ordering::Relaxed)
    }

    /// One has ended.
    pub(super) fn end_lane(&self) {
        self.0.lanes.fetch_sub(1, Ordering::Relaxed);
    }

    /// After a fatal error a producer never sends again; what it had in flight is reported as failed.
    pub(super) fn replace_producer(&self) -> Result<(), KafkaError> {
        let Shared { cluster, give_up, producer, .. } = &*self.0;
        let mut current = producer.write().unwrap_or_else(PoisonError::into_inner);
        if current.client().fatal_error().is_some() {
            warn!("the producer for {cluster} had a fatal error; going on with a new one");
            *current = cluster.client_anew(&config(cluster, *give_up), Reports(cluster.log()))?;
        }
        Ok(())
    }

    pub(super) fn try_send_all(
        &self,
        topic: &Topic,
        records: &[Plain<'_>],
        lane: &Arc<LaneReports>,
    ) -> Result<(), Vec<(usize, KafkaError)>> {
        let producer = self.0.producer.read().unwrap_or_else(PoisonError::into_inner);
        sys::produce(&producer, topic.as_str(), records, lane)
    }

    pub(super) fn try_send(&self, record: &Outgoing<'_>, lane: Arc<LaneReports>) -> Result<(), KafkaError> {
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
    }
}

fn config(cluster: &Cluster, give_up: Duration) -> ClientConfig {
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
    config
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
        let failure = report.as_ref().err();
        let failure = failure.map(|(error, _)| Undelivered::new(message.topic(), message.key(), error.clone()));
        lane.delivered(failure, weight(message));
    }
}
