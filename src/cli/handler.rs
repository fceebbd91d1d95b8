//! The user's command, and the batches that it is given.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::sync::{Semaphore, watch};

use super::{OnInvalidRecord, duration, size};
use crate::consume::{Breaker, Consume, Rules};
use crate::exit::Exit;
use crate::fit::Skip;
use crate::handler::{Command, Environment, Handler, Pauses, Terms, WorkerTerms, Workers};
use crate::intake::Limits;
use crate::topic::Name;

/// How long a run may take, how many records it is given, and how large these may be together, unless something else is said.
const TIMEOUT: &str = "5m";
const BATCH_SIZE: &str = "1000";
const BATCH_BYTES: &str = "8MiB";

/// Which command works on the records, and how much it is given at once.
#[derive(Args, Clone, Debug)]
pub struct HandlerOptions {
    /// Hands all batches to processes that stay, as JSON lines, in place of one process for each batch
    #[arg(long, env = "KSYNC_WORKER")]
    pub worker: bool,

    /// How long a worker may take until it is ready
    #[arg(long, env = "KSYNC_START_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub start_timeout: Duration,

    /// Replaces a worker after so many batches
    #[arg(long, env = "KSYNC_RECYCLE_AFTER", value_name = "N", requires = "worker",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub recycle_after: Option<u64>,

    /// How many commands may run at once [default: one for each core, of workers one]
    #[arg(short, long, env = "KSYNC_JOBS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,

    /// Splits the records of a partition by their keys among several commands at once
    #[arg(long, env = "KSYNC_BY_KEY")]
    pub by_key: bool,

    /// How long one run of the command may take; with --check-worker 30s, unless something is said
    #[arg(
        long, env = "KSYNC_TIMEOUT", value_name = "DURATION", default_value = TIMEOUT, value_parser = duration,
        default_value_if("check_worker", "true", "30s")
    )]
    pub timeout: Duration,

    /// Passes this record without working on it; as an error has printed it
    #[arg(long, env = "KSYNC_SKIP", value_name = "TOPIC/PARTITION@OFFSET")]
    pub skip: Vec<Skip>,

    /// Lets the command end well without having read all of its input
    #[arg(long, env = "KSYNC_ALLOW_UNREAD", conflicts_with = "worker")]
    pub allow_unread: bool,

    /// Takes for done only what the command says is done, on KSYNC_RESULT_FD
    #[arg(long, env = "KSYNC_REQUIRE_RESULT", conflicts_with = "worker")]
    pub require_result: bool,

    /// Gives the command no environment but PATH, LANG, TZ and what is about its batch
    #[arg(long, env = "KSYNC_CLEAN_ENV")]
    pub clean_env: bool,

    /// A variable that the command is given nevertheless
    #[arg(long, env = "KSYNC_PASS_ENV", value_name = "NAME", requires = "clean_env", value_delimiter = ',')]
    pub pass_env: Vec<String>,

    /// How long to wait after the first failure; twice as long after each other one
    #[arg(long, env = "KSYNC_RETRY_PAUSE", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub retry_pause: Duration,

    /// How long to wait at most after a failure
    #[arg(long, env = "KSYNC_RETRY_PAUSE_MAX", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub retry_pause_max: Duration,

    /// After so many failures a batch is cut in halves until its bad records stand alone
    #[arg(long, env = "KSYNC_ISOLATE_AFTER", value_name = "N", default_value = "3",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub isolate_after: u32,

    /// After so many bad records in a batch none is put aside, if there are more than --breaker-share of them
    #[arg(long, env = "KSYNC_BREAKER_FAILURES", value_name = "N", default_value = "20",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub breaker_failures: u32,

    /// Which part of a batch's judged records has to be bad for that, in percent
    #[arg(long, env = "KSYNC_BREAKER_SHARE", value_name = "PERCENT", default_value = "25",
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub breaker_share: u32,

    /// How many records a batch may have
    #[arg(long, env = "KSYNC_BATCH_SIZE", value_name = "N", default_value = BATCH_SIZE,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,

    /// How large a batch may be; a record that is larger goes alone
    #[arg(long, env = "KSYNC_BATCH_BYTES", value_name = "SIZE", default_value = BATCH_BYTES, value_parser = size)]
    pub batch_bytes: usize,

    /// How long to wait for more records once one is there
    #[arg(long, env = "KSYNC_BATCH_WAIT", value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    pub batch_wait: Duration,

    /// Gives only the last of a batch's records with the same key, or without a key with the same payload
    #[arg(long, env = "KSYNC_COALESCE")]
    pub coalesce: bool,

    /// What to do with a record whose value is not JSON
    #[arg(long, env = "KSYNC_ON_INVALID", value_name = "POLICY", default_value = "halt")]
    pub on_invalid: OnInvalidRecord,

    /// The command and its arguments; no shell is between
    #[arg(last = true, required_unless_present = "redrive", value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl HandlerOptions {
    /// Fails, before anything is read, where the command cannot be started.
    pub fn handler(&self, name: &Name) -> Result<Handler> {
        Ok(match self.worker {
            true => Handler::Workers(self.workers(name)?),
            false => Handler::Processes(self.command()?),
        })
    }

    /// The command as a worker, whether `--worker` is there or not. Fails as [`HandlerOptions::handler`] does.
    pub fn workers(&self, name: &Name) -> Result<Workers> {
        let terms = WorkerTerms { start_timeout: self.start_timeout, recycle_after: self.recycle_after };
        Workers::new(self.command()?, name.clone(), terms)
    }

    fn command(&self) -> Result<Command> {
        let terms = Terms { timeout: self.timeout, allows_unread: self.allow_unread };
        let environment = match self.clean_env {
            true => Environment::Clean { passed: self.pass_env.clone() },
            false => Environment::Ours,
        };
        let command = Command::check(self.command.clone(), terms, &environment);
        command.map_err(|error| Exit::Misconfigured.because(error))
    }

    /// How to have batches worked on of at most `share` bytes; for now without a place for bad records.
    pub fn consume(&self, handler: Arc<Handler>, share: usize, puts_aside: bool) -> Consume {
        Consume {
            handler,
            jobs: Semaphore::new(self.jobs()),
            split: self.split(),
            limits: self.limits(share),
            on_invalid: self.on_invalid.into(),
            skips: self.skip.clone(),
            rules: self.rules(puts_aside),
            pauses: self.pauses(),
            requires_result: self.require_result,
            dead_letters: None,
            kept: None,
            give_up: None,
            has_dead_lettered: Arc::default(),
            worked: watch::Sender::new(None),
        }
    }

    /// What tells the command from others: its program's name, and a digest of its arguments too, which may be secret.
    pub fn fingerprint(&self) -> String {
        let program = self.command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
        let digest = crc32c::crc32c(self.command.join("\0").as_bytes());
        format!("{} {digest:08x}", program.to_string_lossy().escape_debug())
    }

    /// The options that it depends on how a run of a given batch ends, as words of a command line.
    pub fn of_a_run(&self) -> Vec<String> {
        let flags = [
            (self.worker, "--worker"),
            (self.allow_unread, "--allow-unread"),
            (self.require_result, "--require-result"),
            (self.clean_env, "--clean-env"),
        ];
        let mut words: Vec<_> =
            flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| (*flag).to_owned()).collect();
        let timeout = humantime::format_duration(self.timeout).to_string();
        let (records, bytes) = (self.batch_size.to_string(), self.batch_bytes.to_string());
        let is_usual = size(BATCH_BYTES).is_ok_and(|usual| usual == self.batch_bytes);
        let options = [
            (timeout != TIMEOUT, "--timeout", timeout),
            (records != BATCH_SIZE, "--batch-size", records),
            (!is_usual, "--batch-bytes", bytes),
            (!self.pass_env.is_empty(), "--pass-env", self.pass_env.join(",")),
        ];
        let given = options.into_iter().filter(|(is_given, ..)| *is_given);
        words.extend(given.map(|(_, name, value)| format!("{name}={value}")));
        words
    }

    fn rules(&self, puts_aside: bool) -> Rules {
        let breaker =
            Breaker { failures: self.breaker_failures as usize, share: f64::from(self.breaker_share) / 100.0 };
        Rules { isolate_after: self.isolate_after, breaker, puts_aside }
    }

    fn pauses(&self) -> Pauses {
        Pauses { first: self.retry_pause, longest: self.retry_pause_max.max(self.retry_pause) }
    }

    fn jobs(&self) -> usize {
        if self.worker && self.jobs.is_none() {
            return 1;
        }
        self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// Among how many commands a partition's records are split.
    fn split(&self) -> Option<usize> {
        self.by_key.then(|| self.jobs())
    }

    /// When a batch is full, where one may have at most `share` bytes, and another one is read meanwhile.
    fn limits(&self, share: usize) -> Limits {
        // Split by keys there are up to two at work, their parts at the handlers beside them, and one that is read.
        let share = if self.by_key { share * 2 / 5 } else { share };
        let bytes = self.batch_bytes.min(share);
        Limits { records: self.batch_size as usize, bytes, wait: self.batch_wait, coalesce: self.coalesce }
    }
}
