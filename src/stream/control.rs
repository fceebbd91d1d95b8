//! A Unix socket by which a run is looked at and steered while it is at work: a line is asked, a line is answered.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use log::{debug, info, warn};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::status::{Console, printable};
use crate::exit::Exit;

const HELP: &str =
    "status; pause; resume; rate N (rows a second; 0 or off lifts it); stop (after the chunk under way); help";

/// How many are served at once; others wait.
const CLIENTS: usize = 16;

/// How long to wait where a client cannot be let in.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a line may be, in bytes.
const LINE: usize = 1024;

/// The socket; gone with the value.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// Device and number of the file that is ours.
    file: (u64, u64),
    serving: JoinHandle<()>,
}

impl Control {
    /// Listens at `path`, for this user alone.
    ///
    /// Fails where something is there already, but for a socket that nobody listens to any more: that is replaced.
    pub async fn listen(path: &Path, console: Console) -> Result<Control> {
        let context = || format!("cannot listen at {}", path.display());
        // Whoever is to connect to it could not if it were too long.
        SocketAddr::from_pathname(path).with_context(context)?;
        make_way(path).await.with_context(context)?;
        // Under its own name only when its mode is set.
        let made = path.with_file_name(format!(".{:08x}", rand::random::<u32>()));
        let listener = UnixListener::bind(&made).with_context(context)?;
        let placed = std::fs::set_permissions(&made, PermissionsExt::from_mode(0o600))
            .and_then(|()| std::fs::symlink_metadata(&made))
            .and_then(|file| std::fs::rename(&made, path).map(|()| file));
        if placed.is_err() {
            std::fs::remove_file(&made).unwrap_or_else(|error| debug!("{}: {error}", made.display()));
        }
        let file = placed.with_context(context)?;
        let serving = tokio::spawn(serve(listener, console));
        Ok(Control { path: path.to_owned(), file: (file.dev(), file.ino()), serving })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        let is_ours = |file: std::fs::Metadata| (file.dev(), file.ino()) == self.file;
        if std::fs::symlink_metadata(&self.path).is_ok_and(is_ours)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Makes sure that nothing is lost by a rename to this path.
async fn make_way(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
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

async fn serve(listener: UnixListener, console: Console) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let console = console.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(client, &console).await {
                        debug!("control: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Too many open files, perhaps: that may pass.
                warn!("control: {error}");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn converse(client: UnixStream, console: &Console) -> std::io::Result<()> {
    let (from, mut to) = client.into_split();
    let (mut from, mut line) = (BufReader::with_capacity(LINE, from), Vec::new());
    loop {
        line.clear();
        (&mut from).take(LINE as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() == LINE && !line.ends_with(b"\n") {
            to.write_all(format!("error: a line has less than {LINE} bytes\n").as_bytes()).await?;
            return Ok(());
        }
        to.write_all(format!("{}\n", answer(&line, console)).as_bytes()).await?;
    }
}

/// One line, whatever was asked.
fn answer(line: &[u8], console: &Console) -> String {
    let asked = printable(line.trim_ascii());
    let words: Vec<&str> = asked.split_ascii_whitespace().collect();
    let answer = match words[..] {
        ["status"] => return console.status(),
        ["help"] => return HELP.to_owned(),
        ["pause"] => {
            console.pause();
            "pausing after the chunk under way, until resume".to_owned()
        }
        ["resume"] => {
            console.resume();
            "going on".to_owned()
        }
        ["rate", rate] => match rate.parse() {
            Ok(rate) => {
                console.set_rate(rate);
                format!("the rate is {rate}")
            }
            Err(error) => return format!("error: {error}"),
        },
        ["stop"] => {
            console.stop();
            "ending after the chunk under way".to_owned()
        }
        _ => return format!("error: '{asked}' is none of: {HELP}"),
    };
    info!("control: {asked}: {answer}");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;
    use crate::stream::Rate;

    #[test]
    fn each_line_has_one_line_as_its_answer() {
        let (stop, shutdown) = Shutdown::new();
        let console = Console::new(Rate::Unlimited, stop);
        let unknown = |line: &str| format!("error: '{line}' is none of: {HELP}");
        for (line, expected) in [
            (&b"help"[..], HELP.to_owned()),
            (b"rate 50/s\r\n", "the rate is 50/s".to_owned()),
            (b" rate  7 ", "the rate is 7/s".to_owned()),
            (b"rate 0", "the rate is off".to_owned()),
            (b"rate -1", "error: '-1' is not a rate: it is written as 500/s, 500, or off".to_owned()),
            (b"rate", unknown("rate")),
            (b"pause", "pausing after the chunk under way, until resume".to_owned()),
            (b"resume", "going on".to_owned()),
            (b"", unknown("")),
            (b"STATUS", unknown("STATUS")),
            (b"\x00\xff\x1b[31m\nx", unknown("\\0\u{fffd}\\u{1b}[31m\\nx")),
        ] {
            assert_eq!(answer(line, &console), expected);
        }
        assert!(!shutdown.is_requested());
        assert_eq!(answer(b"stop\n", &console), "ending after the chunk under way");
        assert!(shutdown.is_requested());
    }
}
