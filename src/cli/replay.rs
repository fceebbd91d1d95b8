//! Trying a handler out on records of a file, and keeping those that it failed at.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Arg, Args};

use super::HandlerOptions;
use crate::consume::Kept;
use crate::exit::Exit;
use crate::topic::Name;

/// Options that need no value where there are no servers.
const OF_SERVERS: [&str; 4] = ["bootstrap_server", "topic", "zookeeper", "name"];

/// Which records a handler is tried out on, and which are kept for that.
#[derive(Args, Clone, Debug)]
pub struct ReplayOptions {
    /// Runs the command on a file of record lines, its own or those of kcat -J, prints what would become of them, and ends;
    /// - is stdin
    #[arg(
        long, env = "KSYNC_REPLAY", value_name = "FILE", conflicts_with_all = ["redrive", "exit"],
        help_heading = "Trying it out"
    )]
    pub replay: Option<PathBuf>,

    /// Puts the command through the protocol of --worker, on records that are made up, prints which rules it keeps, and ends
    #[arg(
        long, env = "KSYNC_CHECK_WORKER", conflicts_with_all = ["replay", "redrive", "exit"], help_heading = "Trying it out"
    )]
    pub check_worker: bool,

    /// Keeps the last batch that the command failed at, of each partition, as a file for --replay
    #[arg(long, env = "KSYNC_KEEP_FAILED", value_name = "DIR", help_heading = "Trying it out")]
    pub keep_failed: Option<PathBuf>,
}

impl ReplayOptions {
    /// With --replay and --check-worker nothing has to be said of servers.
    pub fn relax(option: Arg) -> Arg {
        match OF_SERVERS.contains(&option.get_id().as_str()) {
            true => option.required(false).required_unless_present_any(["replay", "check_worker"]),
            false => option,
        }
    }

    /// Fails where failed batches shall be kept and cannot.
    pub fn kept(&self, name: &Name, handler: &HandlerOptions) -> Result<Option<Kept>> {
        let Some(dir) = &self.keep_failed else { return Ok(None) };
        let before = ["ksync-consume", "--replay"].map(str::to_owned).into();
        let mut after = vec!["-n".to_owned(), name.to_string()];
        after.extend(handler.of_a_run());
        after.push("--".to_owned());
        after.extend(handler.command.iter().cloned());
        Kept::open(dir, (before, after)).map(Some).map_err(|error| Exit::Misconfigured.because(error))
    }
}
