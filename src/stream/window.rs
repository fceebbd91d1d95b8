//! The time that a run may take, after which the next run goes on.

use std::time::{Duration, SystemTime};

use log::info;
use tokio::time::{Instant, sleep};

use crate::shutdown::Shutdown;

/// How often the clock is looked at: it may be set, and the machine may sleep.
const LOOK: Duration = Duration::from_millis(500);

/// When a run has to end.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub until: Option<SystemTime>,
    pub max_time: Option<Duration>,
}

impl Window {
    /// The window begins now; the end is asked for when it is over, or with `whole`.
    pub fn open(self, whole: &Shutdown) -> Shutdown {
        if self.until.is_none() && self.max_time.is_none() {
            return whole.clone();
        }
        let (trigger, part) = whole.part();
        let begun = Instant::now();
        tokio::spawn(async move {
            while let Some(left) = self.left(SystemTime::now(), begun.elapsed()) {
                sleep(left.min(LOOK)).await;
            }
            trigger.request();
            info!("the time is over ({}): finishing what is under way", self.label());
        });
        part
    }

    /// `None` once it is over.
    fn left(self, now: SystemTime, elapsed: Duration) -> Option<Duration> {
        let by_clock = self.until.map(|until| until.duration_since(now).unwrap_or_default());
        let by_time = self.max_time.map(|most| most.saturating_sub(elapsed));
        by_clock.into_iter().chain(by_time).min().filter(|left| !left.is_zero())
    }

    fn label(self) -> String {
        let until = self.until.map(|until| format!("--until {}", humantime::format_rfc3339_seconds(until)));
        let most = self.max_time.map(|most| format!("--max-time {}", humantime::format_duration(most)));
        until.into_iter().chain(most).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_over_at_its_time_or_after_its_duration() {
        let seconds = Duration::from_secs;
        let now = SystemTime::UNIX_EPOCH + seconds(1000);
        let left = |until: Option<u64>, most: Option<u64>, elapsed| {
            let until = until.map(|until| SystemTime::UNIX_EPOCH + seconds(until));
            Window { until, max_time: most.map(seconds) }.left(now, seconds(elapsed))
        };
        assert_eq!(left(Some(1060), None, 0), Some(seconds(60)));
        assert_eq!(left(Some(1060), Some(50), 10), Some(seconds(40)));
        assert_eq!(left(Some(1060), Some(500), 10), Some(seconds(60)));
        for (until, most, elapsed) in
            [(Some(1000), None, 0), (Some(1), None, 0), (None, Some(10), 10), (Some(1060), Some(0), 0)]
        {
            assert_eq!(left(until, most, elapsed), None);
        }
    }
}
