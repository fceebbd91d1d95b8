//! What is written to a worker: our own lines and those of the records, and how far they are written.

use serde_json::json;

use super::Batch;
use super::input::Stdin;

/// What is being written to a worker.
pub(super) struct Outgoing<'a> {
    whole: [&'a [u8]; 3],
    rest: [&'a [u8]; 3],
}

impl<'a> Outgoing<'a> {
    pub fn new(whole: [&'a [u8]; 3]) -> Outgoing<'a> {
        Outgoing { whole, rest: whole }
    }

    /// Cancelling loses nothing.
    pub async fn write(&mut self, stdin: &mut Stdin) {
        for part in &mut self.rest {
            stdin.write(part).await;
        }
    }

    pub fn is_begun(&self) -> bool {
        self.rest[0].len() < self.whole[0].len()
    }

    /// What comes last.
    pub fn finish_with(&mut self, end: &'a [u8]) {
        (self.whole[2], self.rest[2]) = (end, end);
    }

    /// Whether it is written to its end.
    pub fn is_given(&self) -> bool {
        !self.whole[2].is_empty() && self.rest.iter().all(|part| part.is_empty())
    }

    /// What is missing of the line in the middle of which it stopped.
    pub fn rest_of_line(&self) -> &'a [u8] {
        let mut parts = self.whole.iter().zip(&self.rest);
        let Some((whole, rest)) = parts.find(|(_, rest)| !rest.is_empty()) else { return b"" };
        let written = &whole[..whole.len() - rest.len()];
        match written.last() {
            None | Some(b'\n') => b"",
            Some(_) => &rest[..memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1)],
        }
    }
}

/// The line before a batch's records.
pub(super) fn begin(batch: &Batch<'_>) -> Vec<u8> {
    let Batch { source, count, attempt, term, id, .. } = batch;
    let (topic, partition) = (source.topic.to_string(), source.partition);
    line(&json!({
        "type": "batch", "id": id, "topic": topic, "partition": partition, "term": term, "count": count,
        "attempt": attempt
    }))
}

pub(super) fn line(message: &serde_json::Value) -> Vec<u8> {
    format!("{message}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_begun_is_finished_before_the_batch_is_taken_back() {
        let whole: [&[u8]; 3] = [b"batch\n", b"one\ntwo\n", b"end\n"];
        let written = |count: usize| {
            let mut out = Outgoing::new(whole);
            for _ in 0..count {
                let part = out.rest.iter_mut().find(|part| !part.is_empty()).unwrap();
                *part = &part[1..];
            }
            out
        };
        let all = whole.concat();
        for count in 0..=all.len() {
            let out = written(count);
            assert_eq!((out.is_begun(), out.is_given()), (count > 0, count == all.len()));
            let is_at_break = count == 0 || all[count - 1] == b'\n';
            let end =
                if is_at_break { count } else { count + all[count..].iter().position(|b| *b == b'\n').unwrap() + 1 };
            assert_eq!([&all[..count], out.rest_of_line()].concat(), all[..end]);
        }
    }
}
