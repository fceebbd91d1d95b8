//! Which cluster, which topics of it, and how long its delay messages wait.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;

use super::config::assignments;
use super::{CheckOptions, duration};
use crate::exit::Exit;
use crate::kafka::{Cluster, NewTopics, Property};
use crate::topic::Topic;

/// Which cluster, and which topics of it.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Brokers to begin with
    #[arg(
        short,
        long,
        env = "KSYNC_BOOTSTRAP_SERVER",
        value_name = "HOST:PORT,..",
        required = true,
        help_heading = "Kafka"
    )]
    pub bootstrap_server: Option<String>,

    /// Topic to work on; the name of its delay topic ends in -delay
    #[arg(
        short,
        long,
        env = "KSYNC_TOPIC",
        value_name = "TOPIC",
        required = true,
        value_delimiter = ',',
        help_heading = "Kafka"
    )]
    pub topic: Vec<Topic>,

    /// Only these partitions [default: all, also those added later]
    #[arg(short, long, env = "KSYNC_PARTITION", value_name = "N,..", value_delimiter = ',', help_heading = "Kafka")]
    pub partition: Vec<i32>,

    /// Makes topics that do not exist, with so many partitions and replicas [default: the broker's]
    #[arg(
        long, env = "KSYNC_CREATE_TOPICS", value_name = "PARTITIONS[:REPLICATION]", num_args = 0..=1,
        require_equals = true, default_missing_value = "", help_heading = "Kafka"
    )]
    pub create_topics: Option<NewTopics>,

    /// Sets a property of librdkafka
    #[arg(short = 'X', env = "KSYNC_X", hide_env_values = true, value_name = "NAME=VALUE", help_heading = "Kafka")]
    pub property: Vec<Property>,

    /// Reads properties of librdkafka, one NAME=VALUE a line
    #[arg(short = 'F', env = "KSYNC_F", value_name = "FILE", help_heading = "Kafka")]
    pub property_file: Option<PathBuf>,

    #[command(flatten)]
    pub check: CheckOptions,
}

impl KafkaOptions {
    /// Fails where the file of properties cannot be read, or has one that is refused.
    pub fn cluster(&self) -> Result<Cluster> {
        let mut properties = vec![];
        if let Some(file) = &self.property_file {
            let lines = assignments(file).map_err(|error| Exit::Misconfigured.because(error))?;
            for (name, value) in lines {
                let property = format!("{name}={value}").parse::<Property>();
                let named = property.with_context(|| format!("cannot use {}", file.display()));
                properties.push(named.map_err(|error| Exit::Misconfigured.because(error))?);
            }
        }
        properties.extend(self.property.iter().cloned());
        let bootstrap = self.bootstrap_server.clone().expect("it is required of all that use a server");
        Ok(Cluster { bootstrap, properties })
    }

    /// The topic of a tool that works on one.
    pub fn one_topic(&self) -> Result<&Topic> {
        match self.topic.as_slice() {
            [topic] => Ok(topic),
            several => Err(Exit::Usage.because(anyhow!("one --topic is wanted, not {}", several.len()))),
        }
    }

    /// The partitions to work on, of as many as the topic has.
    pub fn chosen(&self, topic: &Topic, count: i32) -> Result<BTreeSet<i32>> {
        if let Some(missing) = self.partition.iter().find(|partition| !(0..count).contains(partition)) {
            let last = count - 1;
            let error =
                anyhow!("topic {topic} has no partition {missing}; its partitions are 0 to {last} (--partition)");
            return Err(Exit::Misconfigured.because(error));
        }
        Ok(if self.partition.is_empty() { (0..count).collect() } else { self.partition.iter().copied().collect() })
    }

    /// How long to wait for the first answer of a broker: a daemon waits for ever.
    pub fn patience(&self, is_bounded: bool) -> Duration {
        if is_bounded { Duration::from_secs(30) } else { Duration::MAX }
    }
}

/// How long delay messages wait.
#[derive(Args, Clone, Debug)]
pub struct DelayOption {
    /// How long a delay message is held back after it was made; longer than the longest transaction
    #[arg(long, env = "KSYNC_DELAY", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub delay: Duration,
}

impl DelayOption {
    /// Says so where the delay is shorter than transactions may well be.
    pub fn checked(&self) -> Duration {
        if self.delay < Duration::from_secs(60) {
            log::warn!(
                "a delay of {} is short: a transaction that takes longer is not covered; see --delay",
                humantime::format_duration(self.delay)
            );
        }
        self.delay
    }
}
