//! Our end of the handler's stdin.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{ioctl_fionbio, ioctl_fionread};
use rustix::pipe::fcntl_setpipe_size;
use tokio::net::unix::pipe;

/// The most that Linux lets an unprivileged process keep in a pipe (fs.pipe-max-size).
const LARGEST_PIPE: usize = 1 << 20;
const DEFAULT_PIPE: usize = 64 << 10;

pub(super) struct Stdin<'a> {
    /// `None` once everything is written.
    pipe: Option<pipe::Sender>,
    unwritten: &'a [u8],
    /// The handler's end, kept to ask what is left in the pipe. With it no write is refused: a handler that closes its
    /// stdin is one that does not read.
    reader: PipeReader,
}

impl<'a> Stdin<'a> {
    pub fn new(lines: &'a [u8]) -> io::Result<Stdin<'a>> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(Stdin::sender(writer, lines)?);
        Ok(Stdin { pipe, unwritten: lines, reader })
    }

    fn sender(writer: PipeWriter, lines: &[u8]) -> io::Result<pipe::Sender> {
        if lines.len() > DEFAULT_PIPE {
            // It fails where the user has too many pages in pipes; then it takes more turns.
            fcntl_setpipe_size(&writer, lines.len().min(LARGEST_PIPE)).ok();
        }
        ioctl_fionbio(&writer, true)?;
        pipe::Sender::from_owned_fd(OwnedFd::from(writer))
    }

    /// What the handler is given.
    pub fn its_end(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Writes until all is written; where the handler does not read that is never. Cancelling loses nothing.
    pub async fn feed(&mut self) {
        while let Some(pipe) = &self.pipe {
            if self.unwritten.is_empty() {
                self.pipe = None;
                return;
            }
            match pipe.writable().await.and_then(|()| pipe.try_write(self.unwritten)) {
                Ok(written) => self.unwritten = &self.unwritten[written..],
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                // A pipe with a reader knows no other error; what is not written counts as not read.
                Err(_) => self.pipe = None,
            }
        }
    }

    /// How many bytes nobody has read. What the handler has taken into a buffer of its own counts as read.
    pub fn unread(&self) -> usize {
        let in_pipe = ioctl_fionread(&self.reader).expect("a pipe tells what is in it");
        self.unwritten.len() + usize::try_from(in_pipe).expect("a pipe is smaller than the memory")
    }
}
