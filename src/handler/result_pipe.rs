//! What the handler reports on descriptor 3.

use std::fmt;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;

use tokio::net::unix::pipe;

use super::output::PIECE;

/// The most that is kept of a report: several times what a batch of tiny records makes.
const LONGEST: usize = 16 << 20;

/// The handler has reported more than 16 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the results are longer than {} MiB", LONGEST >> 20)
    }
}

impl std::error::Error for TooLong {}

pub(super) struct ResultPipe {
    /// `None` once it has ended.
    pipe: Option<pipe::Receiver>,
    text: Result<Vec<u8>, TooLong>,
}

impl ResultPipe {
    pub fn new() -> io::Result<(ResultPipe, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        Ok((ResultPipe { pipe, text: Ok(Vec::new()) }, writer))
    }

    /// Reads until the end. Cancelling loses nothing.
    pub async fn read(&mut self) {
        let mut piece = [0; PIECE];
        while let Some(pipe) = &self.pipe {
            match pipe.readable().await.and_then(|()| pipe.try_read(&mut piece)) {
                Ok(read @ 1..) => self.keep(&piece[..read]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// All that was written by now; whoever still has the pipe open is not waited for.
    pub fn end(mut self) -> Result<Vec<u8>, TooLong> {
        let mut piece = [0; PIECE];
        while let Some(pipe) = self.pipe.take()
            // Not by try_read, which gives nothing before the runtime has heard of it.
            && let Ok(read @ 1..) = rustix::io::read(&pipe, &mut piece)
            && self.text.is_ok()
        {
            self.keep(&piece[..read]);
            self.pipe = Some(pipe);
        }
        self.text
    }

    fn keep(&mut self, piece: &[u8]) {
        if let Ok(text) = &mut self.text {
            if text.len() + piece.len() > LONGEST {
                self.text = Err(TooLong);
            } else {
                text.extend_from_slice(piece);
            }
        }
    }
}
