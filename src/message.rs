//! What is said of a changed record: its payload, its key, and the delay message around the payload.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

/// One changed record as it is announced: both its messages are made from this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The record key: the text of the key column, or of several as a JSON array; without one any partition will do.
    pub key: Option<Vec<u8>>,
    /// JSON, byte for byte what is sent.
    pub payload: Vec<u8>,
}

impl Change {
    /// The value of this change's delay message, made at `now`.
    pub fn delay_message(&self, now: SystemTime) -> Vec<u8> {
        let created_at = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut value = Vec::with_capacity(self.payload.len() + 48);
        value.extend_from_slice(b"{\"payload\": ");
        value.extend_from_slice(&self.payload);
        value.extend_from_slice(
            format!(", \"created_at\": {}.{:03}}}", created_at.as_secs(), created_at.subsec_millis()).as_bytes(),
        );
        value
    }
}

/// A delay message as it was read: the payload's bytes and the time its writer gives.
#[derive(Debug, PartialEq)]
pub struct DelayMessage<'a> {
    pub payload: &'a [u8],
    /// `None` where it is missing or not a time.
    pub created_at: Option<SystemTime>,
}

impl<'a> DelayMessage<'a> {
    /// Fails where the value is not a JSON object with a member `payload`.
    pub fn parse(value: Option<&'a [u8]>) -> Result<DelayMessage<'a>> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            payload: &'a RawValue,
            #[serde(borrow)]
            created_at: Option<&'a RawValue>,
        }
        let Some(value) = value else { bail!("it has no value") };
        let envelope: Envelope = serde_json::from_slice(value).context("it is not a delay message")?;
        let seconds = envelope.created_at.and_then(|text| text.get().parse::<f64>().ok());
        let created_at = seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| UNIX_EPOCH.checked_add(since));
        Ok(DelayMessage { payload: envelope.payload.get().as_bytes(), created_at })
    }
}

/// The record key that the member `key` of a JSON object makes; several members make a JSON array.
///
/// A string counts without its quotes, anything else as it is written. `None` where a member is missing or null.
pub fn key_of(payload: &[u8], key: &[String]) -> Result<Option<Vec<u8>>> {
    let Ok(members) = serde_json::from_slice::<HashMap<String, &RawValue>>(payload) else {
        return Ok(None);
    };
    let mut values = Vec::with_capacity(key.len());
    for name in key {
        match members.get(name) {
            Some(value) if value.get() != "null" => values.push(*value),
            _ => return Ok(None),
        }
    }
    match values.as_slice() {
        [text] if text.get().starts_with('"') => Ok(Some(serde_json::from_str::<String>(text.get())?.into_bytes())),
        [other] => Ok(Some(other.get().as_bytes().to_vec())),
        several => Ok(Some(key_of_parts(several)?.into_bytes())),
    }
}

/// The record key that several values make, in the one form that every writer gives it, whatever escapes they came with.
pub fn key_of_parts(values: &[&RawValue]) -> Result<String> {
    let part = |value: &&RawValue| match value.get() {
        text if text.starts_with('"') => serde_json::to_string(&serde_json::from_str::<String>(text)?),
        other => Ok(other.to_owned()),
    };
    let parts: Vec<_> = values.iter().map(part).collect::<Result<_, _>>()?;
    Ok(format!("[{}]", parts.join(",")))
}

/// The partition among `partitions` that the key belongs to, as the Java client chooses it.
pub fn partition_of(key: &[u8], partitions: &[i32]) -> i32 {
    let positive = (murmur2(key) & 0x7fff_ffff) as usize;
    partitions[positive % partitions.len()]
}

/// MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        word = (word ^ (word >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ word;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |last, byte| (last << 8) | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_message_is_written_as_the_gem_writes_it_and_read_back() {
        let change = Change { key: None, payload: br#"{"id": 18446744073709551616}"#.to_vec() };
        let value = change.delay_message(UNIX_EPOCH + Duration::from_millis(1_700_000_000_007));
        assert_eq!(
            std::str::from_utf8(&value).unwrap(),
            r#"{"payload": {"id": 18446744073709551616}, "created_at": 1700000000.007}"#
        );
        let read = DelayMessage::parse(Some(&value)).unwrap();
        assert_eq!(read.payload, change.payload);
        let age = read.created_at.unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert!(age.abs_diff(Duration::from_millis(1_700_000_000_007)) < Duration::from_millis(1));
    }

    #[test]
    fn what_the_gem_sends_is_a_delay_message() {
        let read = DelayMessage::parse(Some(br#"{"payload":{"id":1},"created_at":1795359635.0841503}"#)).unwrap();
        assert_eq!(read.payload, br#"{"id":1}"#);
        assert!(read.created_at.is_some());
        let odd = DelayMessage::parse(Some(br#"{"created_at":"soon","x":1,"payload": [1e3] }"#)).unwrap();
        assert_eq!((odd.payload, odd.created_at), (&b"[1e3]"[..], None));
    }

    #[test]
    fn what_is_not_a_delay_message_is_refused() {
        for value in [None, Some(&b""[..]), Some(b"{}"), Some(br#"{"created_at":1}"#), Some(b"7"), Some(b"{")] {
            assert!(DelayMessage::parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn the_record_key_is_the_text_of_its_members() {
        let key = |payload: &str, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
            key_of(payload.as_bytes(), &names).unwrap().map(|key| String::from_utf8(key).unwrap())
        };
        assert_eq!(key(r#"{"id":7}"#, &["id"]).as_deref(), Some("7"));
        assert_eq!(key(r#"{"id":18446744073709551616}"#, &["id"]).as_deref(), Some("18446744073709551616"));
        assert_eq!(key(r#"{"id":"a\"b"}"#, &["id"]).as_deref(), Some("a\"b"));
        assert_eq!(key(r#"{"a":1,"b":"x"}"#, &["a", "b"]).as_deref(), Some(r#"[1,"x"]"#));
        assert_eq!(key(r#"{"a":"\u00e9\/","b":2}"#, &["a", "b"]).as_deref(), Some(r#"["é/",2]"#));
        for without in ["{}", "7", r#"{"id":null}"#] {
            assert_eq!(key(without, &["id"]), None, "{without}");
        }
    }

    #[test]
    fn keys_are_hashed_as_the_java_client_does() {
        // org.apache.kafka.common.utils.UtilsTest.testMurmur2
        for (key, hash) in
            [("21", -973_932_308_i32), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)]
        {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
        assert_eq!(partition_of(b"21", &[5]), 5);
    }
}
