//! How a run of the handler ended.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;

use super::report::Report;
use crate::mutants::Mutant;

#[derive(Debug)]
pub enum Outcome {
    /// Exit status 0: the batch is done, but for what the report says.
    Done(Report),
    /// Nothing of the batch counts as done but what the report says.
    Failed(Failed),
    /// The caller wanted the end before the handler came to its own; nothing counts as done.
    Stopped,
}

#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    pub report: Report,
    /// The last of what it wrote there.
    pub stderr: Vec<u8>,
}

/// Why a run does not count. Its text says it as a person reads it: `exit status 3`.
#[derive(Debug)]
pub enum Failure {
    /// The exit status, never 0.
    Exit(i32),
    Signal(i32),
    /// It was ended by us after this time, whatever its exit status was then.
    Timeout(Duration),
    /// It says done, and has left so many bytes of its input.
    Unread(usize),
    /// What it said of single records cannot be understood.
    Report(anyhow::Error),
    NotStarted {
        program: String,
        cause: io::Error,
    },
    /// A worker was not ready for a batch, for this reason.
    NotReady(Box<Failure>),
    /// A worker has ended, or closed its stdout, without an answer.
    Gone,
    /// A worker has not answered within the time of an option.
    Silent {
        limit: Duration,
        option: &'static str,
    },
    /// A worker did not keep to the protocol.
    Protocol(String),
    /// A worker says that it can work on no batch.
    Fatal(String),
    /// A worker wants the batch to come again after this time.
    Backoff(Duration),
    /// It has ended, but the system does not say how.
    Unknown(io::Error),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed { failure, report: Report::default(), stderr: vec![] }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Outcome {
        Outcome::Failed(failure.into())
    }
}

/// What a failed run means for those who decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The store is down, or the machine is out of something: try again later.
    Temporary,
    /// This data will never work.
    Permanent,
    /// The handler itself is not as it has to be; no data is at fault.
    Misconfigured,
    /// Anything else.
    Failed,
}

impl Failure {
    /// Statuses 65, 75, 77 and 78 mean what sysexits.h says, 100 and 111 what qmail made of them, 126 and 127 what shells do.
    pub fn kind(&self) -> Kind {
        match self {
            Failure::Exit(75 | 111) => Kind::Temporary,
            Failure::Exit(65 | 100) => Kind::Permanent,
            Failure::Exit(77 | 78 | 126 | 127) => Kind::Misconfigured,
            Failure::NotStarted { cause, .. } => match Errno::from_io_error(cause) {
                Some(Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::TXTBSY) => Kind::Temporary,
                _ => Kind::Misconfigured,
            },
            Failure::NotReady(cause) => match cause.kind() {
                Kind::Misconfigured => Kind::Misconfigured,
                _ => Kind::Temporary,
            },
            Failure::Fatal(_) => Kind::Misconfigured,
            Failure::Backoff(_) => Kind::Temporary,
            _ => Kind::Failed,
        }
    }

    /// How long it wants us to wait.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Failure::Backoff(pause) => Some(*pause),
            _ => None,
        }
    }
}

/// How a process ended by itself.
pub(super) fn ended(end: io::Result<ExitStatus>) -> Result<(), Failure> {
    let status = end.map_err(Failure::Unknown)?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(_), _) if Mutant::IgnoresStatus.is_on() => Ok(()),
        (None, Some(_)) if Mutant::IgnoresSignal.is_on() => Ok(()),
        (Some(code), _) => Err(Failure::Exit(code)),
        (None, Some(signal)) => Err(Failure::Signal(signal)),
        (None, None) => Err(Failure::Unknown(io::Error::other(status.to_string()))),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Exit(code) => write!(f, "exit status {code}"),
            Failure::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            Failure::Timeout(limit) => write!(f, "no end after {} (--timeout)", humantime::format_duration(*limit)),
            Failure::Unread(bytes) => {
                write!(f, "exit status 0 with {bytes} bytes of its input unread (--allow-unread lets that pass)")
            }
            Failure::Report(cause) => write!(f, "{cause:#}"),
            Failure::NotStarted { program, cause } => write!(f, "cannot start '{program}': {cause}"),
            Failure::NotReady(cause) => write!(f, "the worker was not ready: {cause}"),
            Failure::Gone => f.write_str("the worker ended, or closed its stdout, without an answer"),
            Failure::Silent { limit, option } => {
                let limit = humantime::format_duration(*limit);
                write!(f, "no answer within {limit} ({option}); does the worker flush its stdout after each line?")
            }
            Failure::Protocol(how) => write!(f, "the worker broke the protocol: {how}"),
            Failure::Fatal(text) if text.is_empty() => f.write_str("a fatal error"),
            Failure::Fatal(text) => write!(f, "a fatal error: {text}"),
            Failure::Backoff(pause) => write!(f, "the worker wants {} of rest", humantime::format_duration(*pause)),
            Failure::Unknown(cause) => write!(f, "an unknown end: {cause}"),
        }
    }
}

impl std::error::Error for Failure {}

/// The name of a signal that ends a process, as Linux numbers them on x86-64 and aarch64.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_a_person_says_it() {
        let missing = io::Error::from_raw_os_error(2);
        let unread = "exit status 0 with 7 bytes of its input unread (--allow-unread lets that pass)";
        let texts = [
            (Failure::Unread(7), unread),
            (Failure::Exit(3), "exit status 3"),
            (Failure::Signal(9), "signal 9 (SIGKILL)"),
            (Failure::Signal(35), "signal 35"),
            (Failure::Timeout(Duration::from_secs(300)), "no end after 5m (--timeout)"),
            (
                Failure::NotStarted { program: "x".into(), cause: missing },
                "cannot start 'x': No such file or directory (os error 2)",
            ),
        ];
        for (failure, text) in texts {
            assert_eq!(failure.to_string(), text);
        }
    }

    #[test]
    fn the_exit_statuses_mean_what_the_design_says() {
        let not_started =
            |number| Failure::NotStarted { program: "x".into(), cause: io::Error::from_raw_os_error(number) };
        let kinds = [
            (Kind::Temporary, vec![Failure::Exit(75), Failure::Exit(111), not_started(11), not_started(24)]),
            (Kind::Permanent, vec![Failure::Exit(65), Failure::Exit(100)]),
            (Kind::Misconfigured, [77, 78, 126, 127].map(Failure::Exit).into_iter().chain([not_started(2)]).collect()),
            (Kind::Failed, vec![Failure::Exit(1), Failure::Exit(255), Failure::Signal(9), Failure::Unread(1)]),
        ];
        for (kind, failures) in kinds {
            for failure in failures {
                assert_eq!(failure.kind(), kind, "{failure}");
            }
        }
    }
}
