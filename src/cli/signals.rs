//! The signals that end a process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use log::{error, info};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::hang_up::{HangUp, HangUps};
use crate::shutdown::Trigger;

/// Signals that come so soon after the first belong to it: timeout(1) sends one to its child, and then to its whole group.
const SAME: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, and SIGHUP where it counts: the first asks for the end, the second ends at once.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hang_ups: HangUps,
}

impl Signals {
    pub fn new(hang_up: HangUp) -> Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let hang_ups = HangUps::new(hang_up)?;
        Ok(Signals { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())?, hang_ups })
    }

    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.term.recv() => SignalKind::terminate(),
            _ = self.int.recv() => SignalKind::interrupt(),
            () = self.hang_ups.ends() => SignalKind::hangup(),
        }
    }

    /// Asks for the end at the first signal; returns the one to die of at a second one, or when `grace` is over.
    pub async fn until_impatient(mut self, trigger: &Trigger, grace: Duration) -> SignalKind {
        let first = self.next().await;
        // Before the line: whoever reads that takes it for so.
        trigger.request();
        info!("asked to end: finishing what is under way, for at most {}", humantime::format_duration(grace));
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
