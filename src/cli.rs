//! What the command lines of all tools share: option groups, the configuration file, how a process starts and ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};
use log::{error, info};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::handler as handlers;
use crate::kafka::{self, Cluster, NewTopics, Property};
use crate::shutdown::{Shutdown, Trigger};
use crate::sys;
use crate::topic::Topic;

mod bounded;
mod check;
mod daemon;
mod delayers;
mod handler;
mod hang_up;
mod leader;
mod log_lines;
mod on_invalid;
mod plan;
mod redrive;
mod replay;
mod resume;
mod rows;
mod throttles;
mod values;

pub use bounded::BoundedOptions;
pub use check::CheckOptions;
pub use daemon::{answer_when_asked, daemon};
pub use delayers::DelayerOptions;
pub use handler::HandlerOptions;
pub use leader::LeaderOptions;
pub use log_lines::Logging;
pub use on_invalid::{OnInvalidMessage, OnInvalidRecord};
pub use plan::PlanOptions;
pub use redrive::RedriveOptions;
pub use replay::ReplayOptions;
pub use resume::ResumeOptions;
pub use rows::{ActionOptions, ProgressOption, SourceOptions};
pub use throttles::ThrottleOptions;
pub use values::{duration, size, time, time_to_come};

use hang_up::{HangUp, HangUps};

/// How long the end of a process waits for calls that cannot be interrupted.
const END: Duration = Duration::from_millis(500);

/// The file that is read where `--config` names none.
const CONFIG_FILE: &str = "/etc/ksync.conf";

/// Which cluster, and which topics of it.
#[derive(Args, Clone, Debug)]
pub struct KafkaOptions {
    /// Brokers to begin with
    #[arg(
        short,
        long,
        env = "KSYNC_BOOTSTRAP_SERVER",
        value_name = "HOST:PORT,..",
        required = true,
        help_heading = "Kafka"
    )]
    pub bootstrap_server: Option<String>,

    /// Topic to work on; the name of its delay topic ends in -delay
    #[arg(
        short,
        long,
        env = "KSYNC_TOPIC",
        value_name = "TOPIC",
        required = true,
        value_delimiter = ',',
        help_heading = "Kafka"
    )]
    pub topic: Vec<Topic>,

    /// Only these partitions [default: all, also those added later]
    #[arg(short, long, env = "KSYNC_PARTITION", value_name = "N,..", value_delimiter = ',', help_heading = "Kafka")]
    pub partition: Vec<i32>,

    /// Makes topics that do not exist, with so many partitions and replicas [default: the broker's]
    #[arg(
        long, env = "KSYNC_CREATE_TOPICS", value_name = "PARTITIONS[:REPLICATION]", num_args = 0..=1,
        require_equals = true, default_missing_value = "", help_heading = "Kafka"
    )]
    pub create_topics: Option<NewTopics>,

    /// Sets a property of librdkafka
    #[arg(short = 'X', env = "KSYNC_X", value_name = "NAME=VALUE", help_heading = "Kafka")]
    pub property: Vec<Property>,

    /// Reads properties of librdkafka, one NAME=VALUE a line
    #[arg(short = 'F', env = "KSYNC_F", value_name = "FILE", help_heading = "Kafka")]
    pub property_file: Option<PathBuf>,

    #[command(flatten)]
    pub check: CheckOptions,
}

impl KafkaOptions {
    /// Fails where the file of properties cannot be read, or has one that is refused.
    pub fn cluster(&self) -> Result<Cluster> {
        let mut properties = vec![];
        if let Some(file) = &self.property_file {
            let lines = assignments(file).map_err(|error| Exit::Misconfigured.because(error))?;
            for (name, value) in lines {
                let property = format!("{name}={value}").parse::<Property>();
                let named = property.with_context(|| format!("cannot use {}", file.display()));
                properties.push(named.map_err(|error| Exit::Misconfigured.because(error))?);
            }
        }
        properties.extend(self.property.iter().cloned());
        let bootstrap = self.bootstrap_server.clone().expect("it is required of all that use a server");
        Ok(Cluster { bootstrap, properties })
    }

    /// The topic of a tool that works on one.
    pub fn one_topic(&self) -> Result<&Topic> {
        match self.topic.as_slice() {
            [topic] => Ok(topic),
            several => Err(Exit::Usage.because(anyhow!("one --topic is wanted, not {}", several.len()))),
        }
    }

    /// The partitions to work on, of as many as the topic has.
    pub fn chosen(&self, topic: &Topic, count: i32) -> Result<BTreeSet<i32>> {
        if let Some(missing) = self.partition.iter().find(|partition| !(0..count).contains(partition)) {
            let last = count - 1;
            let error =
                anyhow!("topic {topic} has no partition {missing}; its partitions are 0 to {last} (--partition)");
            return Err(Exit::Misconfigured.because(error));
        }
        Ok(if self.partition.is_empty() { (0..count).collect() } else { self.partition.iter().copied().collect() })
    }

    /// How long to wait for the first answer of a broker: a daemon waits for ever.
    pub fn patience(&self, is_bounded: bool) -> Duration {
        if is_bounded { Duration::from_secs(30) } else { Duration::MAX }
    }
}

/// How long delay messages wait.
#[derive(Args, Clone, Debug)]
pub struct DelayOption {
    /// How long a delay message is held back after it was made; longer than the longest transaction
    #[arg(long, env = "KSYNC_DELAY", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub delay: Duration,
}

impl DelayOption {
    /// Says so where the delay is shorter than transactions may well be.
    pub fn checked(&self) -> Duration {
        if self.delay < Duration::from_secs(60) {
            log::warn!(
                "a delay of {} is short: a transaction that takes longer is not covered; see --delay",
                humantime::format_duration(self.delay)
            );
        }
        self.delay
    }
}

/// What each tool's command line has besides its own options.
#[derive(Args, Clone, Debug)]
pub struct Common {
    #[command(flatten)]
    pub logging: Logging,

    /// File of KSYNC_..=VALUE lines, used where neither an option nor the environment says otherwise
    /// [default: /etc/ksync.conf, if it is there]
    #[arg(long, env = "KSYNC_CONFIG", value_name = "FILE", help_heading = "Other")]
    pub config: Option<PathBuf>,
}

/// How a tool starts: its common options, and how long its end may take once it was asked for.
pub trait Tool: CommandFactory + FromArgMatches {
    fn common(&self) -> &Common;

    /// After this time the process dies of the signal that asked for the end.
    fn grace(&self) -> Duration;
}

/// Parses the command line, runs the tool until it ends or is told to, and gives its exit status.
pub fn main<T: Tool, F: Future<Output = Result<Exit>>>(run: impl FnOnce(T, Shutdown) -> F) -> ExitCode {
    start(HangUp::Ends, run)
}

fn start<T: Tool, F: Future<Output = Result<Exit>>>(hang_up: HangUp, run: impl FnOnce(T, Shutdown) -> F) -> ExitCode {
    if handlers::is_warden() {
        // It has nobody to tell.
        return if handlers::keep_watch().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    sys::hold_little_free_memory();
    end_at_a_panic();
    let tool = parse::<T>(std::env::args_os().collect());
    let common = tool.common().clone();
    let grace = tool.grace();
    common.logging.start(T::command().get_name());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(workers()).thread_stack_size(STACK).enable_all();
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            error!("cannot start: {cause}");
            return Exit::Person.status().into();
        }
    };
    let result = runtime.block_on(async {
        let (trigger, shutdown) = Shutdown::new();
        let signals = Signals::new(hang_up)?;
        tokio::select! {
            result = run(tool, shutdown) => result.map(Ended::Exit),
            signal = signals.until_impatient(&trigger, grace) => Ok(Ended::By(signal)),
        }
    });
    // Ends the tasks, and with them their handlers; a call that still waits for a server must not hold up the end.
    runtime.shutdown_timeout(END);
    if !matches!(result, Ok(Ended::By(_))) {
        kafka::end_dropped();
    }
    match result {
        Ok(Ended::Exit(exit)) => exit.status().into(),
        Ok(Ended::By(signal)) => {
            sys::die_of(signal.as_raw_value());
            Exit::Again.status().into()
        }
        Err(failure) => {
            error!("{failure:#}");
            Exit::of(&failure).status().into()
        }
    }
}

/// A panic ends the process, so that a standby takes over and whoever looks after us starts us again. Left to tokio it
/// would end one task, and leave partitions without a reader, or leases without a keeper, in a process that seems to live.
fn end_at_a_panic() {
    std::panic::set_hook(Box::new(|panic| {
        error!("{panic}; this is a bug of ksync");
        std::process::abort();
    }));
}

enum Ended {
    Exit(Exit),
    By(SignalKind),
}

/// Of each thread, in bytes. A release needs 150 KiB, but a build without optimization nearly the 2 MiB that are usual. What is
/// not touched takes no memory.
const STACK: usize = 8 << 20;

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}

/// Signals that come so soon after the first belong to it: timeout(1) sends one to its child, and then to its whole group.
const SAME: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, and SIGHUP where it counts: the first asks for the end, the second ends at once.
struct Signals {
    term: Signal,
    int: Signal,
    hang_ups: HangUps,
}

impl Signals {
    fn new(hang_up: HangUp) -> Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let hang_ups = HangUps::new(hang_up)?;
        Ok(Signals { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())?, hang_ups })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.term.recv() => SignalKind::terminate(),
            _ = self.int.recv() => SignalKind::interrupt(),
            () = self.hang_ups.ends() => SignalKind::hangup(),
        }
    }

    /// Asks for the end at the first signal; returns the one to die of at a second one, or when `grace` is over.
    async fn until_impatient(mut self, trigger: &Trigger, grace: Duration) -> SignalKind {
        let first = self.next().await;
        info!("asked to end: finishing what is under way, for at most {}", humantime::format_duration(grace));
        trigger.request();
        let begun = Instant::now();
        let second = async {
            loop {
                let second = self.next().await;
                if begun.elapsed() > SAME {
                    return second;
                }
            }
        };
        match tokio::time::timeout(grace, second).await {
            Ok(second) => second,
            Err(_) => {
                error!("not at an end after {} (--grace): ending now", humantime::format_duration(grace));
                first
            }
        }
    }
}

/// flag > environment > file > default; a wrong command line ends the process with status 2.
fn parse<T: Tool>(args: Vec<OsString>) -> T {
    let file = config_file(&args).and_then(|file| file.map(|file| assignments(&file)).transpose());
    let lines = match file {
        Ok(lines) => lines.unwrap_or_default(),
        Err(error) => T::command().error(ErrorKind::Io, format!("{error:#}")).exit(),
    };
    let mut command = match with_defaults(T::command(), &lines) {
        Ok(command) => command,
        Err(error) => T::command().error(ErrorKind::Io, format!("{error:#}")).exit(),
    };
    let matches = command.try_get_matches_from_mut(args).unwrap_or_else(|error| error.exit());
    if let Err(error) = refuse_secrets(&matches) {
        command.error(ErrorKind::ValueValidation, format!("{error:#}")).exit();
    }
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Which configuration file holds, before the command line is parsed: it gives the parser its defaults.
fn config_file(args: &[OsString]) -> Result<Option<PathBuf>> {
    let mut args = args.iter().take_while(|arg| *arg != "--");
    let mut named = std::env::var_os("KSYNC_CONFIG").map(PathBuf::from);
    while let Some(arg) = args.next() {
        if arg == "--config" {
            named = args.next().map(PathBuf::from);
        } else if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            named = Some(path.into());
        }
    }
    Ok(named.or_else(|| Path::new(CONFIG_FILE).exists().then(|| CONFIG_FILE.into())))
}

/// The NAME=VALUE lines of a file, as systemd reads an EnvironmentFile: comments, empty lines, quotes around a value.
fn assignments(file: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            bail!("line {number} of {} is not NAME=VALUE", file.display());
        };
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        lines.push((name.trim().to_owned(), quoted.unwrap_or(value).to_owned()));
    }
    Ok(lines)
}

/// Makes what the file says, and what a KSYNC_.._FILE variable points to, the options' defaults.
fn with_defaults(command: Command, lines: &[(String, String)]) -> Result<Command> {
    let mut trouble = None;
    let command = command.mut_args(|arg| {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned) else {
            return arg;
        };
        let from_file = std::env::var_os(format!("{name}_FILE")).map(|file| {
            let text = std::fs::read_to_string(&file);
            text.map(|text| text.trim_end().to_owned()).with_context(|| format!("cannot read {}", file.display()))
        });
        let value = from_file.or_else(|| {
            let line = lines.iter().rev().find(|(assigned, _)| *assigned == name);
            line.map(|(_, value)| Ok(value.clone()))
        });
        match value {
            None => arg,
            Some(Ok(value)) => arg.required(false).required_unless_present(Resettable::Reset).default_value(value),
            Some(Err(error)) => {
                trouble = Some(error);
                arg
            }
        }
    });
    trouble.map_or(Ok(command), Err)
}

/// `ps` shows a command line to everybody.
fn refuse_secrets(matches: &ArgMatches) -> Result<()> {
    let given =
        |id: &str| matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine);
    let urls = [
        ("database", "--database", "DATABASE_URL", "KSYNC_DATABASE_FILE"),
        ("action_database", "--action-database", "KSYNC_ACTION_DATABASE", "KSYNC_ACTION_DATABASE_FILE"),
        ("throttle_database", "--throttle-database", "KSYNC_THROTTLE_DATABASE", "KSYNC_THROTTLE_DATABASE_FILE"),
    ];
    for (id, option, variable, file) in urls {
        if given(id) {
            let url: Option<&String> = matches.get_one(id);
            ensure!(
                !url.is_some_and(|url| has_password(url)),
                "a password in {option} would be seen by everybody on this machine; put the URL into {variable}, or into a \
                 file that {file} names"
            );
        }
    }
    if given("property") {
        for property in matches.get_many::<Property>("property").into_iter().flatten() {
            ensure!(
                !property.is_secret(),
                "the value of {} would be seen by everybody on this machine; put it into a file for -F",
                property.name
            );
        }
    }
    Ok(())
}

fn has_password(url: &str) -> bool {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = address.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    let in_authority = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    in_authority || query.split('&').any(|pair| pair.starts_with("password="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_seen() {
        for url in ["postgres://u:p@h/d", "mysql://u:@h", "postgres://u:p@h:1/d?x=y", "postgres://h/d?password=x"] {
            assert!(has_password(url), "{url}");
        }
        for url in ["postgres://u@h:5432/d", "sqlite:a:b@c", "sqlite:///x:y", "postgres://h/a:b@c?user=u"] {
            assert!(!has_password(url), "{url}");
        }
    }
}
