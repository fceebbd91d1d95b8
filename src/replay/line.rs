//! A record's line, ours or one of `kcat -J`.

use std::borrow::Cow;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, Visitor};

use crate::dead_letter::{Letter, Reason};
use crate::intake::{Load, OnInvalid};
use crate::record::{Original, Record};
use crate::topic::{Offset, Topic, TopicPartition};

/// A line that tells a record, and where that lies.
pub(super) struct Line<'a> {
    pub partition: TopicPartition,
    pub offset: Offset,
    form: Form<'a>,
}

enum Form<'a> {
    Ours(&'a [u8]),
    Kcat(Kcat),
}

/// What both forms have, and what they are known by.
#[derive(Deserialize)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
    #[serde(default, deserialize_with = "is_there")]
    tstype: bool,
    #[serde(default, deserialize_with = "is_there")]
    payload: bool,
    #[serde(default, deserialize_with = "is_there")]
    payload_b64: bool,
}

/// The rest of a line of kcat, which writes the bytes of a record as a text, also those that are not UTF-8.
#[derive(Deserialize)]
struct Kcat {
    ts: Option<i64>,
    /// Name, value, name, value.
    #[serde(default)]
    headers: Vec<Option<Bytes>>,
    key: Option<Bytes>,
    payload: Option<Bytes>,
}

impl Line<'_> {
    /// Fails where it is of neither form.
    pub fn parse(line: &[u8]) -> Result<Line<'_>> {
        let neither = "it is no record's line, neither of ksync nor of kcat -J";
        let place: Place = serde_json::from_slice(line).context(neither)?;
        if !place.payload && !place.payload_b64 {
            bail!("{neither}: it has no payload");
        }
        let form = match place.tstype {
            true => Form::Kcat(serde_json::from_slice(line).context(neither)?),
            false => Form::Ours(line),
        };
        let partition = place.topic.parse::<Topic>()?.partition(place.partition);
        ensure!(place.partition >= 0 && place.offset >= 0, "{neither}: partition and offset are not below 0");
        Ok(Line { partition, offset: Offset(place.offset), form })
    }

    /// Adds its record to the batch: our own line as it is. Whether there was room for it; for the first one there is.
    pub fn add_to(&self, load: &mut Load, (on_invalid, room): (OnInvalid, usize)) -> Result<bool> {
        match &self.form {
            Form::Ours(line) if !load.is_empty() && load.bytes() + line.len() > room => Ok(false),
            Form::Ours(line) => load.batch.push_line(self.offset, line).map(|()| true),
            Form::Kcat(kcat) => {
                let record = kcat.record(self.offset)?;
                Ok(load.add(&record, |why| letter(&record, why), (on_invalid, room)))
            }
        }
    }
}

impl Kcat {
    fn record(&self, offset: Offset) -> Result<Record<'_>> {
        let mut headers = vec![];
        for pair in self.headers.chunks(2) {
            let [Some(Bytes(name)), value] = pair else { bail!("its headers are not pairs of a name and a value") };
            headers.push((String::from_utf8_lossy(name), value.as_ref().map(|value| value.0.as_slice())));
        }
        let [key, value] = [&self.key, &self.payload].map(|bytes| bytes.as_ref().map(|bytes| bytes.0.as_slice()));
        Ok(Record { offset, timestamp_ms: self.ts, key, headers, value, leader_epoch: None })
    }
}

fn letter(record: &Record<'_>, why: String) -> Letter {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let header = |(name, value): &(Cow<'_, str>, Option<&[u8]>)| (name.to_string(), owned(*value));
    let headers = record.headers.iter().map(header).collect();
    let original = Original { key: owned(record.key), value: owned(record.value), headers };
    Letter::of_original(record.offset, original, Reason { error: why, ..Reason::default() })
}

fn is_there<'de, D: Deserializer<'de>>(member: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(member).map(|_| true)
}

/// A JSON text that need not be UTF-8.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Bytes, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        text.deserialize_bytes(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_kcat_becomes_ours_with_the_bytes_that_it_has() {
        let mut load = Load::new(&"products".parse::<Topic>().unwrap().partition(3));
        let line = b"{\"topic\":\"products\",\"partition\":3,\"offset\":42,\"tstype\":\"create\",\"ts\":1700000000000,\
            \"broker\":1,\"headers\":[\"k\",\"v\",\"k\",null,\"b\",\"\xff\"],\"key\":\"\xff\\u0000\",\
            \"payload\":\"{\\\"id\\\":1e400}\"}";
        let line = Line::parse(line).unwrap();
        assert_eq!((line.partition.to_string(), line.offset), ("products/3".to_owned(), Offset(42)));
        assert!(line.add_to(&mut load, (OnInvalid::Halt, 1000)).unwrap());
        let ours = concat!(
            r#"{"topic":"products","partition":3,"offset":42,"ts":1700000000000,"key_b64":"/wA=","#,
            r#""headers":[["k","v"],["k",null],["b",{"b64":"/w=="}]],"payload":{"id":1e400}}"#,
            "\n"
        );
        assert_eq!(String::from_utf8_lossy(load.batch.lines()), ours);
    }

    #[test]
    fn a_line_that_is_no_record_says_what_it_has_not() {
        let neither = "it is no record's line, neither of ksync nor of kcat -J";
        for (line, why) in [
            ("{\"id\":7}", "missing field `topic` at line 1 column 8"),
            ("7", "invalid type: integer `7`, expected struct Place at line 1 column 1"),
            ("{\"topic\":\"t\",\"partition\":0,\"offset\":1}", "it has no payload"),
            ("{\"topic\":\"t\",\"partition\":0,\"offset\":-1,\"payload\":1}", "partition and offset are not below 0"),
            (
                "{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"tstype\":\"create\",\"payload\":{}}",
                "invalid type: map, expected a text at line 1 column 66",
            ),
        ] {
            let error = Line::parse(line.as_bytes()).err().unwrap();
            assert_eq!(format!("{error:#}"), format!("{neither}: {why}"));
        }
    }
}
