//! One process of the handler: its group, its pipes, its end, and what it leaves behind.

use std::future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::signal::unix::{self, SignalKind};
use tokio::task;
use tokio::time::{Instant, sleep_until};

use super::Input;
use super::descendants::{self, Marker};
use super::input::Stdin;
use super::output::Output;
use super::result_pipe::{ResultPipe, TooLong};
use super::warden::Guarded;
use crate::sys::{Place, Program};

/// Between two looks at what is left of a dropped run.
const PAUSE: Duration = Duration::from_millis(5);

/// A running handler. Dropped, it is killed with its whole group and the descendants that have left it.
pub(super) struct Process<'a> {
    group: Group,
    stdin: Stdin<'a>,
    stdout: Output<'a>,
    stderr: Output<'a>,
    results: ResultPipe,
}

/// What is known of a process when nothing of it runs any more.
pub(super) struct Remains {
    pub status: io::Result<ExitStatus>,
    /// How many bytes of its input nobody has read.
    pub unread: usize,
    /// What it wrote to descriptor 3.
    pub report: Result<Vec<u8>, TooLong>,
    /// The last 4 KiB of its stderr.
    pub stderr_tail: Vec<u8>,
}

impl<'a> Process<'a> {
    /// Starts the program; it is fed by [`Process::exit`].
    pub async fn start(program: &Program, input: &Input<'a>) -> io::Result<Process<'a>> {
        let stdin = Stdin::new(input.lines)?;
        let (stdout, its_stdout) = Output::new(input.label, "stdout")?;
        let (stderr, its_stderr) = Output::new(input.label, "stderr")?;
        let (results, its_results) = ResultPipe::new()?;
        let descriptors = [stdin.its_end(), its_stdout.as_fd(), its_stderr.as_fd(), its_results.as_fd()];
        // Before the process is there, so that the signal of its end cannot come too early.
        let child_ended = unix::signal(SignalKind::child())?;
        let marker = Marker::of(input.environment);
        // posix_spawn holds its thread until the program is loaded, from a slow disk perhaps. To hand that to another thread
        // would take as long as most spawns do.
        let group = task::block_in_place(|| Group::start(program, &descriptors, marker, child_ended))?;
        Ok(Process { group, stdin, stdout, stderr, results })
    }

    /// Returns when the process has ended; feeds it and logs what it writes meanwhile. Cancelling loses nothing.
    pub async fn exit(&mut self) {
        let Process { group, stdin, stdout, stderr, results } = self;
        let pipes = async {
            tokio::join!(stdin.feed(), stdout.log(), stderr.log(), results.read());
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
    pub async fn last_words(&mut self) {
        tokio::join!(self.stdout.log(), self.stderr.log());
    }

    /// Asks the group to end and returns when it seems to have done so, at the latest at `deadline` or what
    /// `sooner` says.
    pub async fn terminate(&mut self, deadline: Instant, sooner: impl Future<Output = Instant>) {
        self.group.terminate();
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

    /// Kills what is left of the group and of the descendants that have left it. Returns when they are gone.
    pub async fn finish(self) -> Remains {
        // What a descendant would read from now on counts for nothing.
        let unread = self.stdin.unread();
        let status = self.group.end().await;
        self.stdout.end();
        Remains { status, unread, report: self.results.end(), stderr_tail: self.stderr.end() }
    }
}

/// The process and its descendants, those that stayed in its group and those that did not. Dropped, they are killed.
///
/// Until the process is reaped its number names this group and no other, so that no signal hits a stranger.
/// That is why it is neither tokio's Child, which reaps as soon as it can, nor std's, which may.
struct Group {
    pid: Pid,
    marker: Option<Marker>,
    child_ended: unix::Signal,
    /// `None` once nothing is left.
    guarded: Option<Guarded>,
}

impl Group {
    fn start(
        program: &Program,
        descriptors: &[BorrowedFd<'_>],
        marker: Option<Marker>,
        child_ended: unix::Signal,
    ) -> io::Result<Group> {
        let guarded = Guarded::begin(marker.as_ref());
        let pid = descendants::start(program, descriptors, Place::Group)?;
        guarded.started(pid);
        Ok(Group { pid, marker, child_ended, guarded: Some(guarded) })
    }

    /// Asks all to end that belong to it.
    fn terminate(&self) {
        self.signal(Signal::TERM);
        if let Some(marker) = &self.marker {
            descendants::signal_marked(&[marker], Some(self.pid), Signal::TERM);
        }
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, its group exists. EPERM, where all that is left runs as somebody else, cannot be helped.
        kill_process_group(self.pid, signal).ok();
    }

    /// Returns when the process has ended, and leaves it to be reaped.
    async fn exit(&mut self) {
        while !descendants::has_ended(self.pid) {
            self.child_ended.recv().await;
            descendants::reap_orphans();
        }
    }

    /// Kills all that is left, and tells how the process itself ended.
    async fn end(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.exit().await;
        while descendants::kill_orphans(self.pid, self.marker.as_ref()) {
            self.child_ended.recv().await;
        }
        // The warden first: once it is reaped, its number may be another's.
        drop(self.guarded.take());
        descendants::reap(self.pid)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(guarded) = self.guarded.take() else { return };
        self.signal(Signal::KILL);
        let (pid, marker) = (self.pid, self.marker.take());
        // Even a killed process may take its time, in a disk's queue for one, and here nobody may wait for it.
        let reaper = thread::Builder::new().name("reaper".into()).spawn(move || {
            // An error means that somebody else has reaped it.
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).ok();
            while descendants::kill_orphans(pid, marker.as_ref()) {
                thread::sleep(PAUSE);
            }
            drop(guarded);
            descendants::reap(pid).ok();
        });
        // Without a thread it stays a zombie until we end.
        drop(reaper);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a shell script that ended by itself, having been given this.
    async fn remains(script: &str, lines: &[u8]) -> Remains {
        let program = Program::new("/bin/sh".as_ref(), ["sh", "-c", script].map(AsRef::as_ref), []).unwrap();
        let input = Input { label: "products/0", lines, environment: &[] };
        let mut process = Process::start(&program, &input).await.unwrap();
        process.exit().await;
        process.last_words().await;
        process.finish().await
    }

    async fn unread(script: &str, lines: &[u8]) -> usize {
        remains(script, lines).await.unread
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_reads_of_the_input_is_counted_to_the_byte() {
        for size in [1, 100, 65_536, 65_537, 300_000, 5_000_000] {
            let lines = vec![b'x'; size];
            assert_eq!(unread("cat >/dev/null", &lines).await, 0, "of {size}");
            // A shell that has nothing to do may end before all that fits is in the pipe.
            assert_eq!(unread("exit 0", &lines).await, size, "of {size}");
            assert_eq!(unread("exec <&-; sleep 0.1; exit 0", &lines).await, size, "of {size}");
            assert_eq!(unread("head -c 1 >/dev/null; sleep 0.1", &lines).await, size - 1, "of {size}");
        }
        assert_eq!(unread("exit 0", b"").await, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_line_that_is_read_alone_leaves_all_others_unread() {
        let lines = b"{\"id\":1}\n".repeat(30_000);
        // `read` of a shell takes one byte at a time from a pipe; head takes a buffer, and does not give it back.
        assert_eq!(unread("read a", &lines).await, lines.len() - 9);
        assert_eq!(unread("read a", &lines[..18]).await, 9);
        let left = unread("head -n 5 >/dev/null", &lines).await;
        assert!(left > lines.len() - 70_000 && left < lines.len() - 45, "{left}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_report_is_what_was_written_to_descriptor_3() {
        assert_eq!(remains("exit 0", b"").await.report, Ok(vec![]));
        assert_eq!(
            remains("echo one >&3; echo two >&3; echo no; exit 4", b"").await.report,
            Ok(b"one\ntwo\n".to_vec())
        );
        // It fits no pipe.
        let long = remains("head -c 16777216 /dev/zero >&3", b"").await.report;
        assert_eq!(long.map(|text| (text.len(), text.iter().all(|byte| *byte == 0))), Ok((16 << 20, true)));
        assert_eq!(remains("head -c 16777217 /dev/zero >&3", b"").await.report, Err(TooLong));
        // A descendant that keeps it open is not waited for.
        assert_eq!(remains("sleep 600 >/dev/null 2>&1 & echo one >&3", b"").await.report, Ok(b"one\n".to_vec()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_stderr_is_kept() {
        let tail = |script| async move { String::from_utf8(remains(script, b"").await.stderr_tail).unwrap() };
        assert_eq!(tail("echo out; echo oops >&2; printf why >&2").await, "oops\nwhy");
        let all: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(tail("seq 200000 >&2").await, all[all.len() - 4096..]);
        // Bytes are counted, not lines.
        assert_eq!(tail("head -c 100000 /dev/zero | tr '\\0' x >&2").await, "x".repeat(4096));
    }
}
