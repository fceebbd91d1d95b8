//! The value of a column, as it is bound again and as it is written in JSON.

use std::borrow::Cow;
use std::io::Write as _;

use serde::{Deserialize, Serialize};

/// What serde makes of it, which a checkpoint holds, gives the very same value again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Value {
    Integer(i64),
    Unsigned(u64),
    #[serde(with = "real")]
    Real(f64),
    /// A number or a bool, and outside of keys any JSON, in the text of the database, which is its JSON too.
    Literal(String),
    Text(String),
    #[serde(with = "base64")]
    Bytes(Vec<u8>),
}

impl Value {
    /// The text that the record key has for it, alone in its key.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Value::Integer(number) => number.to_string().into(),
            Value::Unsigned(number) => number.to_string().into(),
            Value::Real(number) if number.is_finite() => serde_json::to_string(number).expect(IN_MEMORY).into(),
            Value::Real(number) if *number > 0.0 => "Infinity".into(),
            Value::Real(_) => "-Infinity".into(),
            Value::Literal(text) | Value::Text(text) => text.into(),
            Value::Bytes(bytes) => hex(bytes).into(),
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// Appends it as JSON.
    pub fn write_json(&self, json: &mut Vec<u8>) {
        let written = match self {
            Value::Integer(number) => write!(json, "{number}"),
            Value::Unsigned(number) => write!(json, "{number}"),
            Value::Literal(text) => json.write_all(text.as_bytes()),
            Value::Real(number) if number.is_finite() => json.write_all(self.text().as_bytes()),
            other => serde_json::to_writer(json, &other.text()).map_err(Into::into),
        };
        written.expect(IN_MEMORY);
    }
}

const IN_MEMORY: &str = "a vector in memory takes all that is written";

/// As Postgres writes a bytea: `\x00ff`.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    "\\x".chars().chain(digits.map(char::from)).collect()
}

/// A float as its shortest text, since JSON has no infinity and not every parser gives each digit back.
mod real {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod base64 {
    use base64::Engine as _;
    use base64::display::Base64Display;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(bytes, &STANDARD))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
