//! The user's command: what it is given, how it is run, what its end means.
//!
//! A batch is done when the command that was given it has read it all and ends with exit status 0, and only then. Whatever
//! else happens, that nobody started it, that it was killed, that it took too long, is a failure of the whole batch; only on
//! the result pipe can it say otherwise of single records. What it writes to stdout and stderr goes to the log and means nothing,
//! unless its caller asks for its stdout.

mod answers;
mod backoff;
mod descendants;
mod environment;
mod exam;
mod group;
mod input;
mod outcome;
mod outgoing;
mod output;
mod path;
mod process;
mod report;
mod result_pipe;
mod told;
mod warden;
mod worker;
mod workers;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::future;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::exit::Exit;
use crate::mutants::Mutant;
use crate::sys::Program;
use crate::topic::{Name, Offset, TopicPartition};

pub use backoff::{Backoff, Pauses};
pub use environment::Environment;
pub use exam::Finding;
pub use outcome::{Failed, Failure, Kind, Outcome};
use process::{Process, Remains};
pub use report::{Report, Said};
use result_pipe::TooLong;
pub use workers::{WorkerTerms, Workers};

/// What a handler that ran into `--timeout` gets between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);

/// How long to go on reading the output of descendants that outlive the handler.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Where the handler can say what became of single records.
const RESULT_FD: i32 = 3;

/// The file that we run. By it the warden is started, and beside it stands who is whose descendant.
const OURSELVES: &str = "/proc/self/exe";

/// Python's output goes through a buffer of its own otherwise, and comes late.
const UNBUFFERED: &str = "PYTHONUNBUFFERED";

/// The user's command, ready to be run any number of times, also at the same time.
#[derive(Clone, Debug)]
pub struct Command {
    argv: Vec<String>,
    terms: Terms,
    /// Where argv[0] was found. Being a path, it also lets std use posix_spawn with an environment of our own.
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

/// How batches are handed to the command.
pub enum Handler {
    /// A process for each.
    Processes(Command),
    /// By processes that stay.
    Workers(Workers),
}

/// What holds for each run.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long it may take.
    pub timeout: Duration,
    /// Whether it may end well with some of its input unread.
    pub allows_unread: bool,
}

/// What one run is given.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Before each line of the command's output in the log: `products/0`.
    pub label: &'a str,
    /// For stdin, complete with line breaks.
    pub lines: &'a [u8],
    /// On top of the environment that all runs have. A `KSYNC_BATCH_ID` in it must be of this run alone: by that its
    /// processes are found.
    pub environment: &'a [(&'a str, String)],
    /// Who gets the lines of its stdout, many at once, instead of the log. The command is held up while they are not taken; once
    /// nobody takes them its stdout is closed.
    pub told: Option<&'a mpsc::Sender<Vec<u8>>>,
}

/// What the handler is told about its batch, in its environment.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub source: &'a TopicPartition,
    pub name: &'a Name,
    pub count: usize,
    pub first: Offset,
    /// That of the last record in it, not the one after.
    pub last: Offset,
    /// 1 for the first.
    pub attempt: u32,
    pub term: u64,
    pub id: &'a str,
}

impl Handler {
    /// Has the batch worked on, as [`Command::run`] does it.
    pub async fn run(
        &self,
        batch: &Batch<'_>,
        lines: &[u8],
        go: impl Future<Output = bool>,
        stop: impl Future<Output = Instant>,
    ) -> Outcome {
        match self {
            Handler::Processes(command) => {
                let (label, environment) = (batch.source.to_string(), batch.environment());
                command.run(Input { label: &label, lines, environment: &environment, told: None }, go, stop).await
            }
            Handler::Workers(workers) => workers.run(batch, lines, go, stop).await,
        }
    }

    /// Ends what waits for another batch.
    pub async fn close(&self) {
        match self {
            Handler::Processes(_) => {}
            Handler::Workers(workers) => workers.close().await,
        }
    }
}

impl Command {
    /// Finds the program, on PATH where its name has no slash, and fails where it cannot be executed.
    ///
    /// Takes the environment as it is now.
    pub fn check(argv: Vec<String>, terms: Terms, environment: &Environment) -> Result<Command> {
        let name = argv.first().context("cannot start a command without a name")?;
        let program = path::find(name).with_context(|| format!("cannot start '{name}'"))?;
        let mut environment: Vec<_> = env::vars_os().filter(|(variable, _)| environment.has(variable)).collect();
        environment.retain(|(variable, _)| variable != UNBUFFERED);
        environment.push((UNBUFFERED.into(), "1".into()));
        Ok(Command { argv, terms, program, environment })
    }

    /// Runs the command once and returns when its process has ended and its group is gone.
    ///
    /// The process is started at once, and given its input once `go` says true; after false it is killed without any.
    ///
    /// `stop` resolves when the caller wants the end, with the moment up to which the handler may live: its process
    /// group gets TERM at once and KILL at that moment. After `--timeout` it has 5 s between the two, or less if
    /// `stop` says so. Where the handler ended before either, its exit status counts.
    ///
    /// Dropping the future kills the group at once. Needs a runtime of several threads.
    pub async fn run(
        &self,
        input: Input<'_>,
        go: impl Future<Output = bool>,
        stop: impl Future<Output = Instant>,
    ) -> Outcome {
        let mut stop = pin!(stop);
        tokio::select! {
            biased;
            _ = &mut stop => return Outcome::Stopped,
            () = future::ready(()) => {}
        }
        let started = self.program(input.environment).and_then(|program| Process::start(&program, &input));
        let mut process = match started {
            Ok(process) => process,
            Err(cause) => return Failure::NotStarted { program: self.argv[0].clone(), cause }.into(),
        };
        let goes = tokio::select! {
            goes = go => goes,
            _ = &mut stop => false,
        };
        if !goes {
            // It was given nothing yet, so there is nothing that it could bring to an end.
            drop(process.finish().await);
            return Outcome::Stopped;
        }
        tokio::select! {
            biased;
            () = process.exit() => {
                // Being late is no failure: a descendant that keeps an output open must not hold the run.
                drop(timeout(LAST_WORDS, process.last_words()).await);
                self.outcome(process.finish().await)
            }
            deadline = &mut stop => {
                process.terminate(deadline, future::pending()).await;
                // Whatever its exit status is: many programs exit 0 on TERM, done or not.
                drop(process.finish().await);
                Outcome::Stopped
            }
            () = sleep(self.terms.timeout) => {
                process.terminate(Instant::now() + GRACE, stop).await;
                let Remains { report, stderr_tail, .. } = process.finish().await;
                outcome(Err(Failure::Timeout(self.terms.timeout)), report, stderr_tail)
            }
        }
    }

    fn outcome(&self, remains: Remains) -> Outcome {
        let Remains { status, unread, report, stderr_tail } = remains;
        let ended = match outcome::ended(status) {
            Ok(()) if unread > 0 && !self.terms.allows_unread && !Mutant::AcceptsUnread.is_on() => {
                Err(Failure::Unread(unread))
            }
            ended => ended,
        };
        outcome(ended, report, stderr_tail)
    }

    /// It, with this on top of the environment that all have.
    fn program(&self, environment: &[(&str, String)]) -> io::Result<Program> {
        let is_given = |name: &OsStr| environment.iter().any(|(given, _)| name == *given);
        let common = self.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        let given = environment.iter().map(|(name, value)| (OsStr::new(*name), OsStr::new(value)));
        let environment = common.filter(|(name, _)| !is_given(name)).chain(given);
        Program::new(self.program.as_os_str(), self.argv.iter().map(OsStr::new), environment)
    }
}

/// What a run comes to that has ended so, by itself or by its time, and has said this of its records.
fn outcome(ended: Result<(), Failure>, report: Result<Vec<u8>, TooLong>, stderr: Vec<u8>) -> Outcome {
    let report = report.map_err(anyhow::Error::from).and_then(|lines| Report::parse(&lines));
    match (ended, report) {
        (Ok(()), Ok(report)) => Outcome::Done(report),
        (Ok(()), Err(why)) => {
            Outcome::Failed(Failed { failure: Failure::Report(why), report: Report::default(), stderr })
        }
        // Why the run failed weighs more than that its report is broken.
        (Err(failure), report) => Outcome::Failed(Failed { failure, report: report.unwrap_or_default(), stderr }),
    }
}

/// To be called once, by a program that begins with [`is_warden`], before it runs a command: from now on nothing of
/// a run stays behind, however this process ends, and descendants that leave their group are killed, too. It must not
/// start processes of its own any more, which would be taken for such descendants. Fails where there is no /proc.
pub fn leave_nothing_behind() -> Result<()> {
    fs::read_link(OURSELVES)
        .map_err(|err| Exit::Misconfigured.because(anyhow!("cannot read {OURSELVES}: {err}; is /proc mounted?")))?;
    descendants::adopt().context("cannot become a subreaper")?;
    warden::start().context("cannot start the warden of the handlers")
}

/// Has all that the runs under way have started stand still, until it is let go; but what runs as somebody else. Gives whether
/// there are any.
pub fn hold() -> bool {
    warden::signal_all(Signal::STOP)
}

/// Lets it go on.
pub fn let_go() {
    warden::signal_all(Signal::CONT);
}

/// What tells a run from all others.
pub fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Whether this process was started by [`leave_nothing_behind`]: then all it does is [`keep_watch`].
pub fn is_warden() -> bool {
    warden::is_asked_for()
}

/// Returns when the process that this one belongs to has ended and nothing of its runs is left.
pub fn keep_watch() -> Result<()> {
    warden::keep_watch().context("cannot read what is to be watched")
}

impl Batch<'_> {
    pub fn environment(&self) -> [(&'static str, String); 10] {
        [
            ("KSYNC_BATCH_TOPIC", self.source.topic.to_string()),
            ("KSYNC_BATCH_PARTITION", self.source.partition.to_string()),
            ("KSYNC_BATCH_NAME", self.name.to_string()),
            ("KSYNC_BATCH_COUNT", self.count.to_string()),
            ("KSYNC_BATCH_FIRST_OFFSET", self.first.to_string()),
            ("KSYNC_BATCH_LAST_OFFSET", self.last.to_string()),
            ("KSYNC_BATCH_ATTEMPT", self.attempt.to_string()),
            ("KSYNC_BATCH_TERM", self.term.to_string()),
            ("KSYNC_BATCH_ID", self.id.to_owned()),
            ("KSYNC_RESULT_FD", RESULT_FD.to_string()),
        ]
    }
}
