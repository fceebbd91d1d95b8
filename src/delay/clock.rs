//! What time it is, for what no look at the partition tells; and whose clock is wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use log::warn;
use tokio::time::Instant;

use crate::election::Seat;
use crate::lead::APART;

/// This machine's clock and ZooKeeper's. Where they differ the earlier one counts: too late is safe.
pub struct Clock {
    theirs: SystemTime,
    read: Instant,
}

impl Clock {
    /// `theirs` is what ZooKeeper's clock has just shown.
    pub fn beside(theirs: SystemTime) -> Clock {
        Clock { theirs, read: Instant::now() }
    }

    /// How long ago that was; a time that lies in the future counts as now.
    pub fn age(&self, made: SystemTime) -> Duration {
        let now = SystemTime::now().min(self.theirs + self.read.elapsed());
        now.duration_since(made).unwrap_or_default()
    }
}

/// For how long each message has to be older than can be: a broker may hold one back whose followers are away, and so may its
/// writer's transaction.
const SURE: Duration = Duration::from_secs(60);

/// This machine's clock beside those of the brokers. That they are apart is told once.
#[derive(Debug, Default)]
pub struct Clocks {
    is_told: AtomicBool,
    /// Since when all messages are older than can be.
    ahead_since: Mutex<Option<Instant>>,
}

impl Clocks {
    /// `made` is when a broker has written a message that has just come and is `at_most` so old, where that is known.
    pub fn compare(&self, seat: &Seat, made: SystemTime, at_most: impl FnOnce() -> Option<Duration>) {
        if self.is_told.load(Ordering::Relaxed) {
            return;
        }
        let Some(at_most) = at_most() else { return };
        let (apart, is_sure) = match SystemTime::now().duration_since(made) {
            Ok(age) => (age.saturating_sub(at_most), false),
            Err(behind) => (behind.duration(), true),
        };
        let is_apart = apart > APART;
        if is_apart && (is_sure || self.is_ahead_for_long(true)) && !self.is_told.swap(true, Ordering::Relaxed) {
            warn!(
                "{seat}: the clock of this machine and that of the partition's broker are {} s apart: set whichever is wrong, or \
                 what waits at a take-over may be held too long, or not long enough",
                apart.as_secs()
            );
        }
        if !is_apart {
            self.is_ahead_for_long(false);
        }
    }

    fn is_ahead_for_long(&self, is_ahead: bool) -> bool {
        let mut since = self.ahead_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = since.or_else(|| Some(Instant::now())).filter(|_| is_ahead);
        since.is_some_and(|since| since.elapsed() >= SURE)
    }
}
