//! One run of the handler as a process of its own: its pipes, its end, and what it leaves behind.

use std::future;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitStatus;

use tokio::time::{Instant, sleep_until};

use super::Input;
use super::descendants::Marker;
use super::group::Group;
use super::input::Stdin;
use super::output::Output;
use super::result_pipe::{ResultPipe, TooLong};
use super::told::Told;
use crate::sys::Program;

/// A running handler. Dropped, it is killed with its whole group and the descendants that have left it.
pub(super) struct Process<'a> {
    group: Group,
    stdin: Stdin,
    unwritten: &'a [u8],
    stdout: Stdout,
    stderr: Output,
    results: ResultPipe,
}

/// What becomes of the stdout.
enum Stdout {
    Logged(Output),
    Told(Told),
}

impl Stdout {
    /// Until its end. Cancelling loses nothing.
    async fn read(&mut self) {
        match self {
            Stdout::Logged(output) => output.log().await,
            Stdout::Told(told) => told.read().await,
        }
    }

    async fn end(self) {
        match self {
            Stdout::Logged(output) => drop(output.end()),
            Stdout::Told(told) => told.end().await,
        }
    }
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
    pub fn start(program: &Program, input: &Input<'a>) -> io::Result<Process<'a>> {
        let stdin = Stdin::new(input.lines.len())?;
        let (stdout, its_stdout) = match input.told {
            None => {
                let (output, its_end) = Output::new(input.label, "stdout")?;
                (Stdout::Logged(output), its_end)
            }
            Some(caller) => {
                let (told, its_end) = Told::new(caller.clone())?;
                (Stdout::Told(told), its_end)
            }
        };
        let (stderr, its_stderr) = Output::new(input.label, "stderr")?;
        let (results, its_results) = ResultPipe::new()?;
        let descriptors = [stdin.its_end(), its_stdout.as_fd(), its_stderr.as_fd(), its_results.as_fd()];
        let group = Group::start(program, &descriptors, Marker::of(input.environment))?;
        Ok(Process { group, stdin, unwritten: input.lines, stdout, stderr, results })
    }

    /// Returns when the process has ended; feeds it and logs what it writes meanwhile. Cancelling loses nothing.
    pub async fn exit(&mut self) {
        let Process { group, stdin, unwritten, stdout, stderr, results } = self;
        let feed = async {
            stdin.write(unwritten).await;
            stdin.close();
        };
        let pipes = async {
            tokio::join!(feed, stdout.read(), stderr.log(), results.read());
            // A process can close all its pipes and go on.
            future::pending().await
        };
        tokio::select! {
            biased;
            () = group.exit() => {}
            () = pipes => {}
        }
    }

    /// Reads what is still written until nobody has the outputs open any more.
    pub async fn last_words(&mut self) {
        tokio::join!(self.stdout.read(), self.stderr.log());
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
        let unread = self.unwritten.len() + self.stdin.in_pipe();
        let status = self.group.end().await;
        self.stdout.end().await;
        Remains { status, unread, report: self.results.end(), stderr_tail: self.stderr.end() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a shell script that ended by itself, having been given this.
    async fn remains(script: &str, lines: &[u8]) -> Remains {
        let program = Program::new("/bin/sh".as_ref(), ["sh", "-c", script].map(AsRef::as_ref), []).unwrap();
        let input = Input { label: "products/0", lines, environment: &[], told: None };
        let mut process = Process::start(&program, &input).unwrap();
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
