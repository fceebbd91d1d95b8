//! What people tell a run while it is at work, and what it tells them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::Rate;
use crate::message::Change;
use crate::shutdown::Trigger;

/// How much of a key is shown.
const KEY: usize = 200;

/// Where a run and the people who look after it meet. Clones are the same.
#[derive(Clone, Debug)]
pub struct Console {
    wishes: watch::Sender<Wishes>,
    status: watch::Sender<Status>,
    stop: Arc<Trigger>,
}

/// What was asked for last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub is_paused: bool,
    pub rate: Rate,
}

/// What holds a run up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    Control,
    Rate,
    Pause,
    Lag,
    Query,
}

#[derive(Debug)]
struct Status {
    begun: Instant,
    rows: u64,
    chunks: u64,
    last_key: Option<String>,
    held: Option<Held>,
    /// How long it was held up before that.
    totals: BTreeMap<By, Duration>,
}

#[derive(Clone, Debug)]
struct Held {
    by: By,
    why: String,
    since: SystemTime,
    begun: Instant,
}

impl Console {
    /// `stop` asks for the end of the run.
    pub fn new(rate: Rate, stop: Trigger) -> Console {
        let status =
            Status { begun: Instant::now(), rows: 0, chunks: 0, last_key: None, held: None, totals: BTreeMap::new() };
        Console {
            wishes: watch::Sender::new(Wishes { is_paused: false, rate }),
            status: watch::Sender::new(status),
            stop: Arc::new(stop),
        }
    }

    /// How the run stands, in one line.
    pub fn status(&self) -> String {
        let wishes = *self.wishes.borrow();
        let mut text = self.status.borrow().text(wishes.rate);
        if wishes.is_paused && self.status.borrow().held.is_none() {
            text += "; pauses after the chunk under way";
        }
        text
    }

    /// Nothing begins after the chunk under way, until [`Console::resume`].
    pub fn pause(&self) {
        self.wishes.send_modify(|wishes| wishes.is_paused = true);
    }

    pub fn resume(&self) {
        self.wishes.send_modify(|wishes| wishes.is_paused = false);
    }

    pub fn set_rate(&self, rate: Rate) {
        self.wishes.send_modify(|wishes| wishes.rate = rate);
    }

    /// The run ends after the chunk under way.
    pub fn stop(&self) {
        self.stop.request();
    }

    pub(super) fn wishes(&self) -> watch::Receiver<Wishes> {
        self.wishes.subscribe()
    }

    pub(super) fn held(&self, by: By, why: &str) {
        self.status.send_modify(|status| {
            if status.held.as_ref().is_none_or(|held| held.by != by) {
                status.go_on();
                let (since, begun) = (SystemTime::now(), Instant::now());
                status.held = Some(Held { by, why: String::new(), since, begun });
            }
            if let Some(held) = &mut status.held {
                why.clone_into(&mut held.why);
            }
        });
    }

    /// Nothing holds the run up any more.
    pub(super) fn go_on(&self) {
        self.status.send_if_modified(|status| status.go_on());
    }

    pub(super) fn done(&self, changes: &[Change]) {
        self.status.send_modify(|status| {
            status.rows += changes.len() as u64;
            status.chunks += 1;
            if let Some(change) = changes.last() {
                let key = change.key.as_ref().unwrap_or(&change.payload);
                status.last_key = Some(printable(key));
            }
        });
    }
}

impl Status {
    fn go_on(&mut self) -> bool {
        let Some(held) = self.held.take() else { return false };
        *self.totals.entry(held.by).or_default() += held.begun.elapsed();
        true
    }

    fn text(&self, rate: Rate) -> String {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let (rows, per_second) = (self.rows, self.rows as f64 / elapsed.max(0.001));
        let mut text = format!("{rows} rows in {} chunks, {elapsed:.1} s, {per_second:.0} a second", self.chunks);
        if let Some(key) = &self.last_key {
            text += &format!("; last key {key}");
        }
        text += &format!("; rate {rate}");
        let mut totals = self.totals.clone();
        match &self.held {
            Some(held) => {
                *totals.entry(held.by).or_default() += held.begun.elapsed();
                let since = humantime::format_rfc3339_seconds(held.since);
                text += &format!("; paused since {since}: {}", held.why);
            }
            None => text += "; not paused",
        }
        if !totals.is_empty() {
            let totals: Vec<_> = totals.iter().map(|(by, time)| format!("{by} {:.1} s", time.as_secs_f64())).collect();
            text += &format!("; pauses so far: {}", totals.join(", "));
        }
        text
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Control => "control",
            By::Rate => "rate",
            By::Pause => "pause",
            By::Lag => "lag",
            By::Query => "query",
        })
    }
}

/// On one line, and not too much of it.
pub(super) fn printable(bytes: &[u8]) -> String {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(KEY)]);
    let more = if bytes.len() > KEY { ".." } else { "" };
    format!("{}{more}", start.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;

    fn masked(status: &str) -> String {
        let words = status.split(' ').map(|word| match word.trim_end_matches([',', ';', ':']) {
            number if number.contains('.') && number.parse::<f64>().is_ok() => "N",
            time if time.ends_with('Z') => "TIME:",
            _ => word,
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_status_is_one_line_with_all_that_holds_the_run_up() {
        let (stop, _) = Shutdown::new();
        let console = Console::new(Rate::Unlimited, stop);
        let begin = "0 rows in 0 chunks, N s, 0 a second; rate off; not paused";
        assert_eq!(masked(&console.status()), begin);

        console.pause();
        assert_eq!(masked(&console.status()), format!("{begin}; pauses after the chunk under way"));
        console.held(By::Control, "asked to");
        console.resume();
        console.held(By::Lag, "lag of indexer is 7, more than 5");
        let change = Change { key: Some(b"a\n\"\xff".to_vec()), payload: vec![] };
        console.done(&[change]);
        console.set_rate(Rate::PerSecond(2.0));
        let status = console.status();
        let (_, rest) = status.split_once(" a second; ").unwrap();
        assert_eq!(
            masked(rest),
            "last key a\\n\"\u{fffd}; rate 2/s; paused since TIME: lag of indexer is 7, more than 5; \
             pauses so far: control N s, lag N s"
        );
        console.go_on();
        assert!(console.status().contains("; rate 2/s; not paused; pauses so far: control "));
    }

    #[test]
    fn of_a_long_key_the_beginning_is_shown() {
        assert_eq!(printable(&[b'x'; 201]), format!("{}..", "x".repeat(200)));
        assert_eq!(printable("ä'".as_bytes()), "ä'");
    }
}
