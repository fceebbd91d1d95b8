//! How far a bounded run is: a bar on a terminal, a line now and then in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use log::info;
use serde_json::json;

/// When the first line comes, and how long after it the next ones.
const FIRST_LINE: Duration = Duration::from_secs(10);
const NEXT_LINES: Duration = Duration::from_secs(60);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A bar on a terminal, else lines in the log.
    Auto,
    /// Lines in the log.
    Plain,
    /// A JSON object a line on stderr.
    Json,
    Nothing,
}

/// Counts what is done.
pub struct Progress {
    show: Show,
    what: &'static str,
    total: Option<u64>,
    done: u64,
    begun: Instant,
    next_line: Duration,
    /// What holds the run up at the moment.
    held: Option<String>,
}

enum Show {
    Bar(ProgressBar),
    Lines,
    Json,
    Nothing,
}

impl Progress {
    /// `what` is what is counted, in the plural; `total` is about how many there are, where that is known.
    pub fn new(format: Format, what: &'static str, total: Option<u64>) -> Progress {
        let show = match format {
            Format::Auto if std::io::stderr().is_terminal() => Show::Bar(bar(what, total)),
            Format::Auto | Format::Plain => Show::Lines,
            Format::Json => Show::Json,
            Format::Nothing => Show::Nothing,
        };
        Progress { show, what, total, done: 0, begun: Instant::now(), next_line: FIRST_LINE, held: None }
    }

    pub fn add(&mut self, more: usize) {
        self.done += more as u64;
        if let Show::Bar(bar) = &self.show {
            // The total is an estimate; a bar that is over its end looks wrong.
            if self.total.is_some_and(|total| total < self.done) {
                bar.set_length(self.done);
            }
            bar.set_position(self.done);
        }
        self.line_if_due();
    }

    /// Nothing is done at the moment, and why; a long pause is told of like progress is.
    pub fn hold(&mut self, why: &str) {
        if self.held.as_deref() != Some(why) {
            self.held = Some(why.to_owned());
            if let Show::Bar(bar) = &self.show {
                bar.set_message(format!("{}, paused: {why}", self.what));
            }
        }
        self.line_if_due();
    }

    /// The pause is over.
    pub fn go_on(&mut self) {
        if self.held.take().is_some()
            && let Show::Bar(bar) = &self.show
        {
            bar.set_message(self.what);
        }
    }

    /// Shows the last figures; each that is done had so many messages, and `outlook` says what becomes of these. Gives how many
    /// are done.
    pub fn finish(self, messages: u64, retries: u64, outlook: &str) -> u64 {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
        let (elapsed, done, messages) = (self.begun.elapsed(), self.done, self.done * messages);
        match self.show {
            Show::Bar(_) | Show::Lines => {
                let (seconds, rate) = (elapsed.as_secs_f64(), self.rate(elapsed));
                let what = self.what;
                info!(
                    "{done} {what} in {seconds:.1} s, {rate:.0} a second; {messages} messages, {retries} retries; {outlook}"
                );
            }
            Show::Json => {
                let mut figures = self.figures(elapsed, true);
                figures["messages"] = messages.into();
                figures["retries"] = retries.into();
                eprintln!("{figures}");
            }
            Show::Nothing => {}
        }
        done
    }

    /// Shows no more of a run that has failed; how many are done.
    pub fn give_up(self) -> u64 {
        match &self.show {
            Show::Bar(bar) => bar.finish_and_clear(),
            Show::Json => self.line(self.begun.elapsed()),
            Show::Lines | Show::Nothing => {}
        }
        self.done
    }

    fn line_if_due(&mut self) {
        let elapsed = self.begun.elapsed();
        if elapsed >= self.next_line {
            self.line(elapsed);
            self.next_line = elapsed + NEXT_LINES;
        }
    }

    fn line(&self, elapsed: Duration) {
        match self.show {
            Show::Lines => {
                let left = self.total.map_or(String::new(), |total| format!(" of about {total}"));
                let held = self.held.as_ref().map_or(String::new(), |why| format!("; paused: {why}"));
                info!("{}{left} {} so far, {:.0} a second{held}", self.done, self.what, self.rate(elapsed));
            }
            Show::Json => eprintln!("{}", self.figures(elapsed, false)),
            Show::Bar(_) | Show::Nothing => {}
        }
    }

    fn figures(&self, elapsed: Duration, is_last: bool) -> serde_json::Value {
        json!({
            "done": self.done,
            "total": self.total,
            "seconds": elapsed.as_secs_f64(),
            "per_second": self.rate(elapsed),
            "paused": self.held,
            "finished": is_last,
        })
    }

    fn rate(&self, elapsed: Duration) -> f64 {
        self.done as f64 / elapsed.as_secs_f64().max(0.001)
    }
}

fn bar(what: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{wide_bar} {human_pos}/{human_len} {msg}, {per_sec}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} {msg}, {per_sec}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar
}
