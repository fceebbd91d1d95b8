//! What the handler writes to stdout and stderr: into the log, as far as that can bear it.

use std::borrow::Cow;
use std::io::{self, PipeWriter};
use std::mem;
use std::os::fd::OwnedFd;

use log::{Level, info, log_enabled};
use memchr::{memchr, memchr_iter};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// What is read of an output at once.
pub(super) const PIECE: usize = 16 << 10;

/// The longest line of the handler's output that is logged whole.
const LONGEST_LINE: usize = 8 << 10;

/// How many lines of one output are logged; of what comes after them only the amount. Each output has its own, so that
/// a chatty stdout does not hide what stderr says.
const MOST_LINES: u32 = 1000;

/// How much of an output's end is kept for those who ask what went wrong.
const TAIL: usize = 4 << 10;

/// Where the handler's output goes in the log.
const TARGET: &str = "handler";

/// Our end of the handler's stdout or stderr.
pub(super) struct Output {
    /// `None` once it has ended.
    pipe: Option<pipe::Receiver>,
    /// What is read and not yet logged.
    text: Vec<u8>,
    /// Whether what follows belongs to a line that is too long and was logged already.
    in_long_line: bool,
    lines: Lines,
    /// At least the last `TAIL` bytes.
    tail: Vec<u8>,
}

/// The lines of an output in the log, as many as it can bear.
pub(super) struct Lines {
    /// Before each line: whose it is.
    label: String,
    /// What people call the output: `stdout`.
    name: &'static str,
    /// At most `MOST_LINES`.
    logged: u32,
    unlogged: Unlogged,
}

/// How much came after the last line that was logged.
#[derive(Default)]
struct Unlogged {
    bytes: u64,
    line_breaks: u64,
    ends_in_line: bool,
}

impl Output {
    /// `name` is what people call it: `stdout`.
    pub fn new(label: &str, name: &'static str) -> io::Result<(Output, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        let (text, tail) = (Vec::new(), Vec::new());
        Ok((Output { pipe, text, in_long_line: false, lines: Lines::new(label, name), tail }, writer))
    }

    /// Logs line by line until the end of the output. Cancelling loses nothing.
    pub async fn log(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            self.text.reserve(PIECE);
            let known = self.text.len();
            match pipe.read_buf(&mut self.text).await {
                Ok(1..) => {
                    self.keep_tail(known);
                    self.log_lines();
                }
                // A pipe's read end knows no errors that a person could mend.
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// Logs a last line without a line break, and how much was not logged; gives the end of all that was written.
    pub fn end(mut self) -> Vec<u8> {
        let rest = mem::take(&mut self.text);
        if !rest.is_empty() {
            self.log_line(&rest);
        }
        self.lines.end();
        self.take_tail()
    }

    /// From now on the output belongs to something else: its lines and its end are counted anew.
    pub fn begin(&mut self, label: &str) {
        self.lines.begin(label);
        self.tail.clear();
    }

    /// The end of all that was written.
    pub fn take_tail(&mut self) -> Vec<u8> {
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        mem::take(&mut self.tail)
    }

    fn keep_tail(&mut self, known: usize) {
        let new = &self.text[known..];
        if self.tail.len() + new.len() > 4 * TAIL {
            self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        }
        self.tail.extend_from_slice(&new[new.len().saturating_sub(TAIL)..]);
    }

    fn log_lines(&mut self) {
        let mut text = mem::take(&mut self.text);
        let mut logged = 0;
        while !self.lines.is_full()
            && let Some(length) = memchr(b'\n', &text[logged..])
        {
            self.log_line(&text[logged..logged + length]);
            self.in_long_line = false;
            logged += length + 1;
        }
        if self.lines.is_full() {
            self.lines.pass(&text[logged..]);
            text.clear();
        } else {
            text.drain(..logged);
        }
        if text.len() > LONGEST_LINE {
            self.log_line(&text);
            self.in_long_line = true;
            text.clear();
        }
        self.text = text;
    }

    fn log_line(&mut self, line: &[u8]) {
        if !self.in_long_line {
            self.lines.log(line);
        }
    }
}

impl Lines {
    pub fn new(label: &str, name: &'static str) -> Lines {
        Lines { label: label.to_owned(), name, logged: 0, unlogged: Unlogged::default() }
    }

    fn is_full(&self) -> bool {
        self.logged == MOST_LINES
    }

    /// Logs the line, or counts it where there were too many.
    pub fn log(&mut self, line: &[u8]) {
        if self.is_full() {
            self.unlogged.add(line);
            self.unlogged.add(b"\n");
            return;
        }
        self.logged += 1;
        if log_enabled!(target: TARGET, Level::Info) {
            info!(target: TARGET, "{}: {}", self.label, printable(line));
        }
    }

    fn pass(&mut self, text: &[u8]) {
        self.unlogged.add(text);
    }

    /// Tells how much was not logged.
    pub fn end(&mut self) {
        if self.unlogged.bytes > 0 {
            let Unlogged { bytes, line_breaks, ends_in_line } = self.unlogged;
            let lines = line_breaks + u64::from(ends_in_line);
            let Lines { label, name, .. } = self;
            info!(target: TARGET, "{label}: {lines} more lines of {name}, {bytes} bytes, are not logged");
        }
    }

    /// From now on the lines belong to something else.
    pub fn begin(&mut self, label: &str) {
        self.end();
        *self = Lines::new(label, self.name);
    }
}

impl Unlogged {
    fn add(&mut self, text: &[u8]) {
        let Some(last) = text.last() else { return };
        self.bytes += text.len() as u64;
        self.line_breaks += memchr_iter(b'\n', text).count() as u64;
        self.ends_in_line = *last != b'\n';
    }
}

/// The line as one that can do no harm to a terminal, and of a bounded length.
fn printable(line: &[u8]) -> Cow<'_, str> {
    let shown = &line[..line.len().min(LONGEST_LINE)];
    let shown = String::from_utf8_lossy(shown.strip_suffix(b"\r").unwrap_or(shown));
    if line.len() <= LONGEST_LINE && shown.chars().all(is_harmless) {
        return shown;
    }
    let mut escaped = String::with_capacity(shown.len() + 16);
    for c in shown.chars() {
        if is_harmless(c) { escaped.push(c) } else { escaped.extend(c.escape_unicode()) }
    }
    if line.len() > LONGEST_LINE {
        escaped.push_str(" ... (cut)");
    }
    Cow::Owned(escaped)
}

/// Neither a control character nor one that turns the direction of what follows, as a forged line would.
fn is_harmless(c: char) -> bool {
    c == '\t' || !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_line_is_harmless_and_bounded() {
        assert_eq!(printable(b"done\t5 of 5\r"), "done\t5 of 5");
        assert_eq!(printable(b"\x1b[2J\xff\0\x7f"), "\\u{1b}[2J\u{fffd}\\u{0}\\u{7f}");
        assert_eq!(printable("a\u{85}b\u{202e}c\u{2066}d".as_bytes()), "a\\u{85}b\\u{202e}c\\u{2066}d");
        let long = printable(&[b'x'; 2 * LONGEST_LINE]).into_owned();
        assert_eq!(long, format!("{} ... (cut)", "x".repeat(LONGEST_LINE)));
    }
}
