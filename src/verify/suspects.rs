//! Keys under which a difference was seen, until it is looked again whether it is still there. There may be as many as rows, so
//! they are kept in a file, which nobody else can open.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, Write};
use std::iter::Peekable;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::StreamDeserializer;
use serde_json::de::IoRead;

use super::primary::Rows;
use super::version::Version;
use crate::database::Limit;

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
    file: BufWriter<File>,
    count: u64,
}

impl Suspects {
    pub fn new() -> Result<Suspects> {
        let path = env::temp_dir().join(format!("ksync-verify-{}-{:016x}", std::process::id(), rand::random::<u64>()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).context(PLACE)?;
        fs::remove_file(&path).context(PLACE)?;
        Ok(Suspects { file: BufWriter::new(file), count: 0 })
    }

    pub fn add(&mut self, suspect: &Suspect) -> Result<()> {
        serde_json::to_writer(&mut self.file, suspect).context(PLACE)?;
        self.file.write_all(b"\n").context(PLACE)?;
        self.count += 1;
        Ok(())
    }

    /// Those of the rows that the store does not hold as they are.
    pub fn add_all(&mut self, rows: &Rows, held: &[Option<Version>], is_cache: bool) -> Result<()> {
        for ((key, row), held) in rows.keys().zip(&rows.versions).zip(held) {
            if row != held && !(held.is_none() && is_cache) {
                self.add(&Suspect::new(key.to_owned(), row.as_ref(), held.as_ref()))?;
            }
        }
        Ok(())
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them, in the order in which they came.
    pub fn read(self) -> Result<Reading> {
        let file = self.file.into_inner().map_err(|error| error.into_error()).and_then(|mut file| {
            file.rewind()?;
            Ok(file)
        });
        let lines = serde_json::Deserializer::from_reader(BufReader::new(file.context(PLACE)?)).into_iter();
        Ok(Reading(lines.peekable()))
    }
}

type Lines = StreamDeserializer<'static, IoRead<BufReader<File>>, Suspect>;

pub(super) struct Reading(Peekable<Lines>);

impl Reading {
    /// As many of the next ones as the limit allows, if their sizes are still what they were; none behind the last.
    pub fn next(&mut self, limit: Limit) -> Result<Vec<Suspect>> {
        let (mut taken, mut bytes) = (vec![], 0);
        while taken.len() < limit.rows {
            let fits = |next: &serde_json::Result<Suspect>| {
                taken.is_empty() || next.as_ref().map_or(true, |next| bytes + next.bytes <= limit.bytes)
            };
            let Some(next) = self.0.next_if(fits) else { break };
            let next = next.context(PLACE)?;
            bytes += next.bytes;
            taken.push(next);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspects(sizes: impl IntoIterator<Item = usize>) -> Suspects {
        let mut suspects = Suspects::new().unwrap();
        for (at, bytes) in sizes.into_iter().enumerate() {
            suspects.add(&suspect(at as u64, bytes)).unwrap();
        }
        suspects
    }

    fn suspect(at: u64, bytes: usize) -> Suspect {
        let held = [Held::Nothing, Held::Version(u64::MAX - at)][(at % 2) as usize];
        Suspect { key: format!("a\"\n{at}"), held, bytes }
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
    fn what_is_read_together_is_as_large_as_it_may_be_and_a_large_one_makes_no_others_wait() {
        let mut reading = suspects([1, 5, 5, 99, 1, 2, 3, 4, 5]).read().unwrap();
        let mut counts = || reading.next(Limit { rows: 4, bytes: 10 }).unwrap().len();
        assert_eq!([counts(), counts(), counts(), counts(), counts(), counts()], [2, 1, 1, 4, 1, 0]);
    }
}
