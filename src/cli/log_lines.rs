//! The log: lines on stderr, each an event that an operator may read a year later.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use clap::{ArgAction, Args, ValueEnum};
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};
use serde_json::json;

use super::daemon::ASKED;

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// Logs each batch too; given twice, each record, without its content
    #[arg(short, long, env = "KSYNC_VERBOSE", action = ArgAction::Count, help_heading = "Other")]
    pub verbose: u8,

    /// Logs nothing but what went wrong
    #[arg(short, long, env = "KSYNC_QUIET", conflicts_with = "verbose", help_heading = "Other")]
    pub quiet: bool,

    /// How a line of the log looks
    #[arg(long, env = "KSYNC_LOG_FORMAT", value_name = "FORMAT", default_value = "text", help_heading = "Other")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A time, a level and a sentence
    Text,
    /// A JSON object
    Json,
}

impl Logging {
    pub fn start(&self, program: &str) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Warn,
            (false, 0) => LevelFilter::Info,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        };
        // Other crates' lines are for who develops ksync.
        let others = if self.verbose > 1 { LevelFilter::Debug } else { LevelFilter::Error };
        let (program, format) = (program.to_owned(), self.log_format);
        env_logger::Builder::new()
            .filter_level(others)
            .filter_module("ksync", level)
            .filter_module("handler", level)
            .filter_module(ASKED, LevelFilter::Info)
            .filter_module("librdkafka", if self.verbose > 0 { LevelFilter::Debug } else { LevelFilter::Warn })
            .format(move |out, record| match format {
                LogFormat::Text => text(out, &program, record),
                LogFormat::Json => json(out, &program, record),
            })
            .init();
    }
}

fn text(out: &mut Formatter, program: &str, record: &Record<'_>) -> std::io::Result<()> {
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let level = record.level();
    let style = out.default_level_style(level);
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    writeln!(out, "{time} {program} {style}{level}{style:#}: {}", escaped(&record.args().to_string()))
}

fn json(out: &mut Formatter, program: &str, record: &Record<'_>) -> std::io::Result<()> {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let level = record.level().as_str().to_lowercase();
    let message = escaped(&record.args().to_string());
    writeln!(out, "{}", json!({"time": time, "program": program, "level": level, "message": message}))
}

/// Text of other people with its control characters made harmless: one event is one line, and no terminal obeys it.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if steers {
            write!(safe, "{}", c.escape_default()).expect("a String takes all that is written");
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_is_one_line_that_no_terminal_obeys() {
        assert_eq!(escaped("a\nb\u{1b}[31mä\u{202e}"), "a\\nb\\u{1b}[31mä\\u{202e}");
    }
}
