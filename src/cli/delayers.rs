//! Whether anybody sends on what ksync-stream puts into a delay topic, and not too early.

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

    /// Warns where nobody queues to send on what comes into these partitions, or fails where a delayer is required. Fails
    /// where delayers hold messages for less than `delay`.
    pub async fn look(&self, delay_topic: &Topic, partitions: &BTreeSet<i32>, delay: Duration) -> Result<()> {
        let Some(servers) = &self.zookeeper else { return Ok(()) };
        let found = match seen(servers, delay_topic).await {
            Ok(Delayers { shortest: Some(shortest), .. }) if shortest < delay => {
                let [shortest, delay] = [shortest, delay].map(humantime::format_duration);
                return Err(Exit::Misconfigured.because(anyhow!(
                    "the delay messages of {delay_topic} are held for {shortest} and not for {delay}: what is committed later \
                     than that would be announced to nobody; give the same --delay here and to ksync-delayer"
                )));
            }
            Ok(Delayers { served, .. }) => {
                let unserved: Vec<_> = partitions.difference(&served).map(i32::to_string).collect();
                if unserved.is_empty() {
                    return Ok(());
                }
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

/// What is seen of delayers.
struct Delayers {
    /// The partitions that they queue for or lead.
    served: BTreeSet<i32>,
    /// For how long messages are held in that partition in which it is the least.
    shortest: Option<Duration>,
}

async fn seen(servers: &Servers, delay_topic: &Topic) -> Result<Delayers> {
    let election = Election::ZooKeeper(ZooKeeper::connect(servers, SESSION));
    let answers =
        timeout(LOOK, async { tokio::try_join!(election.candidates(delay_topic), election.delay_of(delay_topic)) })
            .await;
    let away = || format!("{election} has not answered within {LOOK:?}");
    let answers = answers.with_context(away).map_err(|error| Exit::Again.because(error))?;
    election.close().await;
    let (seats, shortest) = answers.map_err(|error| Exit::Misconfigured.because(error))?;
    let delayers = seats.into_iter().map(|(seat, _)| seat).filter(|seat| seat.name == Name::delayer());
    Ok(Delayers { served: delayers.map(|seat| seat.partition.partition).collect(), shortest })
}
