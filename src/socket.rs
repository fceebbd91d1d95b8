//! A Unix socket that others find at a path.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use log::{debug, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use crate::exit::Exit;

/// A process like this one holds the lock of a folder for moments. Another one may hold it as long as it likes.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The file of a socket; gone with the value.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number of the file that is ours.
    file: (u64, u64),
}

/// Listens at `path`, which has these permissions from the beginning.
///
/// Fails where something is there already, but for a socket that nobody listens to any more: that is replaced; and where
/// another process has the lock of its folder for 5 s.
pub async fn listen(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile)> {
    let context = || format!("cannot listen at {}", path.display());
    // Whoever is to connect to it could not if it were too long.
    SocketAddr::from_pathname(path).with_context(context)?;
    let _locked = lock_folder_of(path).await.with_context(context)?;
    make_way(path).await.with_context(context)?;
    // Under its own name only when its mode is set.
    let made = path.with_file_name(format!(".{:08x}", rand::random::<u32>()));
    let listener = UnixListener::bind(&made).with_context(context)?;
    let placed = fs::set_permissions(&made, Permissions::from_mode(mode))
        .and_then(|()| fs::symlink_metadata(&made))
        .and_then(|file| fs::rename(&made, path).map(|()| file));
    if placed.is_err() {
        fs::remove_file(&made).unwrap_or_else(|error| debug!("{}: {error}", made.display()));
    }
    let file = placed.with_context(context)?;
    Ok((listener, SocketFile { path: path.to_owned(), file: (file.dev(), file.ino()) }))
}

/// Of two processes that start together one finds the other's socket.
async fn lock_folder_of(path: &Path) -> Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = File::open(folder)?;
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match opened.try_lock() {
            Ok(()) => return Ok(opened),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(LOCK_PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Exit::Busy.because(anyhow!(
                    "another process has had a lock of {} for {LOCK_LIMIT:?}; a folder of its own for the socket mends that",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock its folder"),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Makes sure that nothing is lost by a rename to this path.
async fn make_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(file) if !file.file_type().is_socket() => bail!("it is there already, and is no socket"),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(Exit::Busy.because(anyhow!("another process listens there"))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).context("another process may listen there"),
    }
}
