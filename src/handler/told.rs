//! What a command writes to stdout for its caller, who reads it while the command is at work.

use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;

use memchr::memrchr;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::output::PIECE;

/// The longest line that is waited for: more than a record may have.
const LONGEST_LINE: usize = 128 << 20;

/// Our end of such a stdout.
pub(super) struct Told {
    /// `None` once it has ended, or nobody wants more of it.
    pipe: Option<pipe::Receiver>,
    /// What is read and not yet handed on.
    text: Vec<u8>,
    caller: mpsc::Sender<Vec<u8>>,
}

impl Told {
    /// `caller` gets whole lines, many at once, and in the end what may stand behind the last line break.
    pub fn new(caller: mpsc::Sender<Vec<u8>>) -> io::Result<(Told, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        Ok((Told { pipe, text: Vec::new(), caller }, writer))
    }

    /// Reads until the end, no faster than the caller takes it. Cancelling loses nothing.
    pub async fn read(&mut self) {
        self.hand_on().await;
        while let Some(pipe) = &mut self.pipe {
            self.text.reserve(PIECE);
            match pipe.read_buf(&mut self.text).await {
                Ok(1..) => self.hand_on().await,
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// All that was written by now; whoever still has the pipe open is not waited for.
    pub async fn end(mut self) {
        let mut piece = [0; PIECE];
        self.hand_on().await;
        while let Some(pipe) = &self.pipe
            // Not by the runtime, which gives nothing before it has heard of it.
            && let Ok(read @ 1..) = rustix::io::read(pipe, &mut piece)
        {
            self.text.extend_from_slice(&piece[..read]);
            self.hand_on().await;
        }
        if !self.text.is_empty() {
            // Who does not want it is gone.
            drop(self.caller.send(self.text).await);
        }
    }

    async fn hand_on(&mut self) {
        let lines = match memrchr(b'\n', &self.text) {
            Some(end) => end + 1,
            None if self.text.len() > LONGEST_LINE => self.text.len(),
            None => return,
        };
        match self.caller.reserve().await {
            Ok(place) => {
                let rest = self.text.split_off(lines);
                place.send(std::mem::replace(&mut self.text, rest));
            }
            Err(_) => {
                self.text.clear();
                self.pipe = None;
            }
        }
    }
}
