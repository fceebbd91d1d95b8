//! The file that a checkpoint is kept in, and the lock beside it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};

use crate::exit::Exit;

/// A file that only this process writes while it lives.
pub(super) struct CheckpointFile {
    path: PathBuf,
    /// A file of its own: the checkpoint itself is another file after each write.
    _lock: File,
}

impl CheckpointFile {
    /// Fails with status 4 where another process has it.
    pub fn open(path: &Path) -> Result<CheckpointFile> {
        let lock = beside(path, "lock");
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&lock);
        let mut file = opened.with_context(|| {
            let (lock, path) = (lock.display(), path.display());
            format!(
                "cannot make {lock}, the lock of the checkpoint {path}; its folder has to be there and ours to write to"
            )
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Who has it has written there who it is, or is just about to.
                let holder = fs::read_to_string(&lock).unwrap_or_default();
                let path = path.display();
                return Err(
                    Exit::Busy.because(anyhow!("another run uses the checkpoint {path}: {}", holder.trim_end()))
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", lock.display())),
        }
        introduce(&mut file).with_context(|| format!("cannot write to {}", lock.display()))?;
        Ok(CheckpointFile { path: path.to_owned(), _lock: file })
    }

    /// `None` where there is no such file yet.
    pub fn read(path: &Path) -> Result<Option<String>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the checkpoint {}", path.display())),
        }
    }

    /// Puts `text` in the place of what is there; after a crash at any moment it is the one or the other.
    pub async fn write(&self, text: String) -> Result<()> {
        let path = self.path.clone();
        let writing = tokio::task::spawn_blocking(move || write(&path, &text));
        let written = writing.await.context("the writer has ended")?;
        written.with_context(|| format!("cannot write the checkpoint {}", self.path.display()))
    }
}

/// Says who has the lock, for people.
fn introduce(lock: &mut File) -> io::Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (host, since) = (host.trim_end(), humantime::format_rfc3339_seconds(SystemTime::now()));
    lock.set_len(0)?;
    writeln!(lock, "process {} on {host} since {since}", std::process::id())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = beside(path, "new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The name, too, has to be on disk.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}
