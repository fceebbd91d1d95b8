//! Keys under which a difference was seen, until it is looked again whether it is still there. There may be as many as rows, so
//! they are kept in a file, which nobody else can open.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::primary::Rows;
use super::version::Version;

const PLACE: &str = "cannot keep the differences in a file of the folder for temporary files (TMPDIR)";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Suspect {
    pub key: String,
    pub held: Held,
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
                self.add(&Suspect { key: key.to_owned(), held: Held::of(held.as_ref()) })?;
            }
        }
        Ok(())
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them, in the order in which they came.
    pub fn read(self) -> Result<impl Iterator<Item = Result<Suspect>>> {
        let file = self.file.into_inner().map_err(|error| error.into_error()).and_then(|mut file| {
            file.rewind()?;
            Ok(file)
        });
        let lines = serde_json::Deserializer::from_reader(BufReader::new(file.context(PLACE)?)).into_iter();
        Ok(lines.map(|suspect| suspect.context(PLACE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_are_read_back_as_they_were_added() {
        let mut suspects = Suspects::new().unwrap();
        let suspect = |at: u64| Suspect {
            key: format!("a\"\n{at}"),
            held: [Held::Nothing, Held::Version(u64::MAX - at)][(at % 2) as usize],
        };
        for at in 0..10_000 {
            suspects.add(&suspect(at)).unwrap();
        }
        assert_eq!(suspects.count(), 10_000);
        let read: Vec<_> = suspects.read().unwrap().map(Result::unwrap).collect();
        assert_eq!(read, (0..10_000).map(suspect).collect::<Vec<_>>());
    }
}
