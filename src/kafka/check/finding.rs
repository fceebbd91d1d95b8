//! What may be found: its name, its text, the command that mends it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::topic::Topic;

/// What can be wrong with settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    DelayRetention,
    DelayCompaction,
    PartitionCount,
    MessageSize,
    DelayOutage,
    DelayTimestamps,
    DelayName,
    Retention,
    RetentionBytes,
    Compaction,
    Replication,
    MinInsync,
    MinInsyncAll,
    UncleanElection,
    TimestampLimits,
    Unreadable,
}

impl Hazard {
    /// Those that no tool starts with, unless they are allowed by name.
    pub const REFUSED: [Hazard; 4] =
        [Hazard::DelayRetention, Hazard::DelayCompaction, Hazard::PartitionCount, Hazard::MessageSize];

    pub fn is_refused(self) -> bool {
        Hazard::REFUSED.contains(&self)
    }

    pub fn name(self) -> &'static str {
        match self {
            Hazard::DelayRetention => "delay-retention",
            Hazard::DelayCompaction => "delay-compaction",
            Hazard::PartitionCount => "partition-count",
            Hazard::MessageSize => "message-size",
            Hazard::DelayOutage => "delay-outage",
            Hazard::DelayTimestamps => "delay-timestamps",
            Hazard::DelayName => "delay-name",
            Hazard::Retention => "retention",
            Hazard::RetentionBytes => "retention-bytes",
            Hazard::Compaction => "compaction",
            Hazard::Replication => "replication",
            Hazard::MinInsync => "min-insync",
            Hazard::MinInsyncAll => "min-insync-all",
            Hazard::UncleanElection => "unclean-election",
            Hazard::TimestampLimits => "timestamp-limits",
            Hazard::Unreadable => "unreadable",
        }
    }
}

impl FromStr for Hazard {
    type Err = anyhow::Error;

    /// One that is refused: only such a one can be allowed.
    fn from_str(name: &str) -> Result<Hazard> {
        let found = Hazard::REFUSED.into_iter().find(|hazard| hazard.name() == name);
        found.with_context(|| {
            format!("nothing is refused by that name, but by {}", Hazard::REFUSED.map(Hazard::name).join(", "))
        })
    }
}

/// A hazard that was found. It reads as a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub hazard: Hazard,
    /// What is set, and what may happen.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

impl Finding {
    /// The text of one that is refused.
    pub fn refused(&self) -> String {
        let (name, Finding { what, mend, .. }) = (self.hazard.name(), self);
        format!("{what} ({name}); accept it by --allow-unsafe {name}, or {mend}")
    }

    /// The text of one that would be refused, were it not allowed.
    pub fn allowed(&self) -> String {
        let (name, Finding { what, mend, .. }) = (self.hazard.name(), self);
        format!("{what} ({name}); accepted by --allow-unsafe {name}; {mend}")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}); {}", self.what, self.hazard.name(), self.mend)
    }
}

/// Makes the commands of Kafka's own tools that mend a setting.
pub(super) struct Commands<'a> {
    pub bootstrap: &'a str,
}

impl Commands<'_> {
    /// Sets `name=value`, or several, after each other with commas.
    pub fn set(&self, topic: &Topic, settings: &str) -> String {
        let bootstrap = self.bootstrap;
        format!(
            "mend it with: kafka-configs.sh --bootstrap-server {bootstrap} --alter --topic {topic} --add-config {settings}"
        )
    }

    pub fn partitions(&self, topic: &Topic, count: usize) -> String {
        let bootstrap = self.bootstrap;
        format!(
            "mend it with: kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {topic} --partitions {count}"
        )
    }

    /// Gives each partition so many of the brokers, those first that have it now.
    pub fn replicas(&self, topic: &Topic, replicas: &[Vec<i32>], brokers: &[i32], count: usize) -> String {
        let partitions = (0..).zip(replicas).map(|(partition, now): (usize, _)| {
            // Each begins the search at another broker, so that they share the load.
            let ring = brokers.iter().cycle().skip(partition).take(brokers.len());
            let more = ring.filter(|broker| !now.contains(broker));
            let ids: Vec<_> = now.iter().chain(more).take(count).map(i32::to_string).collect();
            format!(r#"{{"topic":"{topic}","partition":{partition},"replicas":[{}]}}"#, ids.join(","))
        });
        let partitions: Vec<_> = partitions.collect();
        let (bootstrap, partitions) = (self.bootstrap, partitions.join(","));
        format!(
            "mend it with: echo '{{\"version\":1,\"partitions\":[{partitions}]}}' | kafka-reassign-partitions.sh \
             --bootstrap-server {bootstrap} --reassignment-json-file /dev/stdin --execute"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_can_be_allowed_by_its_name_and_nothing_else() {
        for hazard in Hazard::REFUSED {
            assert_eq!(hazard.name().parse::<Hazard>().unwrap(), hazard);
        }
        for name in ["retention", "delay_retention", ""] {
            let expected = "nothing is refused by that name, but by delay-retention, delay-compaction, partition-count, \
                            message-size";
            assert_eq!(name.parse::<Hazard>().unwrap_err().to_string(), expected, "{name}");
        }
    }
}
