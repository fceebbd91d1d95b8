//! ksync-consume --check-worker: a worker on records that are made up, and which rules of the protocol it keeps.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::exit::Exit;
use crate::handler::Workers;
use crate::shutdown::Shutdown;
use crate::topic::TopicPartition;

/// Prints what the worker did at each step; says by the status whether it keeps all rules.
pub async fn run(workers: &Workers, partition: &TopicPartition, shutdown: &Shutdown) -> Result<Exit> {
    let tell = |finding: &_| writeln!(io::stdout(), "{finding}").context("cannot write to stdout");
    let keeps_all = tokio::select! {
        examined = workers.examine(partition, tell) => examined?,
        () = shutdown.requested() => return Ok(Exit::Again),
    };
    Ok(if keeps_all { Exit::Done } else { Exit::Person })
}
