//! SIGHUP: a terminal is gone, or somebody wants a daemon to read its settings again.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result};
use log::info;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// When SIGHUP asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HangUp {
    /// Always: a run that somebody waits for.
    Ends,
    /// Only once the terminal that the log was written to is gone. Otherwise it is what `systemctl reload` and logrotate
    /// send to daemons, and that must not end one.
    EndsWithTerminal,
}

/// Listens to SIGHUP.
pub(super) struct HangUps {
    /// `None` where whoever started us wants it to be ignored, as nohup does.
    signal: Option<Signal>,
    when: HangUp,
    had_terminal: bool,
}

impl HangUps {
    pub fn new(when: HangUp) -> Result<HangUps> {
        let listen = || signal(SignalKind::hangup()).context("cannot listen to SIGHUP");
        let signal = if is_ignored() { None } else { Some(listen()?) };
        Ok(HangUps { signal, when, had_terminal: stderr().is_terminal() })
    }

    /// Returns when one asks for the end. Cancelling loses nothing.
    pub async fn ends(&mut self) {
        let Some(signal) = &mut self.signal else { return std::future::pending().await };
        loop {
            signal.recv().await;
            // The kernel cuts a terminal off before it sends the signal.
            if self.when == HangUp::Ends || (self.had_terminal && !stderr().is_terminal()) {
                return;
            }
            info!("SIGHUP: going on; options and files are read at the start only");
        }
    }
}

/// Whether the process was started with SIGHUP ignored.
fn is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = SignalKind::hangup().as_raw_value() - 1;
    ignored.is_some_and(|mask| mask & (1 << bit) != 0)
}
