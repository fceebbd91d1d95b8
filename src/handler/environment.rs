//! The environment of a command: which variables of our own it gets.

use std::ffi::OsStr;

/// What even `--clean-env` lets through.
const ALWAYS_PASSED: [&str; 3] = ["PATH", "LANG", "TZ"];

/// By these systemd knows its service: the command must not speak for us, not even by `--pass-env`.
const NEVER_PASSED: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Which variables of our own environment the command gets.
#[derive(Clone, Debug)]
pub enum Environment {
    /// All but `KSYNC_*`, our options and secrets, and what systemd tells us.
    Ours,
    /// PATH, LANG and TZ, and those that are named.
    Clean { passed: Vec<String> },
}

impl Environment {
    pub(super) fn has(&self, variable: &OsStr) -> bool {
        if NEVER_PASSED.iter().any(|name| variable == *name) {
            return false;
        }
        match self {
            Environment::Ours => !variable.as_encoded_bytes().starts_with(b"KSYNC_"),
            Environment::Clean { passed } => {
                ALWAYS_PASSED.iter().any(|name| variable == *name)
                    || passed.iter().any(|name| variable == name.as_str())
            }
        }
    }
}
