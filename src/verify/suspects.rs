//! Keys under which a difference was seen, until it is looked again whether it is still there. There may be as many as rows, so
//! they are kept in a file, which nobody else can open.
//!
//! A key may come more than once: its row differed when the rows were compared, and was gone when the keys of the store were
//! looked up, or the store lists it twice. It is to be told once, so they are sorted: some at a time in memory, and all of
//! these together as they are read.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::iter::Peekable;
use std::mem::take;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::StreamDeserializer;
use serde_json::de::IoRead;

use super::primary::Rows;
use super::version::Version;
use crate::database::Limit;

/// How many are sorted in memory, and how long their keys may be together, in bytes.
const SORTED: usize = 20_000;
const SORTED_BYTES: usize = 4 << 20;

/// How much of each part of the file is in memory while all are read together.
const AHEAD: usize = 1 << 10;

const PLACE: &str = "cannot keep the differences in a file of the folder for temporary files (TMPDIR)";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Suspect {
    pub key: String,
    pub held: Held,
    /// How large it was, in the primary or in the store.
    bytes: usize,
}

impl Suspect {
    pub fn new(key: String, row: Option<&Version>, held: Option<&Version>) -> Suspect {
        let size = |version: Option<&Version>| version.map_or(0, |version| version.json.get().len());
        let bytes = key.len() + size(row).max(size(held));
        Suspect { key, held: Held::of(held), bytes }
    }
}

/// What the store held when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Held {
    Nothing,
    /// A version of this digest.
    Version(u64),
}

impl Held {
    pub fn of(version: Option<&Version>) -> Held {
        version.map_or(Held::Nothing, |version| Held::Version(version.digest()))
    }
}

pub(super) struct Suspects {
    file: File,
    /// Those that are not in the file yet, by their keys.
    next: BTreeMap<String, Suspect>,
    /// How long the keys of these are.
    length: usize,
    /// Where the others are in it, those together that were sorted together.
    runs: Vec<Range<u64>>,
    count: u64,
}

impl Suspects {
    pub fn new() -> Result<Suspects> {
        let path = env::temp_dir().join(format!("ksync-verify-{}-{:016x}", std::process::id(), rand::random::<u64>()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).context(PLACE)?;
        fs::remove_file(&path).context(PLACE)?;
        Ok(Suspects { file, next: BTreeMap::new(), length: 0, runs: vec![], count: 0 })
    }

    /// The last one of a key counts.
    pub fn add(&mut self, suspect: Suspect) -> Result<()> {
        let length = suspect.key.len();
        if self.next.insert(suspect.key.clone(), suspect).is_none() {
            self.count += 1;
            self.length += length;
        }
        if self.next.len() >= SORTED || self.length >= SORTED_BYTES { self.write() } else { Ok(()) }
    }

    /// Those of the rows that the store does not hold as they are.
    pub fn add_all(&mut self, rows: &Rows, held: &[Option<Version>], is_cache: bool) -> Result<()> {
        for ((key, row), held) in rows.keys().zip(&rows.versions).zip(held) {
            if row != held && !(held.is_none() && is_cache) {
                self.add(Suspect::new(key.to_owned(), row.as_ref(), held.as_ref()))?;
            }
        }
        Ok(())
    }

    /// How many there are; a key that came again much later counts twice.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them in the order of their keys, each key once.
    pub fn read(mut self) -> Result<Reading> {
        self.write()?;
        let file = Arc::new(self.file);
        let lines = |rest| {
            let run = BufReader::with_capacity(AHEAD, Run { file: file.clone(), rest });
            serde_json::Deserializer::from_reader(run).into_iter()
        };
        let mut merged = Merged { runs: self.runs.into_iter().map(lines).collect(), heads: BTreeMap::new() };
        for run in 0..merged.runs.len() {
            merged.advance(run)?;
        }
        Ok(Reading(merged.peekable()))
    }

    fn write(&mut self) -> Result<()> {
        let mut lines = vec![];
        for suspect in take(&mut self.next).into_values() {
            serde_json::to_writer(&mut lines, &suspect).context(PLACE)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).context(PLACE)?;
        let begin = self.runs.last().map_or(0, |run| run.end);
        self.runs.push(begin..begin + lines.len() as u64);
        self.length = 0;
        Ok(())
    }
}

/// A part of the file, which is read beside the others.
struct Run {
    file: Arc<File>,
    rest: Range<u64>,
}

impl Read for Run {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX);
        let length = rest.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.rest.start)?;
        self.rest.start += read as u64;
        Ok(read)
    }
}

type Lines = StreamDeserializer<'static, IoRead<BufReader<Run>>, Suspect>;

/// Those of all runs, in the order of their keys.
struct Merged {
    runs: Vec<Lines>,
    /// The next one of each run, by its key and the number of the run.
    heads: BTreeMap<(String, usize), Suspect>,
}

impl Merged {
    fn advance(&mut self, run: usize) -> Result<()> {
        if let Some(next) = self.runs[run].next() {
            let next = next.context(PLACE)?;
            self.heads.insert((next.key.clone(), run), next);
        }
        Ok(())
    }
}

impl Iterator for Merged {
    type Item = Result<Suspect>;

    fn next(&mut self) -> Option<Result<Suspect>> {
        loop {
            let ((key, run), suspect) = self.heads.pop_first()?;
            if let Err(error) = self.advance(run) {
                return Some(Err(error));
            }
            // That of a later run counts.
            if self.heads.first_key_value().is_none_or(|((next, _), _)| *next != key) {
                return Some(Ok(suspect));
            }
        }
    }
}

pub(super) struct Reading(Peekable<Merged>);

impl Reading {
    /// As many of the next ones as the limit allows, if their sizes are still what they were; none behind the last.
    pub fn next(&mut self, limit: Limit) -> Result<Vec<Suspect>> {
        let (mut taken, mut bytes) = (vec![], 0);
        while taken.len() < limit.rows {
            let fits = |next: &Result<Suspect>| {
                taken.is_empty() || next.as_ref().map_or(true, |next| bytes + next.bytes <= limit.bytes)
            };
            let Some(next) = self.0.next_if(fits) else { break };
            let next = next?;
            bytes += next.bytes;
            taken.push(next);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use super::*;

    const ALL: Limit = Limit { rows: usize::MAX, bytes: usize::MAX };

    fn suspects(sizes: impl IntoIterator<Item = usize>) -> Suspects {
        let mut suspects = Suspects::new().unwrap();
        for (at, bytes) in sizes.into_iter().enumerate() {
            suspects.add(suspect(at as u64, bytes)).unwrap();
        }
        suspects
    }

    fn suspect(at: u64, bytes: usize) -> Suspect {
        let held = [Held::Nothing, Held::Version(u64::MAX - at)][(at % 2) as usize];
        Suspect { key: format!("a\"\n{at:06}"), held, bytes }
    }

    #[test]
    fn suspects_are_read_back_as_they_were_added() {
        let suspects = suspects((0..10_000).map(|_| 1));
        assert_eq!(suspects.count(), 10_000);
        let mut reading = suspects.read().unwrap();
        for rows in [9_000, 1_000, 0] {
            let read = reading.next(Limit { rows: 9_000, bytes: usize::MAX }).unwrap();
            let first = if rows == 1_000 { 9_000 } else { 0 };
            assert_eq!(read, (first..first + rows).map(|at| suspect(at, 1)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_key_that_was_seen_more_than_once_is_read_once_as_it_was_seen_last() {
        let count = 2 * SORTED as u64 + 10;
        let mut suspects = suspects((0..count).map(|_| 1));
        // Soon after, and long after; of the last ones it is in the same part.
        let again = [count - 1, 7, 0, 7, SORTED as u64];
        for (at, bytes) in again.into_iter().zip(2..) {
            suspects.add(suspect(at, bytes)).unwrap();
        }
        let read = suspects.read().unwrap().next(ALL).unwrap();
        let bytes = |at: u64| again.iter().zip(2..).filter(|(other, _)| **other == at).map(|(_, bytes)| bytes).last();
        let expected = (0..count).map(|at| suspect(at, bytes(at).unwrap_or(1)));
        assert!(read.into_iter().eq(expected));
        assert!(Suspects::new().unwrap().read().unwrap().next(ALL).unwrap().is_empty());
    }

    #[test]
    fn long_keys_are_in_memory_only_until_they_have_a_few_mib_together() {
        let mut suspects = Suspects::new().unwrap();
        let key = |at: u32| format!("{at:04}{}", "x".repeat(10_000));
        for at in repeat_n(0, 1000).chain(0..1000) {
            suspects.add(Suspect { key: key(at), held: Held::Nothing, bytes: 1 }).unwrap();
            assert!(suspects.next.keys().map(String::len).sum::<usize>() < 4 << 20);
        }
        // One that comes again soon is no longer than once.
        assert_eq!((suspects.count(), suspects.runs.len()), (1000, 2));
        let read = suspects.read().unwrap().next(ALL).unwrap();
        assert!(read.into_iter().map(|suspect| suspect.key).eq((0..1000).map(key)));
    }

    #[test]
    fn what_is_read_together_is_as_large_as_it_may_be_and_a_large_one_makes_no_others_wait() {
        let mut reading = suspects([1, 5, 5, 99, 1, 2, 3, 4, 5]).read().unwrap();
        let mut counts = || reading.next(Limit { rows: 4, bytes: 10 }).unwrap().len();
        assert_eq!([counts(), counts(), counts(), counts(), counts(), counts()], [2, 1, 1, 4, 1, 0]);
    }
}
