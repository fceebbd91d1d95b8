//! How ksync-stream compares a table with what a store holds.

use anyhow::Result;
use clap::Args;

use super::{DelayOption, KafkaOptions, ProgressOption, SourceOptions, ThrottleOptions};
use crate::announce::{Announcer, Destination};
use crate::database::{Limit, Session};
use crate::election::Servers;
use crate::exit::Exit;
use crate::handler;
use crate::kafka::{Admin, Pair, Writer};
use crate::shutdown::Shutdown;
use crate::stream::Console;
use crate::verify::{Store, Verify};

/// Comparing.
#[derive(Args, Clone, Debug)]
pub struct VerifyOptions {
    /// Compares the rows with what COMMAND says that a store holds; prints what differs longer than the delay
    #[arg(
        long, env = "KSYNC_VERIFY", help_heading = "Verify", requires = "command",
        conflicts_with_all = ["stdin", "sql", "only", "serve", "dry_run", "checkpoint", "checkpoint_table", "until", "max_time"]
    )]
    pub verify: bool,

    /// Column whose value is the version of a row; several make an object [default: all columns]
    #[arg(
        long,
        env = "KSYNC_VERSION_COLUMN",
        value_name = "COLUMN,..",
        value_delimiter = ',',
        requires = "verify",
        help_heading = "Verify"
    )]
    pub version_column: Vec<String>,

    /// A row that the store does not hold is no difference
    #[arg(long, env = "KSYNC_CACHE", requires = "verify", help_heading = "Verify")]
    pub cache: bool,

    /// Announces what differs by instant messages, and waits until it does not differ any more, at most as long as the delay
    #[arg(long, env = "KSYNC_REPAIR", requires = "verify", help_heading = "Verify")]
    pub repair: bool,
}

/// What else the command line says of it.
pub struct Comparison<'a> {
    pub kafka: &'a KafkaOptions,
    pub delay: &'a DelayOption,
    pub source: &'a SourceOptions,
    pub command: &'a [String],
    pub session: Session,
    pub throttles: &'a ThrottleOptions,
    pub zookeeper: Option<&'a Servers>,
    pub console: Console,
    pub chunk: Limit,
    pub progress: ProgressOption,
    pub is_counted: bool,
    pub is_quiet: bool,
}

impl VerifyOptions {
    /// Compares all rows, and all keys of the store.
    pub async fn run(&self, comparison: Comparison<'_>, shutdown: &Shutdown) -> Result<Exit> {
        let store = Store::new(comparison.command, &self.version_column)?;
        handler::leave_nothing_behind()?;
        let (progress, is_quiet) = (comparison.progress, comparison.is_quiet);
        let (verify, total) = tokio::select! {
            started = self.open(store, comparison) => started?,
            () = shutdown.requested() => return Ok(Exit::Again),
        };
        let keys = || progress.start(is_quiet, "keys", None);
        verify.run(progress.start(is_quiet, "rows", total), keys, shutdown).await
    }

    /// With about how many rows there are, where that is known.
    async fn open(&self, store: Store, comparison: Comparison<'_>) -> Result<(Verify, Option<u64>)> {
        let Comparison { kafka, delay, source, throttles, zookeeper, console, chunk, .. } = comparison;
        let topic = kafka.one_topic()?;
        let cluster = kafka.cluster()?;
        let admin = Admin::new(&cluster)?;
        let create = kafka.create_topics.filter(|_| self.repair);
        let count = admin.need(topic, create, kafka.patience(true)).await?;
        kafka.chosen(topic, count)?;
        let writer = Writer::open(&cluster, Writer::AWAITED)?;
        kafka.check.start(&admin, [Pair { topic: topic.clone(), delay: None }]).await?;
        let throttle = throttles.open(console, (topic, &cluster), source, zookeeper).await?;
        let opened = source.primary(&self.version_column, &comparison.session, chunk.rows, comparison.is_counted);
        let (primary, total) = opened.await?;
        let repair = if self.repair { Some(Destination::new(topic, &kafka.partition)?) } else { None };
        let announcer = Announcer::new(&writer, delay.delay);
        let (is_cache, delay) = (self.cache, delay.delay);
        Ok((Verify { primary, store, is_cache, chunk, delay, throttle, announcer, repair }, total))
    }
}
