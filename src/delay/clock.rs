//! What time it is, for what no look at the partition tells; and whose clock is wrong.

use std::sync::atomic::{AtomicBool, Ordering};
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

/// This machine's clock beside those of the brokers. That they are apart is told once.
#[derive(Debug, Default)]
pub struct Clocks {
    is_told: AtomicBool,
}

impl Clocks {
    /// `made` is when a broker has written a message that is at most so old.
    pub fn compare(&self, seat: &Seat, made: SystemTime, at_most: Duration) {
        let apart = match SystemTime::now().duration_since(made) {
            Ok(age) => age.saturating_sub(at_most),
            Err(ahead) => ahead.duration(),
        };
        if apart > APART && !self.is_told.swap(true, Ordering::Relaxed) {
            warn!(
                "{seat}: the clock of this machine and that of the partition's broker are {} s apart: set whichever is wrong, \
                 or what waits at a take-over may be held too long, or not long enough",
                apart.as_secs()
            );
        }
    }
}
