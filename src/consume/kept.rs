//! The last failing batch of each partition as a file, with the command that tries the handler on it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use log::{info, warn};

use crate::election::Seat;

/// A folder for failing batches, and what a person does with them.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// The words of a command line before the file's name, and after it.
    replay: (Vec<String>, Vec<String>),
    /// Whether it was told that a file could not be written.
    has_warned: AtomicBool,
}

/// What has become of a batch that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    None,
    Written,
    /// It was told, too, which is done once.
    Told,
}

impl Keeping {
    pub fn or_now(&mut self, is_written: bool) {
        if *self == Keeping::None && is_written {
            *self = Keeping::Written;
        }
    }
}

impl Kept {
    /// Fails where no file can be made in the folder.
    pub fn open(dir: &Path, replay: (Vec<String>, Vec<String>)) -> Result<Kept> {
        let check = || {
            let dir = fs::canonicalize(dir)?;
            let probe = temporary(&dir.join("probe"));
            create(&probe)?;
            fs::remove_file(&probe)?;
            io::Result::Ok(dir)
        };
        let cannot = || format!("cannot keep failed batches in {}", dir.display());
        let dir = match check() {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => bail!("{}: {cause}; make that folder", cannot()),
            checked => checked.with_context(cannot)?,
        };
        Ok(Kept { dir, replay, has_warned: AtomicBool::new(false) })
    }

    /// Puts the lines of a run in the place of those that were kept of the partition before. Whether that was possible;
    /// the first time that it is not, that is told.
    pub async fn keep(&self, seat: &Seat, lines: Vec<u8>) -> bool {
        let file = self.file(seat);
        let writing =
            tokio::task::spawn_blocking(move || write(&file, &lines).with_context(|| format!("{}", file.display())));
        let written = writing.await.context("the writer has ended").flatten();
        if let Err(why) = &written
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            warn!("{seat}: cannot keep the failed batch: {why:#}; this is told once");
        }
        written.is_ok()
    }

    /// Says how to try the handler on what is kept, unless that was said before.
    pub fn tell(&self, keeping: &mut Keeping, seat: &Seat) {
        if *keeping == Keeping::Written {
            *keeping = Keeping::Told;
            info!("{seat}: the batch is kept; try the handler on it by: {}", self.command(seat));
        }
    }

    fn command(&self, seat: &Seat) -> String {
        let (before, after) = &self.replay;
        let file = self.file(seat).display().to_string();
        let words = before.iter().chain([&file]).chain(after);
        words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    fn file(&self, seat: &Seat) -> PathBuf {
        let (topic, partition) = (&seat.partition.topic, seat.partition.partition);
        self.dir.join(format!("{topic}-{partition}-{}.jsonl", seat.name))
    }
}

/// Nobody ever sees a part of it.
fn write(file: &Path, lines: &[u8]) -> io::Result<()> {
    let temporary = temporary(file);
    let written =
        create(&temporary).and_then(|mut out| out.write_all(lines)).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        fs::remove_file(&temporary).ok(); // It may not be there; why it could not be written counts.
    }
    written
}

/// For nobody else: the lines are data.
fn create(file: &Path) -> io::Result<fs::File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)
}

/// A name beside it that no other writer has.
fn temporary(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()))
}

/// The word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_was() {
        for (word, as_read) in [
            ("./index.py", "./index.py"),
            ("--fast=1", "--fast=1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("~x", "'~x'"),
        ] {
            assert_eq!(quoted(word), as_read);
        }
    }
}
