//! Holds delay messages back, and sends them on as instant messages once they are due.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Parser;
use ksync::cli::{self, Common, DelayOption, KafkaOptions, LeaderOptions, OnInvalidMessage, Tool};
use ksync::delay::Delay;
use ksync::exit::Exit;
use ksync::lead::{Board, Leading};
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
    let leading = leader.leading((&cluster, kafka), &read, &Name::delayer(), None).await?;
    for (delay_topic, topic) in &topics {
        let patience = kafka.patience(false);
        let waiting = leading.admin.need(delay_topic, None, patience).await?;
        let going_on = leading.admin.need(topic, kafka.create_topics, patience).await?;
        if waiting != going_on {
            let error = anyhow!(
                "topic {delay_topic} has {waiting} partitions and {topic} has {going_on}; a message goes on to the \
                 partition with its own number, so add partitions to the smaller one"
            );
            return Err(Exit::Misconfigured.because(error));
        }
    }
    leading.declare_delay(delay).await.map_err(|error| Exit::Misconfigured.because(error))?;
    let writer = leader.writer(&cluster)?;
    let on_invalid = cli.on_invalid.into();
    let dead_letters = leader.dead_letters(&writer, (&leading, kafka), &topics, on_invalid).await?;
    let (election, reader) = (leading.election.clone(), leading.reader.clone());
    let room = leading.share(leader.memory);
    Ok((leading, Delay { delay, election, topics, reader, writer, on_invalid, dead_letters, room }))
}

fn main() -> ExitCode {
    cli::daemon(run)
}
