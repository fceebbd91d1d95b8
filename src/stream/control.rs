//! A Unix socket by which a run is looked at and steered while it is at work: a line is asked, a line is answered.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use log::{debug, info, warn};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::status::{Console, printable};
use crate::socket::{self, SocketFile};

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
    _file: SocketFile,
    serving: JoinHandle<()>,
}

impl Control {
    /// Listens at `path`, for this user alone.
    ///
    /// Fails as [`socket::listen`] does.
    pub async fn listen(path: &Path, console: Console) -> Result<Control> {
        let (listener, file) = socket::listen(path, 0o600).await?;
        Ok(Control { _file: file, serving: tokio::spawn(serve(listener, console)) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
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
