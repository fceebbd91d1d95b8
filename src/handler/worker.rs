//! One worker: a process that is given batch after batch on its stdin, and answers each on its stdout.
//!
//! The lines that we write, besides those of the records: `hello`, then for each batch `batch` and, after its records,
//! `end`; `cancel` where the batch is not ours any more, and `shutdown`. Each batch whose `end` was written gets one
//! answer. A worker that does not keep to that is ended, and what it was given counts as failed.

use std::future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::answers::{self, Answer, Answers, FailedRecord};
use super::descendants::Marker;
use super::group::Group;
use super::input::Stdin;
use super::outcome::{self, Failed, Failure};
use super::outgoing::{Outgoing, begin, line};
use super::output::Output;
use super::report::Report;
use super::{Batch, GRACE, LAST_WORDS};
use crate::sys::Program;

/// How much of a batch is expected to be on its way at once, in bytes.
const EXPECTED: usize = 256 << 10;

/// A running worker. Dropped, it is killed with its descendants.
pub(super) struct Worker {
    group: Group,
    /// When its process was seen to have ended.
    ended: Option<Instant>,
    stdin: Stdin,
    answers: Answers,
    stderr: Output,
    /// How many batches it has been given.
    pub batches: u64,
}

/// What a worker came to with a batch.
pub(super) enum Worked {
    /// It has answered, and can be given another one.
    Answered(Result<Report, Failure>),
    /// It is of no more use.
    Broken(Failure),
    /// The caller wanted the end.
    Stopped {
        /// Whether it can be given another batch.
        is_free: bool,
    },
}

impl Worker {
    pub fn start(program: &Program, marker: Marker) -> io::Result<Worker> {
        let stdin = Stdin::new(EXPECTED)?;
        let (answers, its_stdout) = Answers::new("worker")?;
        let (stderr, its_stderr) = Output::new("worker", "stderr")?;
        let descriptors = [stdin.its_end(), its_stdout.as_fd(), its_stderr.as_fd()];
        let group = Group::start(program, &descriptors, Some(marker))?;
        Ok(Worker { group, ended: None, stdin, answers, stderr, batches: 0 })
    }

    /// Greets it, and returns when it is ready.
    pub async fn get_ready(&mut self, name: &str, limit: Duration) -> Result<(), Failure> {
        let hello = line(&json!({"type": "hello", "ksync": 1, "name": name}));
        let mut out = Outgoing::new([&hello, b"", b""]);
        match timeout(limit, self.next(&mut out)).await {
            Ok(Ok(Answer::Ready {})) => Ok(()),
            Ok(Ok(Answer::Fatal { error })) => Err(Failure::Fatal(error)),
            Ok(Ok(_)) => Err(Failure::Protocol("it answered before it said that it is ready".to_owned())),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Silent { limit, option: "--start-timeout" }),
        }
    }

    /// Gives it a batch and waits for its answer, as long as `limit` since the last word of progress. The end of the batch
    /// is kept back until `go` says true, so that reading it takes no time of its own; after false it is taken back.
    ///
    /// `stop` resolves as that of [`super::Command::run`] does: then, too, the batch is taken back.
    pub async fn work(
        &mut self,
        (batch, lines): (&Batch<'_>, &[u8]),
        limit: Duration,
        go: impl Future<Output = bool>,
        stop: impl Future<Output = Instant>,
    ) -> Worked {
        let label = batch.source.to_string();
        self.answers.begin(&label);
        self.stderr.begin(&label);
        self.batches += 1;
        let (begin, end) = (begin(batch), line(&json!({"type": "end", "id": batch.id})));
        let mut out = Outgoing::new([&begin, lines, b""]);
        let mut stop = pin!(stop);
        let deadline = tokio::select! {
            biased;
            goes = go => (!goes).then(|| Instant::now() + GRACE),
            worked = self.hold(batch.id, &mut out, limit) => return worked,
            deadline = &mut stop => Some(deadline),
        };
        if let Some(deadline) = deadline {
            return Worked::Stopped { is_free: self.cancel(batch.id, &out, deadline).await };
        }
        out.finish_with(&end);
        tokio::select! {
            biased;
            worked = self.hold(batch.id, &mut out, limit) => worked,
            deadline = stop => Worked::Stopped { is_free: self.cancel(batch.id, &out, deadline).await },
        }
    }

    /// Waits for the answer to a batch that is being written.
    pub async fn hold(&mut self, id: &str, out: &mut Outgoing<'_>, limit: Duration) -> Worked {
        let mut deadline = Instant::now() + limit;
        loop {
            let Ok(answer) = timeout_at(deadline, self.next(out)).await else {
                return Worked::Broken(Failure::Silent { limit, option: "--timeout" });
            };
            match answer {
                Err(failure) => return Worked::Broken(failure),
                Ok(Answer::Fatal { error }) => return Worked::Broken(Failure::Fatal(error)),
                Ok(Answer::Progress { id: of }) if of == id => deadline = Instant::now() + limit,
                Ok(Answer::Done { id: of, failed }) if of == id && out.is_given() => return self.done(failed),
                Ok(Answer::Backoff { id: of, ms }) if of == id && out.is_given() => {
                    return Worked::Answered(Err(Failure::Backoff(Duration::from_millis(ms))));
                }
                Ok(Answer::Done { id: of, .. } | Answer::Progress { id: of } | Answer::Backoff { id: of, .. }) => {
                    return Worked::Broken(Failure::Protocol(match of == id {
                        true => format!("it answered for batch {id} before it was given its end"),
                        false => format!("it answered for batch {of} while it had batch {id}"),
                    }));
                }
                Ok(Answer::Ready {}) => {
                    return Worked::Broken(Failure::Protocol(format!("it said ready while it had batch {id}")));
                }
            }
        }
    }

    /// It has said that the batch is done.
    fn done(&mut self, failed: Vec<FailedRecord>) -> Worked {
        // Whoever reads object by object may leave the line break behind the last one.
        let unread = self.stdin.in_pipe();
        if unread > 1 {
            return Worked::Broken(Failure::Protocol(format!("it answered with {unread} bytes of the batch unread")));
        }
        match (answers::report(failed), self.misspoken()) {
            (_, Some(failure)) => Worked::Broken(failure),
            (Ok(report), None) => Worked::Answered(Ok(report)),
            (Err(error), None) => Worked::Broken(Failure::Protocol(format!("{error:#}"))),
        }
    }

    /// What it has said already, having no batch: so it is of no more use.
    fn misspoken(&mut self) -> Option<Failure> {
        self.answers.now().map(spoken_without_a_batch)
    }

    /// Why it is of no more use, as far as that shows already while it has no batch.
    pub fn unusable(&mut self) -> Option<Failure> {
        self.misspoken().or_else(|| self.group.has_ended().then_some(Failure::Gone))
    }

    /// While it has no batch: returns, with the reason, when it is of no more use.
    pub async fn idle(&mut self) -> Failure {
        match self.next(&mut Outgoing::new([b"", b"", b""])).await {
            Ok(answer) => spoken_without_a_batch(Ok(answer)),
            Err(failure) => failure,
        }
    }

    /// Takes the batch back. Where the worker goes on with it nevertheless, it is told to end after half of the time.
    /// Whether it is free for another batch, by the deadline.
    async fn cancel(&mut self, id: &str, out: &Outgoing<'_>, deadline: Instant) -> bool {
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        match timeout_at(half, self.take_back(id, out)).await {
            Ok(is_free) => is_free,
            Err(_) => {
                self.terminate(deadline, future::pending()).await;
                false
            }
        }
    }

    async fn take_back(&mut self, id: &str, out: &Outgoing<'_>) -> bool {
        if !out.is_begun() {
            return true;
        }
        let cancel = line(&json!({"type": "cancel", "id": id}));
        let mut cancelled = Outgoing::new([out.rest_of_line(), &cancel, b""]);
        if !out.is_given() {
            // Of what it was not given to the end it need not say anything.
            cancelled.write(&mut self.stdin).await;
            return true;
        }
        loop {
            match self.next(&mut cancelled).await {
                Ok(Answer::Progress { .. }) => {}
                Ok(Answer::Done { id: of, .. } | Answer::Backoff { id: of, .. }) => return of == id,
                Ok(Answer::Ready {} | Answer::Fatal { .. }) | Err(_) => return false,
            }
        }
    }

    /// Writes a line that belongs to no batch.
    pub async fn tell(&mut self, line: &[u8], limit: Duration) -> Result<(), Failure> {
        let told = timeout(limit, Outgoing::new([line, b"", b""]).write(&mut self.stdin)).await;
        told.map_err(|_elapsed| Failure::Silent { limit, option: "--timeout" })
    }

    /// Tells it to end, and returns when it has: how, if not with exit status 0.
    pub async fn retire(mut self) -> Option<Failure> {
        let shutdown = line(&json!({"type": "shutdown"}));
        let mut out = Outgoing::new([&shutdown, b"", b""]);
        let gone = timeout(GRACE, async {
            out.write(&mut self.stdin).await;
            self.stdin.close();
            self.gone().await;
        });
        if gone.await.is_err() {
            self.terminate(Instant::now() + GRACE, future::pending()).await;
        }
        match self.end(Failure::Gone).await.failure {
            Failure::Gone => None,
            how => Some(how),
        }
    }

    /// Asks it to end, and returns when it has, at the latest at the deadline or what `sooner` says. What is left then is
    /// killed by [`Worker::end`].
    pub async fn terminate(&mut self, deadline: Instant, sooner: impl Future<Output = Instant>) {
        self.group.terminate();
        let limit = async {
            tokio::select! {
                () = sleep_until(deadline) => {}
                sooner = sooner => sleep_until(sooner.min(deadline)).await,
            }
        };
        tokio::select! {
            biased;
            () = self.gone() => {}
            () = limit => {}
        }
    }

    async fn gone(&mut self) {
        // Whatever it says now means nothing.
        while self.ended.is_none() {
            if let Err(Failure::Gone) = self.next(&mut Outgoing::new([b"", b"", b""])).await {
                self.group.exit().await;
                self.ended = Some(Instant::now());
            }
        }
    }

    /// Kills what is left of it. What the failure was, and what it wrote to stderr last.
    pub async fn end(mut self, failure: Failure) -> Failed {
        drop(timeout(LAST_WORDS, self.stderr.log()).await);
        let status = self.group.end().await;
        let failure = match (failure, self.ended) {
            // It came to its end by itself.
            (Failure::Gone, Some(_)) => outcome::ended(status).err().unwrap_or(Failure::Gone),
            (failure, _) => failure,
        };
        Failed { failure, report: Report::default(), stderr: self.stderr.end() }
    }

    /// Kills what is left of it, at once: whatever it still has to say, another process may lead soon.
    pub async fn kill(self) {
        drop(self.group.end().await);
    }

    /// The next that it says, while it is given what is to be written. Cancelling loses nothing.
    ///
    /// Fails where it has ended, or has closed its stdout, or what it says cannot be read.
    async fn next(&mut self, out: &mut Outgoing<'_>) -> Result<Answer, Failure> {
        let Worker { group, ended, stdin, answers, stderr, .. } = self;
        tokio::select! {
            biased;
            answer = async {
                loop {
                    let last_words = ended.map(|ended| ended + LAST_WORDS);
                    tokio::select! {
                        biased;
                        answer = answers.next() => return answer,
                        () = group.exit(), if ended.is_none() => *ended = Some(Instant::now()),
                        // A descendant may keep its stdout open.
                        () = sleep_until(last_words.unwrap_or_else(Instant::now)), if ended.is_some() => return None,
                    }
                }
            } => match answer {
                Some(Ok(answer)) => Ok(answer),
                Some(Err(error)) => Err(Failure::Protocol(format!("{error:#}"))),
                None => {
                    // Most often a closed stdout is the beginning of the end.
                    if ended.is_none() && timeout(LAST_WORDS, group.exit()).await.is_ok() {
                        *ended = Some(Instant::now());
                    }
                    Err(Failure::Gone)
                }
            },
            never = async {
                tokio::join!(out.write(stdin), stderr.log());
                future::pending().await
            } => never,
        }
    }
}

fn spoken_without_a_batch(answer: anyhow::Result<Answer>) -> Failure {
    match answer {
        Ok(Answer::Fatal { error }) => Failure::Fatal(error),
        Ok(Answer::Done { id, .. } | Answer::Progress { id } | Answer::Backoff { id, .. }) => {
            Failure::Protocol(format!("it answered for batch {id}, which it did not have any more"))
        }
        Ok(Answer::Ready {}) => Failure::Protocol("it said ready twice".to_owned()),
        Err(error) => Failure::Protocol(format!("{error:#}")),
    }
}
