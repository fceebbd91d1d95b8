//! A record as it comes from Kafka.

use std::time::{Duration, SystemTime};

use super::Headers;
use crate::record::Record;
use crate::sys;
use crate::topic::Offset;

/// A record as librdkafka holds it.
pub struct Message<'a>(pub(super) sys::Message<'a>);

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
