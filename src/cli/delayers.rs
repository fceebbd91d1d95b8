//! Whether anybody sends on what ksync-stream puts into a delay topic.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use log::warn;
use tokio::time::timeout;

use crate::election::{Election, Servers, ZooKeeper};
use crate::exit::Exit;
use crate::topic::{Name, Topic};

/// How long a run waits for ZooKeeper to tell.
const LOOK: Duration = Duration::from_secs(3);
/// Nothing is held by this session.
const SESSION: Duration = Duration::from_secs(10);

/// Where delayers are seen, and whether there has to be one.
#[derive(Args, Clone, Debug)]
pub struct DelayerOptions {
    /// ZooKeeper servers, to see whether a delayer is at work; a path after them keeps installations apart
    #[arg(long, env = "KSYNC_ZOOKEEPER", value_name = "HOST:PORT,..[/CHROOT]", help_heading = "ZooKeeper")]
    pub zookeeper: Option<Servers>,

    /// Sends no delay messages that no delayer is at work for; without it that is a warning
    #[arg(long, env = "KSYNC_REQUIRE_DELAYER", help_heading = "ZooKeeper")]
    pub require_delayer: bool,
}

impl DelayerOptions {
    /// Seen without opening anything.
    pub fn check(&self) -> Result<()> {
        match self.require_delayer && self.zookeeper.is_none() {
            true => Err(Exit::Usage.because(anyhow!("--require-delayer can see delayers only by --zookeeper"))),
            false => Ok(()),
        }
    }

    /// Warns where nobody queues to send on what comes into these partitions, or fails where a delayer is required.
    pub async fn look(&self, delay_topic: &Topic, partitions: &BTreeSet<i32>) -> Result<()> {
        let Some(servers) = &self.zookeeper else { return Ok(()) };
        let found = match unserved(servers, delay_topic, partitions).await {
            Ok(unserved) if unserved.is_empty() => return Ok(()),
            Ok(unserved) => {
                let which = match unserved.len() < partitions.len() {
                    true => format!("partitions {} of topic", unserved.join(", ")),
                    false => "topic".to_owned(),
                };
                let waits = "delay messages lie there until one is started, with the same --zookeeper";
                Exit::Misconfigured.because(anyhow!("no ksync-delayer is at work for {which} {delay_topic}: {waits}"))
            }
            Err(error) => {
                error.context(format!("cannot see whether a ksync-delayer is at work for topic {delay_topic}"))
            }
        };
        if self.require_delayer {
            return Err(found.context("--require-delayer"));
        }
        warn!("{found:#}");
        Ok(())
    }
}

/// Those of the partitions without a delayer.
async fn unserved(servers: &Servers, delay_topic: &Topic, partitions: &BTreeSet<i32>) -> Result<Vec<String>> {
    let election = Election::ZooKeeper(ZooKeeper::connect(servers, SESSION)?);
    let seats = timeout(LOOK, election.candidates(delay_topic)).await;
    let away = || format!("{election} has not answered within {LOOK:?}");
    let seats = seats.with_context(away).map_err(|error| Exit::Again.because(error))?;
    election.close().await;
    let seats = seats.map_err(|error| Exit::Misconfigured.because(error))?;
    let delayers = seats.into_iter().map(|(seat, _)| seat).filter(|seat| seat.name == Name::delayer());
    let served: BTreeSet<i32> = delayers.map(|seat| seat.partition.partition).collect();
    Ok(partitions.difference(&served).map(i32::to_string).collect())
}
