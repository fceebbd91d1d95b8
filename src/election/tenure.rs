//! The end that serves a lease: carries out its commits, and keeps it alive by writes that are answered.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use tokio::select;
use tokio::sync::{MutexGuard, mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use zookeeper::{EventType, OneshotWatcher, StateWatcher};

use super::Term;
use super::fence::Fence;
use super::lease::{Commit, Hold, Lost, since_boot, work_time};
use super::offsets::{Position, State};
use super::zookeeper::{Pulse, Session};

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
    /// Serves until the lease is lost, which its holder then knows, or given up. To the holder it counts as released only
    /// when the clock, which is handed back, is dropped.
    pub async fn serve(self, fence: &mut Fence, signs: Signs, session: &Session) -> Clock {
        // Dropped at the end of this: a commit that still waits there fails with the lease, not when servers are back.
        let Tenure { term, clock, mut commits } = self;
        let pause = clock.session_timeout / 10;
        let mut beat = interval_at(Instant::now() + pause, pause);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Signs { mut link, gone } = signs;
        let mut interrupted = pin!(interrupted(&mut link, gone, session));
        let mut kept = None;
        let lost = loop {
            let Write { position, done } = select! {
                biased;
                lost = &mut interrupted => break lost,
                lost = clock.run_out() => break lost,
                write = next_write(&mut commits, &mut kept, &mut beat) => match write {
                    Some(write) => write,
                    None => return clock,
                },
            };
            let turn = select! {
                biased;
                lost = &mut interrupted => break lost,
                lost = clock.run_out() => break lost,
                turn = turn(&session.pulse, position.is_none()) => turn,
            };
            let answered = session.pulse.answered();
            if turn.is_some() && answered + pause / 2 > since_boot() {
                // Another lease of the session has just shown that writes are answered.
                clock.renew(answered);
                continue;
            }
            // What is kept takes the place of a heartbeat.
            let position = position.or_else(|| kept.take().map(|kept: Kept| kept.position));
            let sent = since_boot();
            let written = select! {
                biased;
                lost = &mut interrupted => Err(lost),
                lost = clock.run_out() => Err(lost),
                written = write(fence, term, position) => written,
            };
            match &written {
                Ok(()) => {
                    session.pulse.note(sent);
                    clock.renew(sent);
                }
                Err(lost) => clock.stop(lost.clone()),
            }
            if let Some(done) = done {
                // Nobody listens where the holder's wait was cancelled.
                drop(done.send(written.clone()));
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

/// What is to be written, nothing being a heartbeat, and who waits for it.
struct Write {
    position: Option<Position>,
    done: Option<oneshot::Sender<Result<(), Lost>>>,
}

/// Waits until something is to be written; `None` once the lease is given up and nothing is kept any more.
async fn next_write(
    commits: &mut mpsc::Receiver<Commit>,
    kept: &mut Option<Kept>,
    beat: &mut Interval,
) -> Option<Write> {
    loop {
        let commit = select! {
            biased;
            commit = commits.recv() => commit,
            () = is_due(kept.as_ref()) => return Some(Write::of(kept.take())),
            _ = beat.tick() => return Some(Write::of(None)),
        };
        let Some(Commit { position, interval, done }) = commit else {
            return kept.take().map(|kept| Write::of(Some(kept)));
        };
        // It lies behind what is kept.
        let before = kept.take();
        if interval.is_zero() {
            return Some(Write { position: Some(position), done: Some(done) });
        }
        let due = before.map_or_else(|| Instant::now() + interval, |kept| kept.due);
        *kept = Some(Kept { position, due });
        // Nobody listens where the holder's wait was cancelled.
        drop(done.send(Ok(())));
    }
}

/// Waits while another lease's heartbeat is under way: it may serve this one, too, and where writes are slow there must not
/// be one of each.
async fn turn(pulse: &Pulse, is_heartbeat: bool) -> Option<MutexGuard<'_, ()>> {
    match is_heartbeat {
        true => Some(pulse.turn().await),
        false => None,
    }
}

impl Write {
    fn of(kept: Option<Kept>) -> Write {
        Write { position: kept.map(|kept| kept.position), done: None }
    }
}

async fn is_due(kept: Option<&Kept>) {
    match kept {
        Some(kept) => sleep_until(kept.due).await,
        None => pending().await,
    }
}

async fn write(fence: &mut Fence, term: Term, position: Option<Position>) -> Result<(), Lost> {
    match position {
        Some(position) => fence.commit(&State::new(position, term)).await,
        None => fence.beat().await,
    }
}

/// Returns when the connection broke, however briefly, the candidate is gone, or the election is closed.
async fn interrupted(link: &mut StateWatcher, gone: OneshotWatcher, session: &Session) -> Lost {
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
