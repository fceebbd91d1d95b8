//! The end that serves a lease: carries out its commits, and keeps it alive by writes that are answered.

use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::select;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use zookeeper::{EventType, OneshotWatcher, StateWatcher};

use super::Term;
use super::fence::{Fence, Heart};
use super::lease::{Commit, Hold, Lost, since_boot, work_time};
use super::offsets::{Position, State};
use super::zookeeper::Session;
use crate::mutants::Mutant;

/// What the holder of one lease cannot do itself.
#[derive(Debug)]
pub(super) struct Tenure {
    pub term: Term,
    pub clock: Clock,
    pub commits: mpsc::Receiver<Commit>,
}

/// What tells that the lease is lost. Both have to stand since before the take-over, so that nothing since then is missed.
pub(super) struct Signs {
    pub link: StateWatcher,
    /// Of the own candidate.
    pub gone: OneshotWatcher,
}

impl Tenure {
    /// Serves until the lease is given up; where it is lost before, which its holder then knows, that may be later: until
    /// then a handler may be at work. To the holder it counts as released only when the clock, which is handed back, is
    /// dropped.
    pub async fn serve(self, fence: &mut Fence, signs: Signs, session: &Session) -> Clock {
        let Tenure { term, clock, mut commits } = self;
        let (heart, work) = (fence.heart(), Work { clock: &clock, fence, term, session });
        if Mutant::WorksOnDisconnected.is_on() {
            work.carry_out(&mut commits).await;
            return clock;
        }
        // The clock is stopped before anything is dropped: a commit that still waits then fails with the reason.
        select! {
            biased;
            () = async { clock.stop(interrupted(signs, session).await) } => {}
            () = async { clock.stop(clock.run_out().await) } => {}
            () = async { clock.stop(keep_alive(&clock, &heart, session).await) } => {}
            () = work.carry_out(&mut commits) => {}
        }
        // What still comes is answered by why the lease was lost.
        let given_up = async { while commits.recv().await.is_some() {} };
        select! {
            () = given_up => {}
            () = session.closing.requested() => {}
        }
        clock
    }
}

/// Writes to the candidate again and again, unless another write of the session was answered just now. It does not wait
/// for the answer to the write before: where each takes long, the lease would run out meanwhile.
///
/// Returns where a write is refused.
async fn keep_alive(clock: &Clock, heart: &Heart, session: &Session) -> Lost {
    let pause = clock.session_timeout / 10;
    let mut beat = interval_at(Instant::now() + pause, pause);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut answered, mut under_way) = (session.pulse.answered(), FuturesUnordered::new());
    loop {
        select! {
            biased;
            Some((sent, beaten)) = under_way.next() => match beaten {
                Ok(()) => {
                    session.pulse.note(sent);
                    clock.renew(sent);
                }
                Err(lost) => return lost,
            },
            // By another lease of the session.
            Ok(()) = answered.changed() => clock.renew(*answered.borrow_and_update()),
            _ = beat.tick() => if session.pulse.takes_beat(pause / 2) && !Mutant::NeverBeats.is_on() {
                under_way.push(async { (since_boot(), heart.beat().await) });
            },
        }
    }
}

/// What commits are carried out with.
struct Work<'a> {
    clock: &'a Clock,
    fence: &'a mut Fence,
    term: Term,
    session: &'a Session,
}

impl Work<'_> {
    /// Returns once the lease is given up and nothing is kept any more, or a commit has failed.
    async fn carry_out(self, commits: &mut mpsc::Receiver<Commit>) {
        let mut kept = None;
        while let Some(Write { position, done }) = next_write(commits, &mut kept).await {
            let sent = since_boot();
            let written = self.fence.commit(&State::new(position, self.term)).await;
            match &written {
                Ok(()) => {
                    self.session.pulse.note(sent);
                    self.clock.renew(sent);
                }
                Err(lost) => self.clock.stop(lost.clone()),
            }
            let has_failed = written.is_err();
            if let Some(done) = done {
                // Nobody listens where the holder's wait was cancelled.
                drop(done.send(written));
            }
            if has_failed {
                return;
            }
        }
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
        self.holds.send_modify(|hold| hold.answered = hold.answered.max(sent));
    }

    fn stop(&self, lost: Lost) {
        self.holds.send_modify(|hold| hold.lost = Some(lost));
    }
}

/// A commit that waits for those that follow it.
struct Kept {
    position: Position,
    due: Instant,
}

/// What is to be written, and who waits for it.
struct Write {
    position: Position,
    done: Option<oneshot::Sender<Result<(), Lost>>>,
}

/// Waits until something is to be written; `None` once the lease is given up and nothing is kept any more.
async fn next_write(commits: &mut mpsc::Receiver<Commit>, kept: &mut Option<Kept>) -> Option<Write> {
    let of = |kept: Kept| Write { position: kept.position, done: None };
    loop {
        let commit = select! {
            biased;
            commit = commits.recv() => commit,
            () = is_due(kept.as_ref()) => return kept.take().map(of),
        };
        let Some(Commit { position, interval, done }) = commit else {
            return kept.take().map(of);
        };
        // It lies behind what is kept.
        let before = kept.take();
        if interval.is_zero() {
            return Some(Write { position, done: Some(done) });
        }
        let due = before.map_or_else(|| Instant::now() + interval, |kept| kept.due);
        *kept = Some(Kept { position, due });
        // Nobody listens where the holder's wait was cancelled.
        drop(done.send(Ok(())));
    }
}

async fn is_due(kept: Option<&Kept>) {
    match kept {
        Some(kept) => sleep_until(kept.due).await,
        None => pending().await,
    }
}

/// Returns when the connection broke, however briefly, the candidate is gone, or the election is closed.
async fn interrupted(Signs { mut link, gone }: Signs, session: &Session) -> Lost {
    select! {
        biased;
        _ = link.changed() => Lost::Disconnected,
        event = gone.changed() => match event.event_type {
            EventType::NodeDeleted => Lost::CandidateGone,
            _ => Lost::Disconnected,
        },
        () = session.closing.requested() => Lost::Closed,
    }
}
