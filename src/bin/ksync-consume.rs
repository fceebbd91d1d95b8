//! Hands the records of a topic to a command, batch by batch, as JSON lines on its stdin.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use ksync::cli::{self, Common, HandlerOptions, KafkaOptions, LeaderOptions, RedriveOptions, Tool, duration};
use ksync::consume::Consume;
use ksync::exit::Exit;
use ksync::handler;
use ksync::lead::Bounded;
use ksync::redrive::Redrive;
use ksync::shutdown::Shutdown;
use ksync::topic::Name;
use tokio::sync::{Semaphore, watch};

/// Hands the records of a topic to a command, batch by batch, as JSON lines on its stdin
#[derive(Clone, Debug, Parser)]
#[command(name = "ksync-consume", version)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    leader: LeaderOptions,
    #[command(flatten)]
    common: Common,

    /// Which kind of consumer this is; each name has its own offsets
    #[arg(short, long, env = "KSYNC_NAME", value_name = "NAME")]
    name: Name,

    /// Ends when what was there at the start is done
    #[arg(short, long, env = "KSYNC_EXIT")]
    exit: bool,

    /// How long to wait for a lease with --exit or --redrive
    #[arg(long, env = "KSYNC_WAIT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    wait: Duration,

    /// With --exit or --redrive: ends after so long without any success
    #[arg(long, env = "KSYNC_GIVE_UP", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    give_up: Duration,
    #[command(flatten)]
    redrive: RedriveOptions,
    #[command(flatten)]
    handler: HandlerOptions,
}

impl Tool for Cli {
    fn common(&self) -> &Common {
        &self.common
    }

    fn grace(&self) -> Duration {
        self.leader.grace
    }
}

async fn run(cli: Cli, shutdown: Shutdown) -> Result<Exit> {
    if cli.redrive.redrive { redrive(cli, shutdown).await } else { consume(cli, shutdown).await }
}

async fn redrive(cli: Cli, shutdown: Shutdown) -> Result<Exit> {
    let bounded = Bounded { wait: cli.wait };
    tokio::select! {
        started = cli.redrive.start((&cli.kafka, &cli.leader), &cli.name, bounded) => {
            let (leading, route) = started?;
            let (skips, give_up, tally) = (cli.handler.skip, cli.give_up, Arc::default());
            Redrive { route, skips, give_up, tally }.run(leading, &shutdown).await
        }
        () = shutdown.requested() => Ok(Exit::Again),
    }
}

async fn consume(cli: Cli, shutdown: Shutdown) -> Result<Exit> {
    let Cli { kafka, leader, name, .. } = cli;
    let on_invalid = cli.handler.on_invalid.into();
    handler::leave_nothing_behind()?;
    let handler = Arc::new(cli.handler.handler(&name)?);
    let cluster = kafka.cluster()?;
    let bounded = cli.exit.then_some(Bounded { wait: cli.wait });
    let starting = async {
        let leading = leader.leading((&cluster, &kafka), &kafka.topic, &name, bounded).await?;
        let writer = leader.writer(&cluster)?;
        let origins = kafka.topic.iter().map(|topic| (topic.clone(), topic.clone())).collect();
        let dead_letters = leader.dead_letters(&writer, (&leading, &kafka), &origins, on_invalid).await?;
        anyhow::Ok((leading, dead_letters))
    };
    let (leading, dead_letters) = tokio::select! {
        started = starting => started?,
        () = shutdown.requested() => return Ok(if cli.exit { Exit::Again } else { Exit::Done }),
    };
    let has_dead_lettered = Arc::new(AtomicBool::new(false));
    let share = leading.share(leader.memory);
    let consume = Consume {
        handler: handler.clone(),
        jobs: Semaphore::new(cli.handler.jobs()),
        split: cli.handler.split(),
        limits: cli.handler.limits(share),
        on_invalid,
        skips: cli.handler.skip.clone(),
        rules: cli.handler.rules(leader.dead_letter.is_some()),
        pauses: cli.handler.pauses(),
        requires_result: cli.handler.require_result,
        dead_letters,
        give_up: cli.exit.then_some(cli.give_up),
        has_dead_lettered: has_dead_lettered.clone(),
        worked: watch::Sender::new(None),
    };
    let ended = leading.run(consume, &shutdown).await;
    handler.close().await;
    let ended = ended?;
    let is_incomplete = cli.exit && has_dead_lettered.load(Ordering::Relaxed);
    Ok(if ended == Exit::Done && is_incomplete { Exit::DeadLettered } else { ended })
}

fn main() -> ExitCode {
    cli::main(run)
}
