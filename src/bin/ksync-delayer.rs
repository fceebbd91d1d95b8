//! Holds delay messages back, and sends them on as instant messages once they are due.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use ksync::cli::{self, Common, DelayOption, KafkaOptions, LeaderOptions, OnInvalidMessage, Tool};
use ksync::delay::{Clocks, Delay};
use ksync::exit::Exit;
use ksync::kafka::Pair;
use ksync::lead::{Board, Leading, Lookout};
use ksync::shutdown::Shutdown;
use ksync::topic::{Name, Topic};

/// Holds delay messages back, and sends them on as instant messages once they are due
#[derive(Clone, Debug, Parser)]
#[command(name = "ksync-delayer", version)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    leader: LeaderOptions,
    #[command(flatten)]
    delay: DelayOption,

    /// What to do with a message that is not a delay message
    #[arg(long, env = "KSYNC_ON_INVALID", value_name = "POLICY", default_value = "halt")]
    on_invalid: OnInvalidMessage,
    #[command(flatten)]
    common: Common,
}

impl Tool for Cli {
    fn common(&self) -> &Common {
        &self.common
    }

    fn grace(&self) -> Duration {
        self.leader.grace
    }

    fn is_daemon(&self) -> bool {
        true
    }
}

async fn run(cli: Cli, shutdown: Shutdown, board: Board) -> Result<Exit> {
    tokio::select! {
        started = start(&cli) => {
            let (mut leading, delay) = started?;
            leading.board = board;
            leading.run(delay, &shutdown).await
        }
        () = shutdown.requested() => Ok(Exit::Done),
    }
}

async fn start(cli: &Cli) -> Result<(Leading, Delay)> {
    let Cli { kafka, leader, .. } = cli;
    let cluster = kafka.cluster()?;
    let delay = cli.delay.checked();
    let topics: BTreeMap<Topic, Topic> =
        kafka.topic.iter().map(|topic| Ok((topic.delay()?, topic.clone()))).collect::<Result<_>>()?;
    let read: Vec<_> = topics.keys().cloned().collect();
    let mut leading = leader.leading((&cluster, kafka), &read, &Name::delayer(), None).await?;
    for topic in topics.values() {
        leading.admin.need(topic, kafka.create_topics, kafka.patience(false)).await?;
    }
    let waits = |delay_topic: &Topic| Some((delay_topic.clone(), delay));
    let pairs = topics.iter().map(|(delay_topic, topic)| Pair { topic: topic.clone(), delay: waits(delay_topic) });
    let check = kafka.check.start(&leading.admin, pairs).await?;
    leading.lookout = Some(Lookout::new(check, &cluster)?);
    leading.declare_delay(delay).await.map_err(|error| Exit::Misconfigured.because(error))?;
    let writer = leader.writer(&cluster)?;
    let on_invalid = cli.on_invalid.into();
    let dead_letters = leader.dead_letters(&writer, (&leading, kafka), &topics, on_invalid).await?;
    let (election, reader) = (leading.election.clone(), leading.reader.clone());
    let room = leading.share(leader.memory);
    let clocks = Clocks::default();
    Ok((leading, Delay { delay, election, topics, reader, writer, on_invalid, dead_letters, room, clocks }))
}

fn main() -> ExitCode {
    cli::daemon(run)
}
