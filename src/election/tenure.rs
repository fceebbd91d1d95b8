//! The end that serves a lease: carries out its commits, and keeps it alive by writes that are answered.

use std::time::Duration;

use tokio::select;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use zookeeper::StateWatcher;

use super::Term;
use super::fence::Fence;
use super::lease::{Commit, Hold, Lost, since_boot, work_time};
use super::offsets::State;
use super::zookeeper::Session;

/// What the holder of one lease cannot do itself.
#[derive(Debug)]
pub(super) struct Tenure {
    pub term: Term,
    pub clock: Clock,
    pub commits: mpsc::Receiver<Commit>,
}

impl Tenure {
    /// Serves until the lease is lost, which its holder then knows, or given up. To the holder it counts as released only
    /// when the clock, which is handed back, is dropped.
    ///
    /// `link` has to stand since before the take-over, so that no cut since then is missed.
    pub async fn serve(self, fence: &mut Fence, mut link: StateWatcher, session: &Session) -> Clock {
        // Dropped at the end of this: a commit that still waits there fails with the lease, not when servers are back.
        let Tenure { term, clock, mut commits } = self;
        let pause = clock.session_timeout / 10;
        let mut beat = interval_at(Instant::now() + pause, pause);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lost = loop {
            let commit = select! {
                biased;
                lost = interrupted(&mut link, session) => break lost,
                lost = clock.run_out() => break lost,
                commit = commits.recv() => match commit {
                    Some(commit) => Some(commit),
                    None => return clock,
                },
                _ = beat.tick() => None,
            };
            let sent = since_boot();
            let written = select! {
                biased;
                lost = interrupted(&mut link, session) => Err(lost),
                lost = clock.run_out() => Err(lost),
                written = write(fence, term, commit.as_ref()) => written,
            };
            match &written {
                Ok(()) => clock.renew(sent),
                Err(lost) => clock.stop(lost.clone()),
            }
            if let Some(commit) = commit {
                // Nobody listens where the holder's wait was cancelled.
                drop(commit.done.send(written.clone()));
            }
            if let Err(lost) = written {
                break lost;
            }
        };
        clock.stop(lost);
        clock
    }
}

/// How long the lease lives: renewed by each answered write, counted from before it was sent.
#[derive(Debug)]
pub(super) struct Clock {
    pub session_timeout: Duration,
    pub holds: watch::Sender<Hold>,
}

impl Clock {
    /// Returns when the lease has lived without an answered write for as long as it may. Ready at once where that is
    /// so already: by the clock, not by a timer, since timers stand still while the machine sleeps.
    async fn run_out(&self) -> Lost {
        loop {
            if let Some(lost) = self.holds.borrow().overdue(self.session_timeout) {
                return lost;
            }
            let answered = self.holds.borrow().answered;
            let left = (answered + work_time(self.session_timeout)).saturating_sub(since_boot());
            tokio::time::sleep(left).await;
        }
    }

    fn renew(&self, sent: Duration) {
        self.holds.send_modify(|hold| hold.answered = sent);
    }

    fn stop(&self, lost: Lost) {
        self.holds.send_modify(|hold| hold.lost = Some(lost));
    }
}

/// One write: the commit, or else a heartbeat.
async fn write(fence: &mut Fence, term: Term, commit: Option<&Commit>) -> Result<(), Lost> {
    match commit {
        Some(commit) => fence.commit(&State::new(commit.position.clone(), term)).await,
        None => fence.beat().await,
    }
}

/// Returns when the connection broke, however briefly, or the election is closed.
async fn interrupted(link: &mut StateWatcher, session: &Session) -> Lost {
    select! {
        _ = link.changed() => Lost::Disconnected,
        () = session.closing.requested() => Lost::Closed,
    }
}
