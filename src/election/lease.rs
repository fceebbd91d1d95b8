//! A lease: the right to work on a seat, as a value that ends by itself.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot, watch};

use super::offsets::{Position, Stored};
use super::tenure::{Clock, Tenure};
use super::{Seat, Term};
use crate::mutants::Mutant;

/// How long a release waits to hear that the candidate is gone.
const RELEASE: Duration = Duration::from_secs(1);

/// Held while this process leads a seat; lost once, lost for good. Dropping it lets the next candidate lead.
#[derive(Debug)]
pub struct Lease {
    seat: Seat,
    term: Term,
    stored: Stored,
    session_timeout: Duration,
    hold: watch::Receiver<Hold>,
    commits: mpsc::Sender<Commit>,
}

/// Why a lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The own candidate is not in the queue any more: another process may lead already.
    CandidateGone,
    /// Somebody else has moved or deleted the offset since.
    OffsetMoved,
    /// The connection broke. A commit under way may have been carried out, or still be.
    Disconnected,
    /// No write was answered for so long. A commit under way may have been carried out, or still be.
    Unanswered(Duration),
    /// The server refused a write, with its words.
    Refused(String),
    /// This process closed the election.
    Closed,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::CandidateGone => f.write_str("deposed: the own candidate is gone"),
            Lost::OffsetMoved => f.write_str("deposed: somebody else has written the offset since"),
            Lost::Disconnected => f.write_str("the connection to ZooKeeper broke"),
            Lost::Unanswered(time) => write!(f, "ZooKeeper has answered no write for {time:?}"),
            Lost::Refused(why) => write!(f, "ZooKeeper refuses the write: {why}"),
            Lost::Closed => f.write_str("the election was closed"),
        }
    }
}

impl std::error::Error for Lost {}

impl Lease {
    /// A lease whose last answered write was sent at `answered`, and the end that serves it.
    pub(super) fn new(seat: Seat, term: Term, stored: Stored, timing: Timing) -> (Lease, Tenure) {
        let session_timeout = timing.session_timeout;
        let (holds, hold) = watch::channel(Hold { answered: timing.answered, lost: None });
        let (sender, commits) = mpsc::channel(1);
        let lease = Lease { seat, term, stored, session_timeout, hold, commits: sender };
        (lease, Tenure { term, clock: Clock { session_timeout, holds }, commits })
    }

    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// The offset and the state as they were when this lease began.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Whether work may go on now. True only while the clock says so, even if the process was stopped since.
    pub fn is_held(&self) -> bool {
        let hold = self.hold.borrow();
        hold.lost.is_none() && hold.overdue(self.session_timeout).is_none() && self.hold.has_changed().is_ok()
    }

    /// Returns, with the reason, when work has to stop: deposed, disconnected, or 0.4 of the session timeout without an
    /// answered write. Cancelling loses nothing.
    pub async fn lost(&self) -> Lost {
        let mut hold = self.hold.clone();
        match hold.wait_for(|hold| hold.lost.is_some()).await {
            Ok(hold) => hold.lost.clone().unwrap_or(Lost::Closed),
            Err(_ended) => Lost::Closed,
        }
    }

    /// What is left of the time within which a handler's processes must be gone: half of the session timeout after the
    /// last answered write, and nothing where another process may lead already.
    pub fn grace(&self) -> Duration {
        let hold = self.hold.borrow();
        match hold.lost {
            Some(Lost::CandidateGone | Lost::OffsetMoved) => Duration::ZERO,
            _ => (hold.answered + self.session_timeout / 2).saturating_sub(since_boot()),
        }
    }

    /// Writes the position, in one transaction that fails if another process leads or has led since.
    ///
    /// After an error nothing can be committed under this lease. For the reasons [`Lost::Disconnected`],
    /// [`Lost::Unanswered`] and [`Lost::Closed`] it is unknown whether this commit counts: the next lease's
    /// [`stored`](Self::stored) tells. Cancelling leaves it unknown as well, and the lease held.
    pub async fn commit(&self, position: Position) -> Result<(), Lost> {
        self.commit_within(position, Duration::ZERO).await
    }

    /// As [`commit`](Self::commit), but it may wait for as long as `interval` to be written, together with those that come
    /// after it; a lease that ends before, other than by [`release`](Self::release), takes it along.
    pub async fn commit_within(&self, position: Position, interval: Duration) -> Result<(), Lost> {
        let (done, answer) = oneshot::channel();
        let commit = Commit { position, interval, done };
        // Either fails only when nobody serves this lease any more; why that is was told before.
        if self.commits.send(commit).await.is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        Err(self.hold.borrow().lost.clone().unwrap_or(Lost::Closed))
    }

    /// Gives the seat up once all commits are written, so that a standby leads at once. Returns when the candidate is gone, or after 1 s.
    pub async fn release(self) {
        let Lease { mut hold, commits, .. } = self;
        drop(commits);
        let gone = async { while hold.changed().await.is_ok() {} };
        // Past that time it goes on in the background, and at the latest the session's end takes the candidate along.
        drop(tokio::time::timeout(RELEASE, gone).await);
    }
}

/// What a lease's clock starts from.
pub(super) struct Timing {
    pub answered: Duration,
    pub session_timeout: Duration,
}

/// How a lease stands.
#[derive(Debug)]
pub(super) struct Hold {
    /// When the last write that was answered was sent, on the clock of [`since_boot`].
    pub answered: Duration,
    pub lost: Option<Lost>,
}

impl Hold {
    /// The reason to stop once 0.4 of the session timeout has passed without an answered write.
    pub fn overdue(&self, session_timeout: Duration) -> Option<Lost> {
        if Mutant::WorksOnDisconnected.is_on() {
            return None;
        }
        let silence = since_boot().saturating_sub(self.answered);
        (silence >= work_time(session_timeout)).then_some(Lost::Unanswered(silence))
    }
}

/// A position on its way to the server.
#[derive(Debug)]
pub(super) struct Commit {
    pub position: Position,
    /// How long it may wait.
    pub interval: Duration,
    pub done: oneshot::Sender<Result<(), Lost>>,
}

/// For how long an answered write allows work: the server may end the session 0.7 of its timeout after it at the earliest,
/// and the handler gets a tenth to end.
pub(super) fn work_time(session_timeout: Duration) -> Duration {
    session_timeout * 2 / 5
}

/// Now, on a clock that goes on while the process is stopped and while the machine sleeps. `Instant` does only the first.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The time may pass while the machine sleeps: in a time namespace CLOCK_BOOTTIME alone is a day ahead.
    #[test]
    fn a_lease_is_over_by_the_time_that_a_machine_has_slept() {
        const SESSION: Duration = Duration::from_secs(10);
        const DAY: Duration = Duration::from_secs(86_400);
        if std::env::var_os("SLEPT").is_some() {
            // When it fell asleep, as far as CLOCK_MONOTONIC tells.
            let awake = clock_gettime(ClockId::Monotonic);
            let answered = Duration::new(awake.tv_sec.unsigned_abs(), awake.tv_nsec.unsigned_abs() as u32);
            let over = Hold { answered, lost: None }.overdue(SESSION);
            assert!(matches!(over, Some(Lost::Unanswered(silence)) if silence >= DAY), "{over:?}");
            return;
        }
        assert_eq!(Hold { answered: since_boot(), lost: None }.overdue(SESSION), None);
        let (_, module) = module_path!().split_once("::").unwrap();
        // The clocks of such a namespace are set before its first process begins, which so has to be another one.
        let slept = Command::new("unshare")
            .args(["--map-root-user", "--time", "--fork", "--boottime", &DAY.as_secs().to_string()])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::a_lease_is_over_by_the_time_that_a_machine_has_slept")])
            .env("SLEPT", "1")
            .output()
            .expect("unshare of util-linux can be started");
        let said = [slept.stdout, slept.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(slept.status.success() && said.contains("1 passed"), "{}: {said}", slept.status);
    }
}
