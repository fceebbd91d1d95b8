//! How a process ends: the exit statuses that all tools share, and errors that carry one.

use std::fmt;

use anyhow::Error;

/// What an exit status tells the one who started the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All done; for a daemon also the end after a first SIGTERM or SIGINT.
    Done,
    /// A person is needed: a refused statement, a line that is not JSON, a halted partition.
    Person,
    /// A wrong command line, seen without opening anything, or a statement that does not fit the key.
    Usage,
    /// A bounded run is done, and something went to the dead-letter topic.
    DeadLettered,
    /// The same job, or another leader, is at work.
    Busy,
    /// A bounded run could not go on, or was asked to end early: run it again.
    Again,
    /// A missing topic, table or column, a refused setting or login, a handler that cannot be started.
    Misconfigured,
}

impl Exit {
    pub fn status(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Person => 1,
            Exit::Usage => 2,
            Exit::DeadLettered => 3,
            Exit::Busy => 4,
            Exit::Again => 75,
            Exit::Misconfigured => 78,
        }
    }

    /// The error, such that the process ends with this status because of it.
    pub fn because(self, cause: impl Into<Error>) -> Error {
        Error::new(Failure { exit: self, cause: cause.into() })
    }

    /// The status that the error carries; without one a person is needed.
    pub fn of(error: &Error) -> Exit {
        error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(Exit::Person, |failure| failure.exit)
    }
}

/// Reads as its cause does.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    cause: Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_error_keeps_its_status_and_its_text_through_contexts() {
        let cause = anyhow!("no such file").context("cannot open x");
        let error = Err::<(), _>(Exit::Misconfigured.because(cause)).context("cannot start").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Misconfigured);
        assert_eq!(format!("{error:#}"), "cannot start: cannot open x: no such file");
        assert_eq!(Exit::of(&anyhow!("else")), Exit::Person);
    }
}
