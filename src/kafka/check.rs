//! Whether the settings of topics and of their cluster are such that nothing is lost: read at the start, and again later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use log::{Level, debug, error, log, warn};

use super::settings::Settings;
use super::{Admin, BATCH};
use crate::exit::Exit;
use crate::topic::Topic;

mod delay;
mod finding;
mod judge;
mod replicas;

pub use finding::Hazard;
use finding::{Commands, Finding};

/// How long the start waits for a broker to tell the settings.
const PATIENCE: Duration = Duration::from_secs(30);

/// A topic and its delay topic, as a tool uses them.
#[derive(Clone, Debug)]
pub struct Pair {
    pub topic: Topic,
    /// The delay topic, and how long messages wait there; `None` for a tool that has nothing to do with it.
    pub delay: Option<(Topic, Duration)>,
}

/// The check of some topics, and what it has found so far.
pub struct Check {
    admin: Admin,
    pairs: Vec<Pair>,
    /// The refusals that were overridden.
    allowed: Vec<Hazard>,
    told: Vec<Finding>,
    brokers: usize,
    largest_batch: Option<i64>,
    /// How long each topic keeps a record, where it deletes any.
    retentions: BTreeMap<Topic, Duration>,
}

impl Check {
    /// Reads the settings, and warns of those by which something may be lost.
    ///
    /// Fails with status 78 where one is refused that is not `allowed`. Settings that cannot be read are one warning, and
    /// hold nothing up.
    pub async fn start(admin: &Admin, pairs: Vec<Pair>, allowed: Vec<Hazard>) -> Result<Check> {
        let (told, brokers, largest_batch, retentions) = Default::default();
        let mut check = Check { admin: admin.clone(), pairs, allowed, told, brokers, largest_batch, retentions };
        let found = match check.look(PATIENCE).await {
            Ok(found) => found,
            Err(error) => {
                warn!("{error:#}; they are not checked");
                return Ok(check);
            }
        };
        let mut refused = vec![];
        for (level, line) in found.iter().map(|finding| check.line(finding)) {
            match level {
                Level::Error => refused.push(line),
                _ => log!(level, "{line}"),
            }
        }
        // The last one is the error that ends the process; whoever mends it wants to see the others, too.
        let last = refused.pop();
        refused.iter().for_each(|line| error!("{line}"));
        last.map_or(Ok(check), |line| Err(Exit::Misconfigured.because(anyhow!(line))))
    }

    /// How many bytes of records each of the topics takes at once, where that is less than a [`Writer`](super::Writer) would
    /// give it.
    pub fn small_batches(&self) -> Option<i64> {
        self.largest_batch.filter(|bytes| *bytes < BATCH)
    }

    /// How many brokers there are, as they told it last; 0 where they did not.
    pub fn brokers(&self) -> usize {
        self.brokers
    }

    /// How long the topic keeps a record, as it was read last; `None` where that is for ever, or unknown.
    pub fn retention(&self, topic: &Topic) -> Option<Duration> {
        self.retentions.get(topic).copied()
    }

    /// How long records wait in the topic by intent.
    pub fn delay(&self, topic: &Topic) -> Duration {
        let delays = self.pairs.iter().filter_map(|pair| pair.delay.as_ref());
        delays.filter(|(delayed, _)| delayed == topic).map(|(_, delay)| *delay).next().unwrap_or_default()
    }

    /// How to let the topic keep a record for so long.
    pub fn keep(&self, topic: &Topic, time: Duration) -> String {
        self.commands().set(topic, &judge::retained(time))
    }

    /// Reads them again, and tells what is new: what would be refused at the start as an error. It ends nothing.
    pub async fn again(&mut self) {
        match self.look(Duration::ZERO).await {
            Ok(found) => {
                for (level, line) in found.iter().map(|finding| self.line(finding)) {
                    log!(level, "{line}");
                }
            }
            Err(error) => debug!("{error:#}"),
        }
    }

    /// What is said of a finding, and how loud.
    fn line(&self, finding: &Finding) -> (Level, String) {
        match (finding.hazard.is_refused(), self.allowed.contains(&finding.hazard)) {
            (true, false) => (Level::Error, finding.refused()),
            (true, true) => (Level::Warn, finding.allowed()),
            (false, _) => (Level::Warn, finding.to_string()),
        }
    }

    /// What is found now and was not the last time.
    async fn look(&mut self, patience: Duration) -> Result<Vec<Finding>> {
        let settings = self.settings(patience).await?;
        self.brokers = settings.brokers.len();
        self.largest_batch = settings.topics.values().filter_map(|topic| topic.number("max.message.bytes")).min();
        let kept = settings.topics.iter().filter_map(|(topic, settings)| Some((topic.clone(), settings.retention()?)));
        self.retentions = kept.filter(|(_, time)| *time < Duration::MAX).collect();
        let commands = self.commands();
        let mut found = vec![];
        let of_pairs = self.pairs.iter().flat_map(|pair| judge::findings(pair, &settings, &commands));
        for finding in judge::unreadable(&settings).into_iter().chain(of_pairs) {
            // A topic can be named twice.
            if !found.contains(&finding) {
                found.push(finding);
            }
        }
        let new = found.iter().filter(|finding| !self.told.contains(finding)).cloned().collect();
        self.told = found;
        Ok(new)
    }

    fn commands(&self) -> Commands<'_> {
        Commands { bootstrap: self.admin.bootstrap() }
    }

    async fn settings(&self, patience: Duration) -> Result<Settings> {
        let delay_topics = self.pairs.iter().filter_map(|pair| pair.delay.as_ref()).map(|(topic, _)| topic);
        let topics: BTreeSet<_> = self.pairs.iter().map(|pair| &pair.topic).chain(delay_topics).cloned().collect();
        self.admin.settings(&topics, patience).await
    }
}
