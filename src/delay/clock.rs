//! What time it is, for what no look at the partition tells.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

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
