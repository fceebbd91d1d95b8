//! How far the consumers of a topic are behind what is written, and how far they may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::timeout;

use crate::election::{Election, Standing};
use crate::exit::Exit;
use crate::kafka::Ends;
use crate::topic::{Name, Offset, Topic};

/// How long ZooKeeper may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// How many records behind consumers may be; `None` is no limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of names that somebody queues for or leads.
    pub live: Option<u64>,
    /// Of these names, whether or not somebody is at work.
    pub named: BTreeMap<Name, Option<u64>>,
}

impl Limits {
    pub fn are_none(&self) -> bool {
        self.live.is_none() && self.named.values().all(Option::is_none)
    }

    /// What holds for a name, if anything does.
    fn of(&self, name: &Name, standing: &Standing) -> Option<u64> {
        match self.named.get(name) {
            Some(limit) => *limit,
            None => self.live.filter(|_| standing.candidates > 0),
        }
    }
}

/// A look at the consumers of a topic.
pub struct Lag {
    pub topic: Topic,
    pub limits: Limits,
    pub election: Election,
    pub ends: Ends,
}

/// The name that leaves the least room below its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    pub name: Name,
    pub lag: u64,
    pub limit: u64,
}

impl Behind {
    /// How many records may be written until it is over its limit.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.lag)
    }

    pub fn is_over(&self) -> bool {
        self.lag > self.limit
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lag of {} is {}, more than {}", self.name, self.lag, self.limit)
    }
}

impl Lag {
    /// Fails where ZooKeeper does not answer, or a name that has a limit never read the topic.
    pub async fn check(&self) -> Result<()> {
        let standings = self.standings().await?;
        for (name, _) in self.limits.named.iter().filter(|(_, limit)| limit.is_some()) {
            if standings.get(name).is_none_or(|standing| standing.offsets.is_empty() && standing.candidates == 0) {
                let error = anyhow!("--max-lag: nobody has ever read topic {} as {name}", self.topic);
                return Err(Exit::Misconfigured.because(error));
            }
        }
        Ok(())
    }

    /// Who leaves the least room; `None` where no limit holds for anybody.
    ///
    /// Fails where ZooKeeper or Kafka does not answer within 3 s.
    pub async fn look(&self) -> Result<Option<Behind>> {
        let standings = self.standings().await?;
        let counted = |name: &Name, standing: &Standing| self.limits.of(name, standing).is_some();
        let counted = standings.iter().filter(|(name, standing)| counted(name, standing));
        let partitions = counted.flat_map(|(_, standing)| standing.offsets.keys().copied()).collect::<BTreeSet<_>>();
        let ends = self.ends.of(&self.topic, partitions).await.map_err(|error| Exit::Again.because(error))?;
        Ok(least_room(&self.limits, &standings, &ends))
    }

    async fn standings(&self) -> Result<BTreeMap<Name, Standing>> {
        let answer = timeout(ANSWER, self.election.standings(&self.topic)).await;
        let away = || format!("{} has not answered within {ANSWER:?}", self.election);
        let standings = answer.with_context(away).map_err(|error| Exit::Again.because(error))?;
        let standings = standings.map_err(|error| Exit::Misconfigured.because(error));
        standings.with_context(|| format!("cannot see the consumers of topic {}", self.topic))
    }
}

/// Partitions without an offset do not count: those that nobody of the name reads, and those that are about to be read for the
/// first time.
fn least_room(limits: &Limits, standings: &BTreeMap<Name, Standing>, ends: &BTreeMap<i32, Offset>) -> Option<Behind> {
    let behind = standings.iter().filter_map(|(name, standing)| {
        let limit = limits.of(name, standing)?;
        let lag = |(partition, offset): (&i32, &Offset)| {
            ends.get(partition).map_or(0, |end| u64::try_from(end.0 - offset.0).unwrap_or_default())
        };
        Some(Behind { name: name.clone(), lag: standing.offsets.iter().map(lag).sum(), limit })
    });
    // One that is over before one that is merely at its limit.
    behind.min_by_key(|behind| (behind.room(), std::cmp::Reverse(behind.lag.saturating_sub(behind.limit))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn standing(candidates: usize, offsets: &[(i32, i64)]) -> Standing {
        let offsets = offsets.iter().map(|(partition, offset)| (*partition, Offset(*offset))).collect();
        Standing { candidates, offsets }
    }

    #[test]
    fn the_lag_is_summed_over_partitions_and_the_name_with_the_least_room_counts() {
        let standings = BTreeMap::from([
            (name("indexer"), standing(2, &[(0, 90), (1, 100)])),
            // Set ahead of the log, or the log was cut: never less than 0.
            (name("cacher"), standing(1, &[(0, 500), (1, 70)])),
            (name("gone"), standing(0, &[(0, 0), (1, 0)])),
            (name("new"), standing(1, &[])),
        ]);
        let ends = BTreeMap::from([(0, Offset(100)), (1, Offset(100)), (2, Offset(9000))]);
        let least = |live, named: &[(&str, Option<u64>)]| {
            let named = named.iter().map(|(text, limit)| (name(text), *limit)).collect();
            let behind = least_room(&Limits { live, named }, &standings, &ends)?;
            Some((behind.to_string(), behind.room(), behind.is_over()))
        };
        let is = |text: &str, room, is_over| Some((text.to_owned(), room, is_over));
        assert_eq!(least(Some(50), &[]), is("lag of cacher is 30, more than 50", 20, false));
        assert_eq!(least(Some(29), &[]), is("lag of cacher is 30, more than 29", 0, true));
        assert_eq!(least(Some(29), &[("cacher", None)]), is("lag of indexer is 10, more than 29", 19, false));
        assert_eq!(least(Some(50), &[("gone", Some(199))]), is("lag of gone is 200, more than 199", 0, true));
        // Both have no room left, one of them is over.
        assert_eq!(least(Some(30), &[("indexer", Some(9))]), is("lag of indexer is 10, more than 9", 0, true));
        assert_eq!(least(None, &[("nobody", Some(1))]), None);
    }
}
