//! How fast a run may go: so many rows a second, and a pause between two chunks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;

/// What a run that was held up by something else may catch up on.
const SLACK: Duration = Duration::from_secs(1);

/// Longer than anybody waits.
const EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How many rows are announced in a second at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    Unlimited,
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Rate> {
        if text == "off" {
            return Ok(Rate::Unlimited);
        }
        let wrong = || format!("'{}' is not a rate: it is written as 500/s, 500, or off", text.escape_debug());
        let rows = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().with_context(wrong)?;
        ensure!(rows.is_finite() && rows >= 0.0, wrong());
        Ok(if rows > 0.0 { Rate::PerSecond(rows) } else { Rate::Unlimited })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Unlimited => f.write_str("off"),
            Rate::PerSecond(rows) => write!(f, "{rows}/s"),
        }
    }
}

impl Rate {
    pub(super) fn time_of(self, rows: usize) -> Duration {
        match self {
            Rate::Unlimited => Duration::ZERO,
            Rate::PerSecond(per_second) => {
                Duration::try_from_secs_f64(rows as f64 / per_second).unwrap_or(EVER).min(EVER)
            }
        }
    }
}

/// What holds the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Rate(Instant),
    Pause(Instant),
}

/// When the next chunk may begin.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    chunk: Option<Chunk>,
}

/// The last one.
#[derive(Debug)]
struct Chunk {
    /// When it began as the rate has it: up to [`SLACK`] before it did.
    begun: Instant,
    ended: Instant,
    rows: usize,
}

impl Pace {
    pub fn new(pause: Duration) -> Pace {
        Pace { pause: pause.min(EVER), chunk: None }
    }

    /// What the next chunk waits for at `now`, and until when.
    pub fn due(&self, rate: Rate, now: Instant) -> Option<Due> {
        let chunk = self.chunk.as_ref()?;
        let (by_rate, by_pause) = (chunk.begun + rate.time_of(chunk.rows), chunk.ended + self.pause);
        let due = if by_rate >= by_pause { Due::Rate(by_rate) } else { Due::Pause(by_pause) };
        (by_rate.max(by_pause) > now).then_some(due)
    }

    /// A chunk begins.
    pub fn begin(&mut self, rate: Rate, now: Instant) {
        let due = self.chunk.as_ref().map_or(now, |chunk| chunk.begun + rate.time_of(chunk.rows));
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        self.chunk = Some(Chunk { begun: due.clamp(earliest, now), ended: now, rows: 0 });
    }

    /// The chunk has ended, with so many rows.
    pub fn end(&mut self, rows: usize, now: Instant) {
        if let Some(chunk) = &mut self.chunk {
            (chunk.rows, chunk.ended) = (rows, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, rate) in [
            ("500/s", Rate::PerSecond(500.0)),
            ("500", Rate::PerSecond(500.0)),
            ("0.5/s", Rate::PerSecond(0.5)),
            ("0", Rate::Unlimited),
            ("off", Rate::Unlimited),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap(), rate, "{text}");
        }
        for text in ["", "/s", "-1", "fast", "500/m", "inf", "NaN", "1e999"] {
            let error = format!("{:#}", text.parse::<Rate>().unwrap_err());
            assert!(
                error.starts_with(&format!("'{text}' is not a rate: it is written as 500/s, 500, or off")),
                "{error}"
            );
        }
        assert_eq!(Rate::PerSecond(500.0).to_string(), "500/s");
    }

    /// When each of the chunks begins, in ms; each takes `work` ms and goes when it may, but not before `not_before`.
    fn begins(pace: &mut Pace, rate: Rate, chunks: &[(usize, u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let mut now = start;
        let mut begins = vec![];
        for (rows, work, not_before) in chunks {
            if let Some(Due::Rate(at) | Due::Pause(at)) = pace.due(rate, now) {
                now = at;
            }
            now = now.max(start + *not_before as u32 * MILLISECOND);
            pace.begin(rate, now);
            begins.push((now - start).as_millis() as u64);
            now += *work as u32 * MILLISECOND;
            pace.end(*rows, now);
        }
        begins
    }

    #[test]
    fn a_chunk_takes_as_long_as_its_rows_do_at_the_rate_its_work_included() {
        let rate = Rate::PerSecond(100.0);
        let begins =
            begins(&mut Pace::new(Duration::ZERO), rate, &[(1000, 4000, 0), (10, 0, 0), (10, 500, 0), (1, 0, 0)]);
        // The third took 0.4 s more than it may, the fourth makes up for that.
        assert_eq!(begins, [0, 10_000, 10_100, 10_600]);
    }

    #[test]
    fn what_was_missed_is_made_up_for_by_one_second_at_most() {
        let rate = Rate::PerSecond(100.0);
        let chunks: Vec<_> = [(100, 0, 0), (100, 0, 60_000)].into_iter().chain([(50, 0, 0); 4]).collect();
        let begins = begins(&mut Pace::new(Duration::ZERO), rate, &chunks);
        assert_eq!(begins, [0, 60_000, 60_000, 60_500, 61_000, 61_500]);
    }

    #[test]
    fn a_pause_begins_at_the_end_of_a_chunk_and_the_longer_of_both_holds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        assert_eq!(begins(&mut pace, Rate::Unlimited, &[(10, 300, 0), (10, 0, 0), (0, 0, 0)]), [0, 1300, 2300]);
        let mut pace = Pace::new(Duration::from_secs(1));
        assert_eq!(begins(&mut pace, Rate::PerSecond(5.0), &[(10, 0, 0), (1, 0, 0), (0, 0, 0)]), [0, 2000, 3000]);
    }

    #[test]
    fn another_rate_holds_for_the_pause_that_is_under_way() {
        let (mut pace, now) = (Pace::new(Duration::ZERO), Instant::now());
        pace.begin(Rate::PerSecond(1.0), now);
        pace.end(1000, now);
        let due = |rate| pace.due(rate, now);
        assert_eq!(due(Rate::PerSecond(1.0)), Some(Due::Rate(now + Duration::from_secs(1000))));
        assert_eq!(due(Rate::PerSecond(100.0)), Some(Due::Rate(now + Duration::from_secs(10))));
        assert_eq!(due(Rate::Unlimited), None);
        assert!(due(Rate::PerSecond(1e-300)).is_some());
    }
}
