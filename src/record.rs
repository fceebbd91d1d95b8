//! A record of Kafka as the handler sees it, one line of JSON, and batches of such lines.

mod batch;
mod line;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::topic::Offset;

pub use batch::{Batch, Mark};
pub(crate) use line::write_without_breaks;
pub use line::{Order, Original};

/// A record as it lies in Kafka; borrowed, so that reading copies nothing.
#[derive(Debug)]
pub struct Record<'a> {
    pub offset: Offset,
    /// Milliseconds since 1970, by the producer's or the broker's clock; `None` where the record has none.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub headers: Vec<(Cow<'a, str>, Option<&'a [u8]>)>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    pub leader_epoch: Option<i32>,
}

/// What is kept of the last record before an offset, to recognise the log that the offset belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    pub offset: Offset,
    /// Milliseconds since 1970.
    pub ts: Option<i64>,
    /// Of the value; 0 for a tombstone.
    pub crc32c: u32,
}

impl LastRecord {
    pub fn of(record: &Record<'_>) -> LastRecord {
        let crc32c = crc32c::crc32c(record.value.unwrap_or_default());
        LastRecord { offset: record.offset, ts: record.timestamp_ms, crc32c }
    }
}
