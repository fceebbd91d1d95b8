//! One process of the handler: its group, its three pipes, its end.

use std::borrow::Cow;
use std::future;
use std::io::{self, PipeWriter};
use std::mem;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use log::{Level, info, log_enabled};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{self, SignalKind};
use tokio::task;
use tokio::time::{Instant, sleep_until};

use super::Input;

/// The most that Linux lets an unprivileged process keep in a pipe (fs.pipe-max-size).
const LARGEST_PIPE: usize = 1 << 20;
const DEFAULT_PIPE: usize = 64 << 10;

/// What is read of an output at once.
const PIECE: usize = 16 << 10;

/// The longest line of the handler's output that is logged whole.
const LONGEST_LINE: usize = 8 << 10;

/// Where the handler's output goes in the log.
const TARGET: &str = "handler";

/// A running handler. Dropped, it is killed with its whole group.
pub(super) struct Process<'a> {
    group: Group,
    stdin: Stdin<'a>,
    stdout: Output<'a>,
    stderr: Output<'a>,
}

impl<'a> Process<'a> {
    /// Starts the command; it is fed by [`Process::exit`].
    pub(super) async fn start(mut command: Command, input: &Input<'a>) -> io::Result<Process<'a>> {
        let (reader, writer) = io::pipe()?;
        let stdin = Stdin::new(writer, input.lines)?;
        let (stdout, its_stdout) = Output::new(input.label)?;
        let (stderr, its_stderr) = Output::new(input.label)?;
        command.stdin(reader).stdout(its_stdout).stderr(its_stderr);
        // Before the process is there, so that the signal of its end cannot come too early.
        let child_ended = unix::signal(SignalKind::child())?;
        // posix_spawn holds its thread until the program is loaded, from a slow disk perhaps. To hand that to another thread
        // would take as long as most spawns do.
        let group = task::block_in_place(|| Group::spawn(command, child_ended))?;
        Ok(Process { group, stdin, stdout, stderr })
    }

    /// Returns when the process has ended; feeds it and logs what it writes meanwhile. Cancelling loses nothing.
    pub(super) async fn exit(&mut self) {
        let Process { group, stdin, stdout, stderr } = self;
        let pipes = async {
            tokio::join!(stdin.feed(), stdout.log(), stderr.log());
            // A process can close all its pipes and go on.
            future::pending().await
        };
        tokio::select! {
            biased;
            () = group.exit() => {}
            () = pipes => {}
        }
    }

    /// Logs what is still written until nobody has the outputs open any more.
    pub(super) async fn last_words(&mut self) {
        tokio::join!(self.stdout.log(), self.stderr.log());
    }

    /// Asks the group to end and returns when it seems to have done so, at the latest at `deadline` or what
    /// `sooner` says.
    pub(super) async fn terminate(&mut self, deadline: Instant, sooner: impl Future<Output = Instant>) {
        self.group.signal(Signal::TERM);
        let gone = async {
            self.exit().await;
            self.last_words().await;
        };
        let limit = async {
            tokio::select! {
                () = sleep_until(deadline) => {}
                sooner = sooner => sleep_until(sooner.min(deadline)).await,
            }
        };
        tokio::select! {
            biased;
            () = gone => {}
            () = limit => {}
        }
    }

    /// Kills what is left of the group, and tells what the process itself has left.
    pub(super) async fn finish(mut self) -> Remains {
        self.group.signal(Signal::KILL);
        self.group.exit().await;
        self.stdout.log_rest();
        self.stderr.log_rest();
        let unread = self.stdin.unwritten.len();
        Remains { status: self.group.reap(), unread, report: vec![], stderr_tail: vec![] }
    }
}

/// What a process has left when it is over.
pub(super) struct Remains {
    pub status: io::Result<ExitStatus>,
    /// How many bytes of its input it has not read.
    pub unread: usize,
    /// What it wrote to the result pipe.
    pub report: Vec<u8>,
    /// The end of what it wrote to stderr.
    pub stderr_tail: Vec<u8>,
}

/// The process and those of its descendants that stayed in its group. Dropped, it is killed.
///
/// Until the process is reaped its number names this group and no other, so that no signal hits a stranger.
/// That is why it is not tokio's Child, which reaps as soon as it can.
struct Group {
    /// `None` once it is reaped.
    child: Option<Child>,
    pid: Pid,
    child_ended: unix::Signal,
}

impl Group {
    fn spawn(mut command: Command, child_ended: unix::Signal) -> io::Result<Group> {
        // A child inherits what is inheritable at this moment: what one run opens for its child, no other may get.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _spawning = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // librdkafka opens its wake-up pipes without close-on-exec.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let child = command.spawn()?;
        Ok(Group { pid: Pid::from_child(&child), child: Some(child), child_ended })
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, its group exists. EPERM, where all that is left runs as somebody else, cannot be helped.
        kill_process_group(self.pid, signal).ok();
    }

    /// Returns when the process has ended, and leaves it to be reaped.
    async fn exit(&mut self) {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error means that somebody else has reaped it; `reap` will say so.
        while let Ok(None) = waitid(WaitId::Pid(self.pid), ended) {
            self.child_ended.recv().await;
        }
    }

    fn reap(mut self) -> io::Result<ExitStatus> {
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Err(Errno::CHILD.into()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            // Even a killed process may take its time, in a disk's queue for one, and here nobody may wait for it.
            let reaper = thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
            // Without a thread it stays a zombie until we end.
            drop(reaper);
        }
    }
}

/// Our end of the handler's input.
struct Stdin<'a> {
    /// `None` once everything is written, or nobody reads it any more.
    pipe: Option<pipe::Sender>,
    unwritten: &'a [u8],
}

impl<'a> Stdin<'a> {
    fn new(writer: PipeWriter, lines: &'a [u8]) -> io::Result<Stdin<'a>> {
        if lines.len() > DEFAULT_PIPE {
            // It fails where the user has too many pages in pipes; then it takes more turns.
            fcntl_setpipe_size(&writer, lines.len().min(LARGEST_PIPE)).ok();
        }
        ioctl_fionbio(&writer, true)?;
        let pipe = Some(pipe::Sender::from_owned_fd(OwnedFd::from(writer))?);
        Ok(Stdin { pipe, unwritten: lines })
    }

    async fn feed(&mut self) {
        while let Some(pipe) = &self.pipe {
            if self.unwritten.is_empty() {
                self.pipe = None;
                return;
            }
            match pipe.writable().await.and_then(|()| pipe.try_write(self.unwritten)) {
                Ok(written) => self.unwritten = &self.unwritten[written..],
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                // The handler has closed its input (EPIPE). Its exit status says whether that was all right.
                Err(_) => self.pipe = None,
            }
        }
    }
}

/// Our end of the handler's stdout or stderr.
struct Output<'a> {
    label: &'a str,
    /// `None` once it has ended.
    pipe: Option<pipe::Receiver>,
    /// What is read and not yet logged.
    text: Vec<u8>,
    /// Whether what follows belongs to a line that is too long and was logged already.
    in_long_line: bool,
}

impl<'a> Output<'a> {
    fn new(label: &'a str) -> io::Result<(Output<'a>, Stdio)> {
        let (reader, writer) = io::pipe()?;
        let pipe = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        Ok((Output { label, pipe, text: Vec::new(), in_long_line: false }, writer.into()))
    }

    /// Logs line by line until the end of the output. Cancelling loses nothing.
    async fn log(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            self.text.reserve(PIECE);
            match pipe.read_buf(&mut self.text).await {
                Ok(1..) => self.log_lines(),
                // A pipe's read end knows no errors that a person could mend.
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    fn log_lines(&mut self) {
        let mut text = mem::take(&mut self.text);
        let mut logged = 0;
        while let Some(length) = text[logged..].iter().position(|&byte| byte == b'\n') {
            self.log_line(&text[logged..logged + length]);
            self.in_long_line = false;
            logged += length + 1;
        }
        text.drain(..logged);
        if text.len() > LONGEST_LINE {
            self.log_line(&text);
            self.in_long_line = true;
            text.clear();
        }
        self.text = text;
    }

    /// A last line without a line break.
    fn log_rest(&mut self) {
        let rest = mem::take(&mut self.text);
        if !rest.is_empty() {
            self.log_line(&rest);
        }
    }

    fn log_line(&self, line: &[u8]) {
        if !self.in_long_line && log_enabled!(target: TARGET, Level::Info) {
            info!(target: TARGET, "{}: {}", self.label, printable(line));
        }
    }
}

/// The line as one that can do no harm to a terminal, and of a bounded length.
fn printable(line: &[u8]) -> Cow<'_, str> {
    let shown = &line[..line.len().min(LONGEST_LINE)];
    let shown = String::from_utf8_lossy(shown.strip_suffix(b"\r").unwrap_or(shown));
    let is_harmless = |c: char| c == '\t' || !c.is_control();
    if line.len() <= LONGEST_LINE && shown.chars().all(is_harmless) {
        return shown;
    }
    let mut escaped = String::with_capacity(shown.len() + 16);
    for c in shown.chars() {
        if is_harmless(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    if line.len() > LONGEST_LINE {
        escaped.push_str(" ... (cut)");
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_line_is_harmless_and_bounded() {
        assert_eq!(printable(b"done\t5 of 5\r"), "done\t5 of 5");
        assert_eq!(printable(b"\x1b[2J\xff\0"), "\\u{1b}[2J\u{fffd}\\u{0}");
        let long = printable(&[b'x'; 2 * LONGEST_LINE]).into_owned();
        assert_eq!(long, format!("{} ... (cut)", "x".repeat(LONGEST_LINE)));
    }
}
