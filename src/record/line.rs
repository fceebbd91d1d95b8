//! One record as one line of JSON, and back.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memchr2;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Record;
use crate::mutants::Mutant;

/// What orders a record: its key, or without one its payload. Records that are equal in it are to be handled in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order<'a> {
    /// Which member of the line it is: text and base64 are not to be taken for each other.
    member: &'static str,
    json: &'a str,
}

/// What of a record goes with it to another topic, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// The value as JSON without making anything of it, so that big numbers and double keys stay as they are.
///
/// Fails where it is not JSON.
pub fn payload(value: Option<&[u8]>) -> Result<&str> {
    let value = value.unwrap_or(b"null");
    if value.is_empty() {
        bail!("it is empty");
    }
    let raw: &RawValue = serde_json::from_slice(value).context("it is not JSON")?;
    Ok(raw.get())
}

/// How long the record's line is, but for its head; seldom longer, where much has to be escaped.
pub fn about(record: &Record<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + length(*value) + 16).sum();
    length(record.key) + length(record.value) + headers + 128
}

/// Adds the record's line. Whether the value can be read back from it by [`original`].
pub fn write(out: &mut Vec<u8>, head: &[u8], record: &Record<'_>, payload: &str) -> Result<bool> {
    write_up_to_payload(out, head, record)?;
    if Mutant::ParsesPayload.is_on() {
        out.extend_from_slice(b",\"payload\":");
        serde_json::to_writer(&mut *out, &serde_json::from_str::<serde_json::Value>(payload)?)?;
        out.extend_from_slice(b"}\n");
        return Ok(false);
    }
    out.extend_from_slice(b",\"payload\":");
    let has_breaks = write_without_breaks(out, payload.as_bytes());
    out.extend_from_slice(b"}\n");
    // A text `null` looks as a tombstone does.
    let is_as_it_was = record.value.is_none_or(|value| value.len() == payload.len() && value != b"null");
    Ok(is_as_it_was && !has_breaks)
}

/// Adds the record's line with the value's bytes, whatever they are.
pub fn write_raw(out: &mut Vec<u8>, head: &[u8], record: &Record<'_>, value: &[u8]) -> Result<()> {
    write_up_to_payload(out, head, record)?;
    out.extend_from_slice(b",\"payload_b64\":");
    serde_json::to_writer(&mut *out, &BASE64.encode(value))?;
    out.extend_from_slice(b"}\n");
    Ok(())
}

fn write_up_to_payload(out: &mut Vec<u8>, head: &[u8], record: &Record<'_>) -> Result<()> {
    out.extend_from_slice(head);
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
    out.push(b']');
    Ok(())
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

/// A line break can only stand between two tokens of JSON; there a space means the same. Whether there was one.
pub(crate) fn write_without_breaks(out: &mut Vec<u8>, json: &[u8]) -> bool {
    let start = out.len();
    out.extend_from_slice(json);
    let has_breaks = memchr2(b'\n', b'\r', json).is_some();
    if has_breaks {
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    has_breaks
}

/// What is looked up in a line. A member that is `null`, or not there, is `None`.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    key_b64: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    payload_b64: Option<&'a RawValue>,
}

impl Members<'_> {
    fn of(line: &[u8]) -> Result<Members<'_>> {
        serde_json::from_slice(line).context("cannot read back a record's line")
    }
}

/// What orders the record of a line that [`write`] made.
pub fn order(line: &[u8]) -> Result<Order<'_>> {
    let Members { key, key_b64, payload, payload_b64, .. } = Members::of(line)?;
    let by = [("key", key), ("key_b64", key_b64), ("payload", payload), ("payload_b64", payload_b64)];
    let found = by.into_iter().find_map(|(member, json)| Some(Order { member, json: json?.get() }));
    Ok(found.unwrap_or(Order { member: "payload", json: "null" }))
}

/// The record of a line that [`write`] made; with its value, where `write` said that it can be read back.
pub fn original(line: &[u8]) -> Result<Original> {
    let Members { key, key_b64, headers, payload, payload_b64 } = Members::of(line)?;
    let key = match key {
        Some(text) => Some(serde_json::from_str::<String>(text.get())?.into_bytes()),
        None => key_b64.map(decoded).transpose()?,
    };
    let value = match payload {
        Some(json) => Some(json.get().into()),
        None => payload_b64.map(decoded).transpose()?,
    };
    let pairs: Vec<(String, Option<&RawValue>)> = serde_json::from_str(headers.map_or("[]", RawValue::get))?;
    let headers = pairs
        .into_iter()
        .map(|(name, value)| Ok((name, value.map(header_bytes).transpose()?)))
        .collect::<Result<_>>()?;
    Ok(Original { key, value, headers })
}

fn header_bytes(json: &RawValue) -> Result<Vec<u8>> {
    #[derive(Deserialize)]
    struct Bytes<'a> {
        #[serde(borrow)]
        b64: &'a RawValue,
    }
    match json.get() {
        text if text.starts_with('"') => Ok(serde_json::from_str::<String>(text)?.into_bytes()),
        object => decoded(serde_json::from_str::<Bytes<'_>>(object)?.b64),
    }
}

fn decoded(base64: &RawValue) -> Result<Vec<u8>> {
    let text: &str = serde_json::from_str(base64.get())?;
    BASE64.decode(text).context("cannot read back base64")
}
