//! Runs that come to an end by themselves.

use std::time::Duration;

use clap::Args;

use super::duration;
use crate::lead::Bounded;

/// Whether a run ends by itself, and how long it tries.
#[derive(Args, Clone, Debug)]
pub struct BoundedOptions {
    /// Ends when what was there at the start is done
    #[arg(short, long, env = "KSYNC_EXIT")]
    pub exit: bool,

    /// How long to wait for a lease with --exit or --redrive
    #[arg(long, env = "KSYNC_WAIT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub wait: Duration,

    /// With --exit or --redrive: ends after so long without any success
    #[arg(long, env = "KSYNC_GIVE_UP", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub give_up: Duration,
}

impl BoundedOptions {
    pub fn always(&self) -> Bounded {
        Bounded { wait: self.wait }
    }

    pub fn with_exit(&self) -> Option<Bounded> {
        self.exit.then(|| self.always())
    }
}
