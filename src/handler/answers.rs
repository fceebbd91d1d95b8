//! What a worker says on its stdout: one JSON object a line. All else that it writes there goes to the log.

use std::borrow::Cow;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use memchr::memchr;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::output::{Lines, PIECE};
use super::report::{Report, Said};
use crate::topic::Offset;

/// The longest line that is read: several times what a batch of tiny records makes if all of them failed.
const LONGEST: usize = 16 << 20;

/// The types of answers there are. Any other line is none.
const TYPES: [&str; 5] = ["ready", "done", "progress", "backoff", "fatal"];

/// What a worker says.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Answer {
    /// It can be given batches.
    Ready {},
    /// All of the batch is done but these.
    Done {
        id: String,
        #[serde(default)]
        failed: Vec<FailedRecord>,
    },
    /// It is still at work.
    Progress { id: String },
    /// Nothing of the batch counts as done: it is to come again after so many milliseconds.
    Backoff { id: String, ms: u64 },
    /// It can work on no batch at all.
    Fatal {
        #[serde(default)]
        error: String,
    },
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct FailedRecord {
    offset: i64,
    #[serde(default)]
    error: String,
    #[serde(default)]
    permanent: bool,
}

/// Our end of a worker's stdout.
pub(super) struct Answers {
    /// `None` once it has ended.
    pipe: Option<pipe::Receiver>,
    /// What is read and not yet looked at.
    text: Vec<u8>,
    lines: Lines,
}

impl Answers {
    pub fn new(label: &str) -> io::Result<(Answers, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        Ok((Answers { pipe, text: Vec::new(), lines: Lines::new(label, "stdout") }, writer))
    }

    /// From now on lines that are no answers belong to something else.
    pub fn begin(&mut self, label: &str) {
        self.lines.begin(label);
    }

    /// The next answer, or `None` once the output is at its end. Cancelling loses nothing.
    ///
    /// Fails where a line has the type of an answer and is none, or where it is longer than 16 MiB.
    pub async fn next(&mut self) -> Option<Result<Answer>> {
        loop {
            if let Some(answer) = self.at_hand() {
                return Some(answer);
            }
            let pipe = self.pipe.as_mut()?;
            self.text.reserve(PIECE);
            match pipe.read_buf(&mut self.text).await {
                Ok(1..) => {}
                // A pipe's read end knows no errors that a person could mend. A line without its end is no answer.
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// The next answer, if it has been written already.
    pub fn now(&mut self) -> Option<Result<Answer>> {
        loop {
            if let Some(answer) = self.at_hand() {
                return Some(answer);
            }
            let mut piece = [0; PIECE];
            // Not by try_read, which gives nothing before the runtime has heard of it.
            match rustix::io::read(self.pipe.as_ref()?, &mut piece) {
                Ok(read @ 1..) => self.text.extend_from_slice(&piece[..read]),
                _ => return None,
            }
        }
    }

    fn at_hand(&mut self) -> Option<Result<Answer>> {
        let mut begin = 0;
        let answer = loop {
            let Some(length) = memchr(b'\n', &self.text[begin..]) else { break None };
            let line = &self.text[begin..begin + length];
            begin += length + 1;
            match parse(line) {
                Ok(Some(answer)) => break Some(Ok(answer)),
                Ok(None) => self.lines.log(line),
                Err(error) => break Some(Err(error)),
            }
        };
        self.text.drain(..begin);
        if answer.is_none() && self.text.len() > LONGEST {
            self.text.clear();
            return Some(Err(anyhow::anyhow!("it wrote a line longer than {} MiB", LONGEST >> 20)));
        }
        answer
    }
}

/// The answer that the line is; `None` where it is none.
fn parse(line: &[u8]) -> Result<Option<Answer>> {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    // serde takes a list of the members' values for an object, too.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    match serde_json::from_slice(line) {
        Ok(Typed { kind }) if TYPES.contains(&&*kind) => {}
        _ => return Ok(None),
    }
    let shown = || format!("cannot read its answer '{}'", String::from_utf8_lossy(&line[..line.len().min(200)]));
    serde_json::from_slice(line).with_context(shown).map(Some)
}

/// What it said of single records.
///
/// Fails where it named one twice.
pub(super) fn report(failed: Vec<FailedRecord>) -> Result<Report> {
    let mut report = Report::default();
    for FailedRecord { offset, error, permanent } in failed {
        let said = Said::Failed { error, is_permanent: permanent };
        if report.records.insert(Offset(offset), said).is_some() {
            bail!("it named offset {offset} twice");
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_what_is_only_written() {
        let read = |line: &str| parse(line.as_bytes()).unwrap();
        assert_eq!(read(r#"{"type":"ready","more":1}"#), Some(Answer::Ready {}));
        assert_eq!(read(r#"{"type":"done","id":"b7"}"#), Some(Answer::Done { id: "b7".into(), failed: vec![] }));
        let failed = FailedRecord { offset: 42, error: "no id".into(), permanent: true };
        let line = r#"{"id":"b7","failed":[{"offset":42,"error":"no id","permanent":true}],"type":"done"}"#;
        assert_eq!(read(line), Some(Answer::Done { id: "b7".into(), failed: vec![failed] }));
        assert_eq!(read(r#"{"type":"progress","id":"b7"}"#), Some(Answer::Progress { id: "b7".into() }));
        assert_eq!(
            read(r#"{"type":"backoff","id":"b7","ms":500}"#),
            Some(Answer::Backoff { id: "b7".into(), ms: 500 })
        );
        assert_eq!(read(r#"{"type":"fatal","error":"no table"}"#), Some(Answer::Fatal { error: "no table".into() }));
        for line in
            ["", "done", "7", "[]", r#"["fatal"]"#, "{}", r#"{"type":7}"#, r#"{"type":"log"}"#, r#"{"type":"done""#]
        {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_shown() {
        for (line, why) in [
            (r#"{"type":"done"}"#, "missing field `id`"),
            (r#"{"type":"backoff","id":"b7","ms":-1}"#, "invalid value: integer `-1`, expected u64"),
            (r#"{"type":"done","id":"b7","failed":[42]}"#, "expected struct FailedRecord"),
        ] {
            let error = format!("{:#}", parse(line.as_bytes()).unwrap_err());
            assert!(error.starts_with(&format!("cannot read its answer '{line}': ")) && error.contains(why), "{error}");
        }
    }
}
