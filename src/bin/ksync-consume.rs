//! Hands the records of a topic to a command, batch by batch, as JSON lines on its stdin.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use ksync::cli::{self, BoundedOptions, Common, HandlerOptions, KafkaOptions};
use ksync::cli::{LeaderOptions, RedriveOptions, ReplayOptions, Tool};
use ksync::exam;
use ksync::exit::Exit;
use ksync::handler;
use ksync::lead::Board;
use ksync::redrive::Redrive;
use ksync::replay::Replay;
use ksync::shutdown::Shutdown;
use ksync::topic::{Name, Topic};

/// Hands the records of a topic to a command, batch by batch, as JSON lines on its stdin
#[derive(Clone, Debug, Parser)]
#[command(name = "ksync-consume", version, mut_args(ReplayOptions::relax))]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    leader: LeaderOptions,
    #[command(flatten)]
    common: Common,

    /// Which kind of consumer this is; each name has its own offsets
    #[arg(short, long, env = "KSYNC_NAME", value_name = "NAME", required = true)]
    name: Option<Name>,
    #[command(flatten)]
    bounded: BoundedOptions,
    #[command(flatten)]
    redrive: RedriveOptions,
    #[command(flatten)]
    replay: ReplayOptions,
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

    fn is_daemon(&self) -> bool {
        true
    }
}

async fn run(cli: Cli, shutdown: Shutdown, board: Board) -> Result<Exit> {
    let name = cli.name.clone().unwrap_or_else(Name::replay);
    match &cli.replay.replay {
        Some(file) => replay(&cli, (name, file), shutdown).await,
        None if cli.replay.check_worker => check_worker(&cli, name, shutdown).await,
        None if cli.redrive.redrive => redrive(cli, name, (shutdown, board)).await,
        None => consume(cli, name, (shutdown, board)).await,
    }
}

async fn replay(cli: &Cli, (name, file): (Name, &Path), shutdown: Shutdown) -> Result<Exit> {
    handler::leave_nothing_behind()?;
    let (handler, memory) = (Arc::new(cli.handler.handler(&name)?), cli.leader.memory);
    let consume = cli.handler.consume(handler, memory, cli.leader.dead_letter.is_some());
    Replay { consume, name, memory }.run(file, &shutdown).await
}

async fn check_worker(cli: &Cli, name: Name, shutdown: Shutdown) -> Result<Exit> {
    handler::leave_nothing_behind()?;
    let topic = cli.kafka.topic.first().cloned().unwrap_or_else(Topic::made_up);
    exam::run(&cli.handler.workers(&name)?, &topic.partition(0), &shutdown).await
}

async fn redrive(cli: Cli, name: Name, (shutdown, board): (Shutdown, Board)) -> Result<Exit> {
    tokio::select! {
        started = cli.redrive.start((&cli.kafka, &cli.leader), &name, cli.bounded.always()) => {
            let (mut leading, route) = started?;
            leading.board = board;
            let (skips, give_up, tally) = (cli.handler.skip, cli.bounded.give_up, Arc::default());
            Redrive { route, skips, give_up, tally }.run(leading, &shutdown).await
        }
        () = shutdown.requested() => Ok(Exit::Again),
    }
}

async fn consume(cli: Cli, name: Name, (shutdown, board): (Shutdown, Board)) -> Result<Exit> {
    let Cli { kafka, leader, bounded, .. } = cli;
    handler::leave_nothing_behind()?;
    let handler = Arc::new(cli.handler.handler(&name)?);
    let kept = cli.replay.kept(&name, &cli.handler)?;
    let starting = leader.start_consumer(&kafka, (&name, bounded.with_exit()), cli.handler.on_invalid.into());
    let (mut leading, dead_letters) = tokio::select! {
        started = starting => started?,
        () = shutdown.requested() => return Ok(if bounded.exit { Exit::Again } else { Exit::Done }),
    };
    leading.board = board;
    leading.election = leading.election.with_handler(&cli.handler.fingerprint());
    let share = leading.share(leader.memory);
    let mut consume = cli.handler.consume(handler, share, leader.dead_letter.is_some());
    (consume.dead_letters, consume.kept) = (dead_letters, kept);
    consume.give_up = bounded.exit.then_some(bounded.give_up);
    consume.run(leading, &shutdown).await
}

fn main() -> ExitCode {
    cli::daemon(run)
}
