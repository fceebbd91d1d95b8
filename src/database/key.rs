//! The key of a table, for rows that are named by somebody else, in JSON.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::value::RawValue;

use super::chunk::Chunk;
use super::column::{Column, Kind};
use super::value::Value;
use crate::message::Change;

/// The columns of the key, by which a statement finds the rows.
pub struct Key {
    columns: Arc<[Column]>,
    /// What they are the key of: `table products`.
    label: String,
}

impl Key {
    pub(super) fn new(columns: Arc<[Column]>, label: String) -> Key {
        Key { columns, label }
    }

    /// The names of the columns, which the members of a payload have, too.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// The rows that the payloads name.
    pub fn chunk(&self, changes: Vec<Change>) -> Result<Chunk> {
        let mut values = Vec::with_capacity(changes.len() * self.columns.len());
        for change in &changes {
            let payload = &change.payload;
            let read = self.read(payload, &mut values);
            read.with_context(|| format!("{} names no row of {}", String::from_utf8_lossy(payload), self.label))?;
        }
        Ok(Chunk { changes, values, key: self.columns.clone() })
    }

    /// The rows that record keys name, with their key columns as payloads; besides, what cannot be such a key, and why.
    pub fn named(&self, record_keys: Vec<String>) -> (Chunk, Vec<(String, anyhow::Error)>) {
        let (mut keys, mut values, mut unfit) = (vec![], vec![], vec![]);
        for key in record_keys {
            match self.values(&key) {
                Ok(row) => {
                    keys.push(key.into_bytes());
                    values.extend(row);
                }
                Err(why) => unfit.push((key, why.context(format!("it is no key of {}", self.label)))),
            }
        }
        let mut chunk = Chunk { changes: vec![], values, key: self.columns.clone() };
        let payloads = chunk.key_payloads();
        chunk.changes =
            keys.into_iter().zip(payloads).map(|(key, payload)| Change { key: Some(key), payload }).collect();
        (chunk, unfit)
    }

    fn values(&self, record_key: &str) -> Result<Vec<Value>> {
        match &self.columns[..] {
            [column] => value_of_text(column.kind, record_key).map(|value| vec![value]),
            columns => {
                let parts: Vec<&RawValue> = serde_json::from_str(record_key).context("it is no array in JSON")?;
                ensure!(parts.len() == columns.len(), "it has {} values, not {}", parts.len(), columns.len());
                let part = |(column, part): (&Column, &RawValue)| match column.kind {
                    Kind::Dynamic if part.get().starts_with('"') => {
                        Ok(text_or_bytes(&serde_json::from_str::<String>(part.get())?))
                    }
                    kind => value(kind, part.get()),
                };
                columns.iter().zip(parts).map(part).collect()
            }
        }
    }

    fn read(&self, payload: &[u8], values: &mut Vec<Value>) -> Result<()> {
        let members = serde_json::from_slice::<HashMap<String, &RawValue>>(payload).context("it is no JSON object")?;
        for column in self.columns.iter() {
            let name = &column.name;
            let member = members.get(name.as_str()).with_context(|| format!("it has no '{name}'"))?;
            values.push(value(column.kind, member.get()).with_context(|| format!("its '{name}'"))?);
        }
        Ok(())
    }
}

/// The value of a key column as a payload of ksync has it, and as other programs may write it: big numbers in quotes, texts
/// that look like numbers without.
fn value(kind: Kind, json: &str) -> Result<Value> {
    let is_text = json.starts_with('"');
    let text = match json.as_bytes() {
        [b'"', ..] => serde_json::from_str::<String>(json)?,
        [b'{' | b'[', ..] | b"null" => bail!("is {json}, which is no key"),
        _ => json.to_owned(),
    };
    let number = || anyhow!("is {json}, which is no number of its column's type");
    Ok(match kind {
        Kind::Integer => Value::Integer(text.parse().ok().ok_or_else(number)?),
        Kind::Unsigned => Value::Unsigned(text.parse().ok().ok_or_else(number)?),
        Kind::Real => Value::Real(text.parse().ok().ok_or_else(number)?),
        Kind::Literal if !is_text => Value::Literal(text),
        Kind::Bytes => {
            Value::Bytes(unhex(&text).with_context(|| format!("is {json}, which is not written as \\x00ff"))?)
        }
        Kind::Literal | Kind::Text | Kind::Json => Value::Text(text),
        Kind::Dynamic if is_text => Value::Text(text),
        Kind::Dynamic => match (text.parse(), text.parse()) {
            (Ok(integer), _) => Value::Integer(integer),
            (_, Ok(real)) => Value::Real(real),
            _ => bail!("is {json}, which SQLite has no value for"),
        },
    })
}

/// The value whose [`Value::text`] it is.
fn value_of_text(kind: Kind, text: &str) -> Result<Value> {
    match kind {
        Kind::Dynamic => Ok(match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) if number.to_string() == text => Value::Integer(number),
            (_, Ok(number)) if Value::Real(number).text() == text => Value::Real(number),
            // The column makes a number of it where it holds numbers.
            _ => text_or_bytes(text),
        }),
        Kind::Literal if serde_json::from_str::<&RawValue>(text).is_ok() => value(kind, text),
        _ => value(kind, &serde_json::to_string(text)?),
    }
}

fn text_or_bytes(text: &str) -> Value {
    unhex(text).map_or_else(|| Value::Text(text.to_owned()), Value::Bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| u8::try_from(digit(pair[0])? << 4 | digit(*pair.get(1)?)?).ok();
    digits.chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_ksync_writes_it_and_as_others_may() {
        for (kind, json, expected) in [
            (Kind::Integer, "-7", Value::Integer(-7)),
            (Kind::Integer, "\"9007199254740993\"", Value::Integer(9_007_199_254_740_993)),
            (Kind::Unsigned, "18446744073709551615", Value::Unsigned(u64::MAX)),
            (Kind::Real, "1.5", Value::Real(1.5)),
            (Kind::Real, "\"Infinity\"", Value::Real(f64::INFINITY)),
            (Kind::Literal, "0.10", Value::Literal("0.10".to_owned())),
            (Kind::Literal, "\"NaN\"", Value::Text("NaN".to_owned())),
            (Kind::Text, "\"a\\n\"", Value::Text("a\n".to_owned())),
            (Kind::Text, "007", Value::Text("007".to_owned())),
            (Kind::Bytes, "\"\\\\x00fF\"", Value::Bytes(vec![0, 255])),
            (Kind::Dynamic, "7", Value::Integer(7)),
            (Kind::Dynamic, "7.0", Value::Real(7.0)),
            (Kind::Dynamic, "\"7\"", Value::Text("7".to_owned())),
        ] {
            assert_eq!(value(kind, json).unwrap(), expected, "{json}");
        }
        for (kind, json) in [
            (Kind::Integer, "1.5"),
            (Kind::Integer, "\"x\""),
            (Kind::Integer, "null"),
            (Kind::Unsigned, "-1"),
            (Kind::Text, "{}"),
            (Kind::Text, "[1]"),
            (Kind::Bytes, "\"00ff\""),
            (Kind::Bytes, "\"\\\\x0\""),
            (Kind::Bytes, "\"\\\\x0g\""),
            (Kind::Dynamic, "true"),
        ] {
            assert!(value(kind, json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_record_key_is_read_as_it_was_written() {
        for (kind, value) in [
            (Kind::Integer, Value::Integer(-7)),
            (Kind::Unsigned, Value::Unsigned(u64::MAX)),
            (Kind::Real, Value::Real(1.5)),
            (Kind::Real, Value::Real(f64::NEG_INFINITY)),
            (Kind::Literal, Value::Literal("0.10".to_owned())),
            (Kind::Literal, Value::Text("NaN".to_owned())),
            (Kind::Text, Value::Text("007\"\n".to_owned())),
            (Kind::Bytes, Value::Bytes(vec![0, 255])),
            (Kind::Dynamic, Value::Integer(7)),
            (Kind::Dynamic, Value::Real(2.5)),
            (Kind::Dynamic, Value::Real(7.0)),
            (Kind::Dynamic, Value::Real(1e300)),
            (Kind::Dynamic, Value::Text("2.50".to_owned())),
            (Kind::Dynamic, Value::Text("NaN".to_owned())),
            (Kind::Dynamic, Value::Text("007".to_owned())),
            (Kind::Dynamic, Value::Bytes(vec![0, 255])),
        ] {
            assert_eq!(value_of_text(kind, &value.text()).unwrap(), value);
        }
        assert!(value_of_text(Kind::Integer, "x").is_err());
    }
}
