//! What is set for topics, as the brokers tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::topic::Topic;

/// What is known of some topics and their cluster. A topic that is missing here does not exist.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The ids of the brokers.
    pub brokers: Vec<i32>,
    pub topics: BTreeMap<Topic, TopicSettings>,
}

/// What is known of a topic. A setting that is missing here is unknown, and never taken for its default.
#[derive(Clone, Debug, Default)]
pub(super) struct TopicSettings {
    /// The brokers that hold each partition.
    pub replicas: Vec<Vec<i32>>,
    pub values: BTreeMap<String, String>,
}

impl Settings {
    /// Whether each of these topics exists and tells its settings.
    pub fn are_all_of(&self, topics: &BTreeSet<Topic>) -> bool {
        topics.iter().all(|topic| self.topics.get(topic).is_some_and(TopicSettings::is_readable))
    }
}

impl TopicSettings {
    /// A topic whose settings we may read has some.
    pub fn is_readable(&self) -> bool {
        !self.values.is_empty()
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// A setting in milliseconds; `Duration::MAX` for -1.
    pub fn time(&self, name: &str) -> Option<Duration> {
        self.number(name).map(|millis| u64::try_from(millis).map_or(Duration::MAX, Duration::from_millis))
    }

    /// Whether it deletes what is old, as far as that is known.
    pub fn deletes(&self) -> bool {
        self.has_policy("delete") != Some(false)
    }

    /// How long it keeps a record; `Duration::MAX` for ever.
    pub fn retention(&self) -> Option<Duration> {
        self.time("retention.ms").filter(|_| self.deletes())
    }

    /// Whether its cleanup.policy has this.
    pub fn has_policy(&self, policy: &str) -> Option<bool> {
        self.text("cleanup.policy").map(|policies| policies.split(',').any(|one| one.trim() == policy))
    }
}
