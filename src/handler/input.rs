//! Our end of the handler's stdin.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{ioctl_fionbio, ioctl_fionread};
use rustix::pipe::fcntl_setpipe_size;
use tokio::net::unix::pipe;

/// The most that Linux lets an unprivileged process keep in a pipe (fs.pipe-max-size).
const LARGEST_PIPE: usize = 1 << 20;
const DEFAULT_PIPE: usize = 64 << 10;

pub(super) struct Stdin {
    /// `None` once it is closed.
    pipe: Option<pipe::Sender>,
    /// The handler's end, kept to ask what is left in the pipe. With it no write is refused: a handler that closes its
    /// stdin is one that does not read.
    reader: PipeReader,
}

impl Stdin {
    /// `expected` is how many bytes will be written in one go.
    pub fn new(expected: usize) -> io::Result<Stdin> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(Stdin::sender(writer, expected)?);
        Ok(Stdin { pipe, reader })
    }

    fn sender(writer: PipeWriter, expected: usize) -> io::Result<pipe::Sender> {
        if expected > DEFAULT_PIPE {
            // It fails where the user has too many pages in pipes; then it takes more turns.
            fcntl_setpipe_size(&writer, expected.min(LARGEST_PIPE)).ok();
        }
        ioctl_fionbio(&writer, true)?;
        pipe::Sender::from_owned_fd(OwnedFd::from(writer))
    }

    /// What the handler is given.
    pub fn its_end(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Writes until nothing is left of the text; where the handler does not read that is never. Cancelling loses nothing.
    pub async fn write(&mut self, unwritten: &mut &[u8]) {
        while let Some(pipe) = &self.pipe
            && !unwritten.is_empty()
        {
            match pipe.writable().await.and_then(|()| pipe.try_write(unwritten)) {
                Ok(written) => *unwritten = &unwritten[written..],
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                // A pipe with a reader knows no other error; what is not written counts as not read.
                Err(_) => self.pipe = None,
            }
        }
    }

    pub fn close(&mut self) {
        self.pipe = None;
    }

    /// How many bytes of what was written nobody has read. What the handler has taken into a buffer of its own counts as
    /// read.
    pub fn in_pipe(&self) -> usize {
        let in_pipe = ioctl_fionread(&self.reader).expect("a pipe tells what is in it");
        usize::try_from(in_pipe).expect("a pipe is smaller than the memory")
    }
}
