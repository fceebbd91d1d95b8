//! A line of records: how much of it may be in flight, and what became of it.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::Notify;

use super::is_transient;
use super::writer::{Headers, Outgoing, Writer};
use crate::mutants::Mutant;
use crate::sys::Plain;
use crate::topic::Topic;

/// What all lanes together may have in flight, in bytes of keys, values and headers, and what librdkafka has to a record besides.
const IN_FLIGHT: usize = 16 << 20;
/// About so many bytes it has to each.
pub(super) const BESIDE: usize = 200;
/// How many records are queued at once, and how many bytes of them; one goes whatever its size.
const AT_ONCE: usize = 500;
const AT_ONCE_BYTES: usize = 256 << 10;
/// What each lane may have in flight whatever the others do, in records, and in bytes of these.
const LEAST_IN_FLIGHT: usize = 1000;
const LEAST_BYTES_IN_FLIGHT: usize = 1 << 20;

/// A line of records whose reports are counted together. After a failed report nothing more can be sent until the
/// failure was taken by [`Lane::settled`].
pub struct Lane {
    writer: Writer,
    reports: Arc<LaneReports>,
}

#[derive(Debug, Default)]
pub(super) struct LaneReports {
    /// Records acknowledged before the first that failed.
    acknowledged: AtomicU64,
    failure: OnceLock<Undelivered>,
    records: AtomicUsize,
    bytes: AtomicUsize,
    changed: Notify,
    /// None has a report to come.
    emptied: Notify,
}

impl LaneReports {
    fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// A record has its report.
    pub fn delivered(&self, failure: Option<Undelivered>, weight: usize) {
        match failure {
            Some(_) if Mutant::IgnoresDeliveryErrors.is_on() => {
                self.acknowledged.fetch_add(1, Ordering::Release);
            }
            None if !self.has_failed() => {
                self.acknowledged.fetch_add(1, Ordering::Release);
            }
            // After a failure a later record may well be acknowledged; it does not count, it will be sent again.
            None => {}
            // Only the first failure is kept.
            Some(failure) => drop(self.failure.set(failure)),
        }
        self.bytes.fetch_sub(weight, Ordering::Release);
        if self.records.fetch_sub(1, Ordering::Release) == 1 {
            self.emptied.notify_one();
        }
        self.changed.notify_one();
    }
}

impl Lane {
    pub(super) fn new(writer: Writer) -> Lane {
        Lane { writer, reports: Arc::new(LaneReports::default()) }
    }

    /// Queues the record, after those before it; waits while the lane has its share in flight.
    ///
    /// Fails where an earlier record of the lane failed, or this one can never be sent (it is too large).
    pub async fn send(&mut self, record: Outgoing<'_>) -> Result<(), Undelivered> {
        let headers = record.headers.as_ref().map_or(0, Headers::bytes);
        let bytes = BESIDE + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers;
        while !self.has_room() {
            self.reports.changed.notified().await;
        }
        loop {
            if let Some(failure) = self.reports.failure.get() {
                return Err(failure.clone());
            }
            self.reports.records.fetch_add(1, Ordering::Relaxed);
            self.reports.bytes.fetch_add(bytes, Ordering::Relaxed);
            let Err(error) = self.writer.try_send(&record, self.reports.clone()) else {
                return Ok(());
            };
            self.reports.records.fetch_sub(1, Ordering::Relaxed);
            self.reports.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(self.refused(record.topic, record.key, error));
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
            if let Some(failure) = self.reports.failure.get() {
                return Err(failure.clone());
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
                Some((index, error)) if !is_full(&error) => return Err(self.refused(topic, some[index].key, error)),
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
        self.reports.has_failed()
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
            // Not at each report: to be woken up for each costs more than the report.
            self.reports.emptied.notified().await;
        }
        let failure = self.reports.failure.get().cloned();
        self.reports = Arc::new(LaneReports::default());
        let Some(failure) = failure else { return Ok(()) };
        match self.writer.replace_producer() {
            Ok(()) => Err(failure),
            Err(error) => Err(Undelivered { error, ..failure }),
        }
    }

    /// Why a record was not even queued. A producer that had a fatal error takes none any more, and perhaps nobody has a report
    /// of that.
    fn refused(&self, topic: &Topic, key: Option<&[u8]>, error: KafkaError) -> Undelivered {
        let error = self.writer.replace_producer().err().unwrap_or(error);
        Undelivered::new(topic.as_str(), key, error)
    }

    /// This lane's part of what all lanes share.
    pub fn share(&self, of: usize) -> usize {
        of / self.writer.lanes().max(1)
    }

    fn has_room(&self) -> bool {
        let reports = &self.reports;
        let (bytes, records) = (reports.bytes.load(Ordering::Acquire), reports.records.load(Ordering::Acquire));
        let is_little = records < LEAST_IN_FLIGHT && bytes < LEAST_BYTES_IN_FLIGHT;
        reports.has_failed() || is_little || bytes < self.share(IN_FLIGHT)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.writer.end_lane();
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
    topic: String,
    /// How its key begins.
    key: Option<String>,
    error: KafkaError,
}

/// How much is told of a key, in characters.
const KEY_TOLD: usize = 200;

impl Undelivered {
    pub(super) fn new(topic: &str, key: Option<&[u8]>, error: KafkaError) -> Undelivered {
        let told = |key| String::from_utf8_lossy(key).chars().take(KEY_TOLD).flat_map(char::escape_debug).collect();
        Undelivered { topic: topic.to_owned(), key: key.map(told), error }
    }

    /// Where it was to go.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether the same record may be taken later: no broker answers, too few replicas are there, there is no thread for another
    /// producer.
    pub fn is_transient(&self) -> bool {
        use RDKafkaErrorCode::{Fatal, PurgeInflight, PurgeQueue};
        let rebuilt = matches!(self.error, KafkaError::ClientCreation(_))
            || matches!(self.error.rdkafka_error_code(), Some(Fatal | PurgeInflight | PurgeQueue));
        rebuilt || is_transient(&self.error)
    }
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.error.rdkafka_error_code();
        let is_of_clocks = code == Some(RDKafkaErrorCode::InvalidTimestamp);
        // Neither clocks nor what may be taken later are a matter of this record.
        let key = self.key.as_ref().filter(|_| !is_of_clocks && !self.is_transient());
        let key = key.map_or(String::new(), |key| format!(" with the key {key}"));
        match code {
            Some(code) => write!(f, "Kafka did not take the record{key}: {code}")?,
            None => write!(f, "Kafka did not take the record{key}: {}", self.error)?,
        }
        if is_of_clocks {
            write!(f, "; are the clocks of this machine and of the brokers right?")?;
        }
        Ok(())
    }
}

impl StdError for Undelivered {}
