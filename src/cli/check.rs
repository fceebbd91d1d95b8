//! The check of the settings of topics and their cluster.

use anyhow::Result;
use clap::Args;

use crate::kafka::{Admin, Check, Hazard, Pair};

/// Which settings are put up with.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Starts in spite of settings that are refused under this name: delay-retention, delay-compaction, partition-count
    /// or message-size
    #[arg(long, env = "KSYNC_ALLOW_UNSAFE", value_name = "NAME,..", value_delimiter = ',', help_heading = "Kafka")]
    pub allow_unsafe: Vec<Hazard>,
}

impl CheckOptions {
    /// Fails with status 78 where a setting is refused.
    pub async fn start(&self, admin: &Admin, pairs: impl IntoIterator<Item = Pair>) -> Result<Check> {
        Check::start(admin, pairs.into_iter().collect(), self.allow_unsafe.clone()).await
    }
}
