//! A record of Kafka as the handler sees it, one line of JSON, and batches of such lines.

use std::borrow::Cow;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memchr2;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::topic::{Offset, TopicPartition};

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

/// Records of one partition, in their order, as the lines that one handler run gets.
#[derive(Debug)]
pub struct Batch {
    /// `{"topic":"products","partition":0,"offset":`, the same in each line.
    head: Vec<u8>,
    lines: Vec<u8>,
    len: usize,
    range: Option<(Offset, Offset)>,
    next: Option<Offset>,
    last: Option<LastRecord>,
    leader_epoch: Option<i32>,
}

impl Batch {
    pub fn new(partition: &TopicPartition) -> Batch {
        let head = format!("{{\"topic\":\"{}\",\"partition\":{},\"offset\":", partition.topic, partition.partition);
        Batch { head: head.into(), lines: vec![], len: 0, range: None, next: None, last: None, leader_epoch: None }
    }

    /// Adds the record's line and moves the batch's end past it.
    ///
    /// Fails, and adds nothing, where the value is not JSON.
    pub fn push(&mut self, record: &Record<'_>) -> Result<()> {
        let value = record.value.unwrap_or(b"null");
        let payload = checked_json(value)?;
        self.write_line(record, payload)?;
        self.len += 1;
        self.range = Some((self.range.map_or(record.offset, |(first, _)| first), record.offset));
        self.pass(record);
        Ok(())
    }

    /// Moves the batch's end past a record that is no part of it: it went to the dead-letter topic.
    pub fn pass(&mut self, record: &Record<'_>) {
        self.last = Some(LastRecord::of(record));
        self.leader_epoch = record.leader_epoch;
        self.next = Some(record.offset.next());
    }

    /// Moves the batch's end to `offset`, past what a consumer never sees (control records, compacted ones).
    pub fn pass_to(&mut self, offset: Offset) {
        self.next = self.next.max(Some(offset));
    }

    /// The lines, each with its line break.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The offsets of the first and the last line.
    pub fn range(&self) -> Option<(Offset, Offset)> {
        self.range
    }

    /// The offset to commit once the batch is done; `None` where it has not moved.
    pub fn next(&self) -> Option<Offset> {
        self.next
    }

    pub fn last(&self) -> Option<LastRecord> {
        self.last
    }

    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.lines.clear();
        (self.len, self.range, self.next, self.last, self.leader_epoch) = (0, None, None, None, None);
    }

    fn write_line(&mut self, record: &Record<'_>, payload: &str) -> Result<()> {
        let out = &mut self.lines;
        out.extend_from_slice(&self.head);
        serde_json::to_writer(&mut *out, &record.offset)?;
        out.extend_from_slice(b",\"ts\":");
        serde_json::to_writer(&mut *out, &record.timestamp_ms)?;
        match record.key.map(|key| (key, std::str::from_utf8(key))) {
            None => out.extend_from_slice(b",\"key\":null"),
            Some((_, Ok(text))) => {
                out.extend_from_slice(b",\"key\":");
                serde_json::to_writer(&mut *out, text)?;
            }
            Some((bytes, Err(_))) => {
                out.extend_from_slice(b",\"key_b64\":");
                serde_json::to_writer(&mut *out, &BASE64.encode(bytes))?;
            }
        }
        out.extend_from_slice(b",\"headers\":[");
        for (i, (name, value)) in record.headers.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut *out, &(name, header_value(*value)))?;
        }
        out.extend_from_slice(b"],\"payload\":");
        write_without_breaks(out, payload.as_bytes());
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

/// A header's value in a line: text, or `{"b64": ..}` where it is not UTF-8.
#[derive(Serialize)]
#[serde(untagged)]
enum HeaderValue<'a> {
    Text(Option<&'a str>),
    Bytes { b64: String },
}

fn header_value(value: Option<&[u8]>) -> HeaderValue<'_> {
    match value.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => HeaderValue::Text(None),
        Some((_, Ok(text))) => HeaderValue::Text(Some(text)),
        Some((bytes, Err(_))) => HeaderValue::Bytes { b64: BASE64.encode(bytes) },
    }
}

/// Checks that `value` is JSON without making anything of it, so that big numbers and double keys stay as they are.
fn checked_json(value: &[u8]) -> Result<&str> {
    if value.is_empty() {
        bail!("it is empty");
    }
    let raw: &RawValue = serde_json::from_slice(value).context("it is not JSON")?;
    Ok(raw.get())
}

/// A line break can only stand between two tokens of JSON; there a space means the same.
fn write_without_breaks(out: &mut Vec<u8>, json: &[u8]) {
    let start = out.len();
    out.extend_from_slice(json);
    if memchr2(b'\n', b'\r', json).is_some() {
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, value: Option<&[u8]>) -> Record<'_> {
        Record {
            offset: Offset(offset),
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(b"7"),
            headers: vec![],
            value,
            leader_epoch: Some(3),
        }
    }

    fn batch() -> Batch {
        Batch::new(&"products".parse::<crate::topic::Topic>().unwrap().partition(0))
    }

    fn line(record: &Record<'_>) -> String {
        let mut batch = batch();
        batch.push(record).unwrap();
        String::from_utf8(batch.lines().to_vec()).unwrap()
    }

    #[test]
    fn a_record_becomes_the_line_of_the_design() {
        let mut seven = record(42, Some(br#"{"id":7}"#));
        seven.headers = vec![("k".into(), Some(b"v"))];
        assert_eq!(
            line(&seven),
            concat!(
                r#"{"topic":"products","partition":0,"offset":42,"ts":1700000000000,"key":"7","#,
                r#""headers":[["k","v"]],"payload":{"id":7}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn payload_bytes_stay_as_they_are_but_line_breaks() {
        let value = b" {\n\"id\": 18446744073709551616, \"x\":1e400,\r\n\"id\" :0.10000000000000000555} ";
        assert!(
            line(&record(0, Some(value))).ends_with(
                "\"payload\":{ \"id\": 18446744073709551616, \"x\":1e400,  \"id\" :0.10000000000000000555}}\n"
            )
        );
    }

    #[test]
    fn what_is_not_text_is_base64_and_a_tombstone_is_null() {
        let mut odd = record(0, None);
        odd.key = Some(b"\xff\x00");
        odd.headers = vec![("a".into(), None), ("b".into(), Some(b"\xff"))];
        odd.timestamp_ms = None;
        assert_eq!(
            line(&odd),
            concat!(
                r#"{"topic":"products","partition":0,"offset":0,"ts":null,"key_b64":"/wA=","#,
                r#""headers":[["a",null],["b",{"b64":"/w=="}]],"payload":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_value_that_is_not_json_is_refused_and_leaves_the_batch_as_it_was() {
        let mut batch = batch();
        batch.push(&record(5, Some(b"1"))).unwrap();
        let before = batch.lines().to_vec();
        for value in [&b""[..], b"{", b"{}{}", b"\"\n\"", b"nul", b"\"\xff\""] {
            let error = batch.push(&record(6, Some(value))).unwrap_err();
            assert!(error.to_string().starts_with("it is "), "{error}");
        }
        assert_eq!((batch.lines(), batch.len(), batch.next()), (&before[..], 1, Some(Offset(6))));
    }

    #[test]
    fn the_offset_to_commit_is_the_next_one_to_read() {
        let mut batch = batch();
        assert_eq!(batch.next(), None);
        batch.push(&record(5, Some(b"1"))).unwrap();
        batch.pass(&record(9, Some(b"{")));
        assert_eq!((batch.range(), batch.next()), (Some((Offset(5), Offset(5))), Some(Offset(10))));
        assert_eq!(batch.last().map(|last| last.offset), Some(Offset(9)));
        batch.pass_to(Offset(17));
        assert_eq!(batch.next(), Some(Offset(17)));
    }
}
