//! Names of places in Kafka: a topic, one of its partitions, an offset in it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The longest topic name that Kafka takes, in bytes (`org.apache.kafka.common.internals.Topic`).
const MAX_NAME: usize = 249;

/// A topic's name, known to be one that Kafka accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic of this one's delay messages: its name + `-delay`.
    ///
    /// Fails where that name is too long for Kafka.
    pub fn delay(&self) -> Result<Topic> {
        format!("{self}-delay").parse()
    }

    /// Where the records go that the handler of `name` cannot work on: `T-NAME-dead`.
    ///
    /// Fails where that name is too long for Kafka.
    pub fn dead_letter(&self, name: &Name) -> Result<Topic> {
        format!("{self}-{name}-dead").parse()
    }

    /// Of records that are made up, where no topic is named.
    pub fn made_up() -> Topic {
        Topic("products".into())
    }

    pub fn partition(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: self.clone(), partition }
    }
}

impl FromStr for Topic {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Topic> {
        checked(name, "topic")?;
        Ok(Topic(name.into()))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which kind of consumer reads a topic: `indexer`, `cacher`, `delayer`. Each name has its own offsets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of every ksync-delayer.
    pub fn delayer() -> Name {
        Name("delayer".into())
    }

    /// The name of everyone who sends dead letters back.
    pub fn redrive() -> Name {
        Name("redrive".into())
    }

    /// The name of a handler that is tried out, where it is given no other.
    pub fn replay() -> Name {
        Name("replay".into())
    }
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Name> {
        checked(name, "name")?;
        ensure!(!name.starts_with('-'), "the name '{name}' begins with '-', which other tools take for an option");
        Ok(Name(name.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may stand in a topic's name, and so in a path of ZooKeeper too.
fn checked(name: &str, what: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    ensure!(
        (1..=MAX_NAME).contains(&name.len()) && name.chars().all(legal) && name != "." && name != "..",
        "the {what} '{}' is not one that Kafka takes: 1 to {MAX_NAME} characters out of a-z, A-Z, 0-9, '.', '_' and '-'",
        name.escape_default()
    );
    Ok(())
}

/// One partition of a topic, `products/0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Topic,
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A place in a partition: always the next record to read, never the last one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offset(pub i64);

impl Offset {
    pub fn next(self) -> Offset {
        Offset(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// That all records before `end` were written in this epoch of the partition's leader, or in an earlier one. An epoch that is
/// later than that of the last of them does as well: where the log is cut off before `end`, a still later one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub number: i32,
    pub end: Offset,
}

/// The id that the brokers gave to this incarnation of a topic: one that is deleted and made again has another.
/// All zero where the brokers are older than 2.8 and have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicId(pub u128);

impl TopicId {
    pub fn is_known(self) -> bool {
        self.0 != 0
    }

    /// Whether it is that of another topic for sure.
    pub fn differs_from(self, other: TopicId) -> bool {
        self.is_known() && other.is_known() && self != other
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TopicId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<TopicId> {
        ensure!(text.len() == 32, "a topic id has 32 hexadecimal digits, not {}", text.len());
        Ok(TopicId(u128::from_str_radix(text, 16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_a_delay_topic_and_a_dead_letter_topic() {
        let products: Topic = "products".parse().unwrap();
        assert_eq!(products.delay().unwrap().as_str(), "products-delay");
        assert_eq!(products.dead_letter(&"indexer".parse().unwrap()).unwrap().as_str(), "products-indexer-dead");
        let longest: Topic = "x".repeat(MAX_NAME).parse().unwrap();
        assert!(longest.delay().unwrap_err().to_string().contains("1 to 249 characters"));
    }

    #[test]
    fn names_that_kafka_refuses_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(name.parse::<Topic>().is_err(), "{name:?}");
            assert!(name.parse::<Name>().is_err(), "{name:?}");
        }
        assert!("-rf".parse::<Name>().is_err());
    }

    #[test]
    fn a_topic_id_is_read_as_it_is_written() {
        let id = TopicId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef");
        assert_eq!(id.to_string().parse::<TopicId>().unwrap(), id);
    }

    #[test]
    fn an_id_that_is_not_known_differs_from_none() {
        let differ = |one, other| TopicId(one).differs_from(TopicId(other));
        assert_eq!(
            [differ(1, 2), differ(1, 1), differ(0, 2), differ(1, 0), differ(0, 0)],
            [true, false, false, false, false]
        );
    }
}
