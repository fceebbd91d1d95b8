//! Sending dead letters back.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use clap::Args;

use super::{KafkaOptions, LeaderOptions};
use crate::lead::{Bounded, Leading};
use crate::redrive::Route;
use crate::topic::{Name, Offset};

/// Whether dead letters are sent back, and which.
#[derive(Args, Clone, Debug)]
pub struct RedriveOptions {
    /// Sends the dead letters of this name back to their topic, where all names get them, and ends
    #[arg(long, env = "KSYNC_REDRIVE", conflicts_with_all = ["command", "partition"], help_heading = "Redrive")]
    pub redrive: bool,

    /// Only letters that had these offsets in their topic, both included; the others are passed
    #[arg(
        long, env = "KSYNC_REDRIVE_OFFSETS", value_name = "FROM-TO", value_parser = offsets, requires = "redrive",
        conflicts_with = "command", help_heading = "Redrive"
    )]
    pub redrive_offsets: Option<RangeInclusive<Offset>>,

    /// Only letters that come from this partition of their topic; the others are passed
    #[arg(
        long, env = "KSYNC_REDRIVE_PARTITION", value_name = "N", value_parser = clap::value_parser!(i32).range(0..),
        requires = "redrive", conflicts_with = "command", help_heading = "Redrive"
    )]
    pub redrive_partition: Option<i32>,
}

impl RedriveOptions {
    /// Makes what the dead-letter topics are led with, and says where their records go.
    pub async fn start(
        &self,
        (kafka, leader): (&KafkaOptions, &LeaderOptions),
        name: &Name,
        bounded: Bounded,
    ) -> Result<(Leading, Route)> {
        let cluster = kafka.cluster()?;
        let read = kafka.topic.iter().map(|topic| leader.dead_letter_topic(topic, name)).collect::<Result<Vec<_>>>()?;
        // What the options, or a file that the consumers share, say of the origin is not said of the dead-letter topic.
        let kafka = KafkaOptions { partition: vec![], ..kafka.clone() };
        let leader = LeaderOptions { first_start: None, ..leader.clone() };
        let leading = leader.leading((&cluster, &kafka), &read, &Name::redrive(), Some(bounded)).await?;
        let mut origins = BTreeMap::new();
        for topic in &kafka.topic {
            origins.insert(topic.clone(), leading.admin.need(topic, None, kafka.patience(true)).await?);
        }
        let (partition, offsets) = (self.redrive_partition, self.redrive_offsets.clone());
        Ok((leading, Route { writer: leader.writer(&cluster)?, origins, partition, offsets }))
    }
}

fn offsets(text: &str) -> Result<RangeInclusive<Offset>> {
    let parse = || {
        let (from, to) = text.split_once('-')?;
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        (0 <= from && from <= to).then_some(Offset(from)..=Offset(to))
    };
    parse().context("offsets are written FROM-TO, for example 100-4711")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_offsets_goes_from_the_first_to_the_last() {
        assert_eq!(offsets("100-4711").unwrap(), Offset(100)..=Offset(4711));
        assert_eq!(offsets("7-7").unwrap(), Offset(7)..=Offset(7));
        for text in ["", "7", "-7", "7-", "8-7", "-1-7", "7--8", "a-b"] {
            assert_eq!(
                offsets(text).unwrap_err().to_string(),
                "offsets are written FROM-TO, for example 100-4711",
                "{text}"
            );
        }
    }
}
