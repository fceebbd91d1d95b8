//! How a run of the handler ended.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

#[derive(Debug)]
pub enum Outcome {
    /// Exit status 0: the whole batch is done.
    Done,
    /// Nothing of the batch counts as done.
    Failed(Failure),
    /// The caller wanted the end before the handler came to its own; nothing counts as done.
    Stopped,
}

/// Why a run does not count. Its text says it as a person reads it: `exit status 3`.
#[derive(Debug)]
pub enum Failure {
    /// The exit status, never 0.
    Exit(i32),
    Signal(i32),
    /// It was ended by us after this time, whatever its exit status was then.
    Timeout(Duration),
    NotStarted {
        program: String,
        cause: io::Error,
    },
    /// It has ended, but the system does not say how.
    Unknown(io::Error),
}

impl From<io::Result<ExitStatus>> for Outcome {
    fn from(end: io::Result<ExitStatus>) -> Outcome {
        let status = match end {
            Ok(status) => status,
            Err(err) => return Outcome::Failed(Failure::Unknown(err)),
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Outcome::Done,
            (Some(code), _) => Outcome::Failed(Failure::Exit(code)),
            (None, Some(signal)) => Outcome::Failed(Failure::Signal(signal)),
            (None, None) => Outcome::Failed(Failure::Unknown(io::Error::other(status.to_string()))),
        }
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
            Failure::NotStarted { program, cause } => write!(f, "cannot start '{program}': {cause}"),
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
        let texts = [
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
}
