//! The user's command, and the batches that it is given.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::{duration, size};
use crate::exit::Exit;
use crate::handler::Command;
use crate::intake::Limits;

/// Which command works on the records, and how much it is given at once.
#[derive(Args, Clone, Debug)]
pub struct HandlerOptions {
    /// How many commands may run at once [default: one for each core]
    #[arg(short, long, env = "KSYNC_JOBS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,

    /// How long one run of the command may take
    #[arg(long, env = "KSYNC_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,

    /// How many records a batch may have
    #[arg(long, env = "KSYNC_BATCH_SIZE", value_name = "N", default_value = "1000",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,

    /// How large a batch may be; one record fits whatever its size
    #[arg(long, env = "KSYNC_BATCH_BYTES", value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    pub batch_bytes: usize,

    /// How long to wait for more records once one is there
    #[arg(long, env = "KSYNC_BATCH_WAIT", value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    pub batch_wait: Duration,

    /// The command and its arguments; no shell is between
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl HandlerOptions {
    /// Fails, before anything is read, where the command cannot be started.
    pub fn command(&self) -> Result<Command> {
        Command::check(self.command.clone(), self.timeout).map_err(|error| Exit::Misconfigured.because(error))
    }

    pub fn jobs(&self) -> usize {
        self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// When a batch is full, where one may have at most `share` bytes.
    pub fn limits(&self, share: usize) -> Limits {
        let bytes = self.batch_bytes.min(share);
        Limits { records: self.batch_size as usize, bytes, wait: self.batch_wait }
    }
}
