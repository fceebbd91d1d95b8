//! The log: lines on stderr, each an event that an operator may read a year later.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use clap::{ArgAction, Args, ValueEnum};
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter};
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
        let lines = Mutex::new(Lines::default());
        env_logger::Builder::new()
            .filter_level(others)
            .filter_module("ksync", level)
            .filter_module("handler", level)
            .filter_module(ASKED, LevelFilter::Info)
            .filter_module("librdkafka", if self.verbose > 0 { LevelFilter::Debug } else { LevelFilter::Warn })
            .format(move |out, record| {
                let line = |level, message: &str| match format {
                    LogFormat::Text => text(out, &program, level, message),
                    LogFormat::Json => json(&program, level, message),
                };
                let said = line(record.level(), &record.args().to_string());
                // Not left to env_logger, which does not tell whether a line could be written.
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.write(&mut io::stderr(), &said, |lost| line(Level::Warn, lost));
                Ok(())
            })
            .init();
    }
}

fn text(out: &Formatter, program: &str, level: Level, message: &str) -> String {
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let style = out.default_level_style(level);
    let level = level.as_str().to_lowercase();
    format!("{time} {program} {style}{level}{style:#}: {}\n", escaped(message))
}

fn json(program: &str, level: Level, message: &str) -> String {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let level = level.as_str().to_lowercase();
    let line = json!({"time": time, "program": program, "level": level, "message": escaped(message)});
    format!("{line}\n")
}

/// What became of the lines that were written last.
#[derive(Default)]
struct Lines {
    /// How many could not be written, since one could.
    lost: u64,
    /// A part of the last one was written.
    is_torn: bool,
}

impl Lines {
    /// Writes the line, and before it how many were lost, as `warning` puts that. Where it cannot be written it is lost, too.
    fn write(&mut self, out: &mut impl Write, line: &str, warning: impl Fn(&str) -> String) {
        if self.lost > 0 {
            let end = if self.is_torn { "\n" } else { "" };
            let told = warning(&format!("lines of the log that could not be written, and are lost: {}", self.lost));
            if !self.put(out, &format!("{end}{told}")) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if !self.put(out, line) {
            self.lost += 1;
        }
    }

    /// Whether all of it was written.
    fn put(&mut self, out: &mut impl Write, line: &str) -> bool {
        let mut left = line.as_bytes();
        while !left.is_empty() {
            match out.write(left) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    // What was torn before is so until a line was written.
                    self.is_torn |= left.len() < line.len();
                    return false;
                }
                Ok(count) => left = &left[count..],
            }
        }
        self.is_torn = false;
        true
    }
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

    /// A log that takes so many bytes before its disk is full.
    struct Disk {
        written: Vec<u8>,
        size: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let free = bytes.len().min(self.size - self.written.len());
            if free == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.written.extend(&bytes[..free]);
            Ok(free)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn how_many_lines_were_lost_is_told_before_the_next_one_that_can_be_written() {
        let (mut lines, mut disk) = (Lines::default(), Disk { written: vec![], size: 6 });
        let mut say = |disk: &mut Disk, line: &str| lines.write(disk, line, |told| format!("{told}\n"));
        ["one\n", "two\n", "three\n"].iter().for_each(|line| say(&mut disk, line));
        disk.size = 1 << 10;
        ["four\n", "five\n"].iter().for_each(|line| say(&mut disk, line));
        let told = "lines of the log that could not be written, and are lost: 2";
        assert_eq!(String::from_utf8(disk.written).unwrap(), format!("one\ntw\n{told}\nfour\nfive\n"));
    }
}
