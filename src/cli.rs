//! What the command lines of all tools share: option groups, and how a process starts and ends.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, CommandFactory, FromArgMatches};
use log::error;
use rustix::process::{Resource, getrlimit};
use tokio::signal::unix::SignalKind;

use crate::exit::Exit;
use crate::handler as handlers;
use crate::shutdown::Shutdown;
use crate::sys;

mod action;
mod bounded;
mod check;
mod cluster;
mod config;
mod daemon;
mod delayers;
mod handler;
mod hang_up;
mod leader;
mod log_lines;
mod on_invalid;
mod plan;
mod progress;
mod redrive;
mod replay;
mod resume;
mod rows;
mod serve;
mod signals;
mod throttles;
mod values;
mod verify;

pub use action::ActionOptions;
pub use bounded::BoundedOptions;
pub use check::CheckOptions;
pub use cluster::{DelayOption, KafkaOptions};
pub use daemon::{answer_when_asked, daemon};
pub use delayers::DelayerOptions;
pub use handler::HandlerOptions;
pub use leader::LeaderOptions;
pub use log_lines::Logging;
pub use on_invalid::{OnInvalidMessage, OnInvalidRecord};
pub use plan::PlanOptions;
pub use progress::ProgressOption;
pub use redrive::RedriveOptions;
pub use replay::ReplayOptions;
pub use resume::ResumeOptions;
pub use rows::SourceOptions;
pub use serve::ServeOptions;
pub use throttles::ThrottleOptions;
pub use values::{duration, size, time, time_to_come};
pub use verify::{Comparison, VerifyOptions};

use config::parse;
use hang_up::HangUp;
use signals::Signals;

/// How long the end of a process waits for calls that cannot be interrupted.
const END: Duration = Duration::from_millis(500);

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
pub trait Tool: CommandFactory + FromArgMatches + Send + 'static {
    fn common(&self) -> &Common;

    /// After this time the process dies of the signal that asked for the end.
    fn grace(&self) -> Duration;

    /// Whether nobody waits for its end.
    fn is_daemon(&self) -> bool {
        false
    }
}

/// Parses the command line, runs the tool until it ends or is told to, and gives its exit status.
pub fn main<T: Tool, F: Future<Output = Result<Exit>> + Send + 'static>(
    run: impl FnOnce(T, Shutdown) -> F,
) -> ExitCode {
    if handlers::is_warden() {
        // It has nobody to tell.
        return if handlers::keep_watch().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    sys::hold_little_free_memory();
    end_at_a_panic();
    let tool = parse::<T>(std::env::args_os().collect());
    let common = tool.common().clone();
    let grace = tool.grace();
    let hang_up = if tool.is_daemon() { HangUp::EndsWithTerminal } else { HangUp::Ends };
    common.logging.start(T::command().get_name());
    if let Some(few) = getrlimit(Resource::Nofile).current.filter(|files| *files < FILES) {
        error!(
            "a process may have only {few} files open here, and ksync needs {FILES}, with many brokers or handlers more: allow \
             1024 (ulimit -n, in a unit of systemd LimitNOFILE=)"
        );
        return Exit::Misconfigured.status().into();
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(workers()).thread_stack_size(STACK).enable_all();
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            error!("cannot start: {cause}");
            return Exit::Person.status().into();
        }
    };
    runtime.spawn(keep_a_thread());
    let result = runtime.block_on(async {
        let (trigger, shutdown) = Shutdown::new();
        let signals = Signals::new(hang_up)?;
        // As a task: what this thread itself runs is woken up by way of another one.
        let run = tokio::spawn(run(tool, shutdown));
        tokio::select! {
            result = run => result?.map(Ended::Exit),
            signal = signals.until_impatient(&trigger, grace) => Ok(Ended::By(signal)),
        }
    });
    // Ends the tasks, and with them their handlers; a call that still waits for a server must not hold up the end.
    runtime.shutdown_timeout(END);
    let exit = match result {
        Ok(Ended::Exit(exit)) => exit,
        Ok(Ended::By(signal)) => {
            sys::die_of(signal.as_raw_value());
            Exit::Again
        }
        Err(failure) => {
            error!("{failure:#}");
            Exit::of(&failure)
        }
    };
    sys::exit(exit.status())
}

/// Keeps one of those threads alive that do what blocks; they end when they have had nothing to do for 10 s. Where the machine
/// refuses a new one tokio panics if there is none, else that one comes to it.
async fn keep_a_thread() {
    loop {
        drop(tokio::task::spawn_blocking(|| ()).await);
        tokio::time::sleep(Duration::from_secs(5)).await;
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

/// With fewer files a library may end the process where it cannot open one.
const FILES: u64 = 64;

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}
