//! What is stored beside an offset, and how it is written: a plain number for the gem, JSON for us.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Term;
use crate::record::LastRecord;
use crate::topic::{Offset, TopicId};

/// The version of the state that this program writes, and the newest that it can read.
const VERSION: u64 = 1;

/// How far a partition is done, and what that number belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub offset: Offset,
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub topic_id: TopicId,
    pub leader_epoch: Option<i32>,
    /// The record before `offset`, where one was read.
    pub last: Option<LastRecord>,
    /// The last record that the operator had passed (`--skip`), for whoever looks for it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Offset>,
}

/// A position as it is stored, with the term that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    v: u64,
    #[serde(flatten)]
    pub position: Position,
    pub term: Term,
}

impl State {
    pub fn new(position: Position, term: Term) -> State {
        State { v: VERSION, position, term }
    }
}

/// What a take-over found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Rules where the two differ: the gem and people move only this one.
    pub offset: StoredOffset,
    pub state: StoredState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredOffset {
    /// Absent or empty.
    None,
    At(Offset),
    /// Not a number that an offset can be; the text, made printable.
    Garbage(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredState {
    /// Absent or empty: never committed by ksync.
    None,
    Kept(State),
    /// Of this version, which a later release has written: what it means is not known, and must not be overwritten.
    Newer(u64),
    /// Written by something else; why it cannot be read.
    Unreadable(String),
}

impl StoredOffset {
    pub(super) fn parse(data: &[u8]) -> StoredOffset {
        let text = data.trim_ascii();
        if text.is_empty() {
            return StoredOffset::None;
        }
        let number = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        match number {
            Some(offset @ 0..) => StoredOffset::At(Offset(offset)),
            _ => StoredOffset::Garbage(data.escape_ascii().to_string()),
        }
    }
}

impl StoredState {
    pub(super) fn parse(data: &[u8]) -> StoredState {
        #[derive(Deserialize)]
        struct Versioned {
            v: u64,
        }
        if data.trim_ascii().is_empty() {
            return StoredState::None;
        }
        match serde_json::from_slice(data) {
            Ok(Versioned { v }) if v > VERSION => StoredState::Newer(v),
            Ok(Versioned { .. }) => match serde_json::from_slice(data) {
                Ok(state) => StoredState::Kept(state),
                Err(err) => StoredState::Unreadable(err.to_string()),
            },
            Err(err) => StoredState::Unreadable(err.to_string()),
        }
    }
}

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let last = LastRecord { offset: Offset(4710), ts: Some(1_700_000_000_123), crc32c: u32::MAX };
        let position = Position {
            offset: Offset(4711),
            topic_id: TopicId(0xab),
            leader_epoch: Some(3),
            last: Some(last),
            skipped: None,
        };
        State::new(position, Term(12))
    }

    #[test]
    fn a_state_is_read_as_it_is_written() {
        let json = serde_json::to_string(&state()).unwrap();
        assert_eq!(
            json,
            r#"{"v":1,"offset":4711,"topic_id":"000000000000000000000000000000ab","leader_epoch":3,"#.to_owned()
                + r#""last":{"offset":4710,"ts":1700000000123,"crc32c":4294967295},"term":12}"#
        );
        assert_eq!(StoredState::parse(json.as_bytes()), StoredState::Kept(state()));
    }

    #[test]
    fn a_state_without_a_record_is_read_as_it_is_written() {
        let position = Position { leader_epoch: None, last: None, ..state().position };
        let state = State::new(position, Term(i64::MAX));
        let json = serde_json::to_vec(&state).unwrap();
        assert_eq!(StoredState::parse(&json), StoredState::Kept(state));
    }

    #[test]
    fn members_of_a_later_release_are_passed_over() {
        let json = serde_json::to_string(&state()).unwrap().replacen('{', r#"{"noted":[4709],"#, 1);
        assert_eq!(StoredState::parse(json.as_bytes()), StoredState::Kept(state()));
    }

    #[test]
    fn a_newer_or_broken_state_is_never_taken_for_none() {
        assert_eq!(StoredState::parse(br#"{"v":2,"offset":{"high":1}}"#), StoredState::Newer(2));
        for broken in ["{", "4711", "{}", r#"{"v":1,"offset":1}"#, r#"{"v":1,"offset":1,"topic_id":"x","term":1}"#] {
            let parsed = StoredState::parse(broken.as_bytes());
            assert!(matches!(parsed, StoredState::Unreadable(_)), "{broken}: {parsed:?}");
        }
        assert_eq!(StoredState::parse(b""), StoredState::None);
    }

    #[test]
    fn an_offset_is_a_number_or_nothing_or_garbage() {
        let garbage = |text: &str| StoredOffset::Garbage(text.to_owned());
        for (data, offset) in [
            ("", StoredOffset::None),
            ("\n", StoredOffset::None),
            ("0", StoredOffset::At(Offset(0))),
            ("4711", StoredOffset::At(Offset(4711))),
            ("4711\n", StoredOffset::At(Offset(4711))),
            ("9223372036854775807", StoredOffset::At(Offset(i64::MAX))),
            ("9223372036854775808", garbage("9223372036854775808")),
            ("-1", garbage("-1")),
            ("12x", garbage("12x")),
            ("ä\n", garbage("\\xc3\\xa4\\n")),
        ] {
            assert_eq!(StoredOffset::parse(data.as_bytes()), offset, "{data:?}");
        }
    }
}
