//! Having a batch worked on by the handler, however often that takes and whatever it makes of it.

use std::future;
use std::time::Duration;

use anyhow::anyhow;
use log::{debug, error, warn};
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Consume;
use super::trial::Step;
use super::turn::Turn;
use crate::handler::{self, Outcome};
use crate::intake::{Intake, Load};
use crate::lead::{Done, End, Held, Waiting};
use crate::mutants::Mutant;
use crate::shutdown::Shutdown;
use crate::topic::TopicPartition;

/// What the first run begins with.
#[derive(Default)]
pub(super) struct Leave<'a> {
    /// It is given its input once this says so; if it cannot be started so soon, the next one is.
    pub going: Option<oneshot::Receiver<()>>,
    /// Where it need not wait for one.
    pub permit: Option<SemaphorePermit<'a>>,
}

/// One partition's batch at the handler.
pub(super) struct Handling<'a> {
    pub consume: &'a Consume,
    pub held: &'a Held<'a>,
    pub shutdown: &'a Shutdown,
}

impl Handling<'_> {
    /// Goes on until all of the batch is done, or to be put aside; or once until it is known that the partition has to
    /// stay before one of its records, so that what lies before can be committed. Reads ahead meanwhile.
    ///
    /// Where nothing is read it also returns once when no records but bad ones are left, which wait for a success of others.
    pub async fn go_on(
        &self,
        turn: &mut Turn,
        mut intake: Option<&mut Intake<'_>>,
        mut leave: Leave<'_>,
    ) -> Result<(), End> {
        loop {
            let (records, pauses) = match turn.trial.next(self.consume.worked()) {
                Step::Run { records, pauses } => (records, pauses),
                Step::Finished { bad } => return turn.put_aside(&bad).map_err(End::Halted),
            };
            let stays_before = turn.trial.stays_before();
            if std::mem::replace(&mut turn.stays_before, stays_before) != stays_before && stays_before.is_some() {
                return Ok(());
            }
            let waits = intake.is_none() && turn.trial.waits_for_proof();
            if std::mem::replace(&mut turn.waits, waits) != waits && waits {
                return Ok(());
            }
            if self.wait(turn, intake.as_deref_mut(), (&records, pauses)).await? {
                continue;
            }
            let attempt = turn.trial.runs(records[0]) + 1;
            if Mutant::CommitsFirst.is_on() {
                self.commit_undone(turn).await?;
            }
            let outcome = {
                let run = self.run(turn, &records, attempt, &mut leave);
                tokio::select! {
                    biased;
                    outcome = run => outcome?,
                    never = read_on(intake.as_deref_mut()) => never,
                    () = self.shutdown.requested(), if Mutant::CommitsAtStop.is_on() => {
                        self.commit_undone(turn).await?;
                        return Err(End::Shutdown);
                    }
                }
            };
            self.take_in(turn, &records, outcome).await?;
        }
    }

    /// What only a mutant does.
    async fn commit_undone(&self, turn: &Turn) -> Result<(), End> {
        let Some(offset) = turn.load.batch.next() else { return Ok(()) };
        let done = Done { offset, leader_epoch: None, last: None, skipped: None };
        self.held.commit(self.held.standing, self.held.check_topic().await?, done).await.map(drop)
    }

    /// Tells what came of the run before, and waits if that is called for. Whether the batch has grown meanwhile.
    async fn wait(
        &self,
        turn: &mut Turn,
        mut intake: Option<&mut Intake<'_>>,
        (records, pauses): (&[usize], bool),
    ) -> Result<bool, End> {
        let longest = self.consume.pauses.longest;
        let pause = match turn.pause.take() {
            _ if !pauses => Duration::ZERO,
            Some(pause) => pause.min(longest),
            None => turn.backoff.next_pause(),
        };
        let failed = turn.failed.take();
        if pauses && self.consume.give_up.is_some_and(|limit| turn.begun.elapsed() + pause > limit) {
            return Err(End::GaveUp(failed.map_or_else(|| anyhow!("the handler fails"), |fault| anyhow!("{fault}"))));
        }
        let seat = &self.held.seat;
        match (failed, turn.stays_before) {
            (None, _) => {}
            (Some(failed), Some(index)) if turn.trial.is_breaker_open() => error!(
                "{seat}: {failed}; so many records fail that the fault may not be theirs: none is put aside until the one at \
                 offset {} works; trying it again in {:.1} s",
                turn.load.batch.offset(index),
                pause.as_secs_f64()
            ),
            (Some(_), Some(index)) => error!(
                "{seat}: halted at offset {}: {}; trying again in {:.1} s",
                turn.load.batch.offset(index),
                turn.trouble(),
                pause.as_secs_f64()
            ),
            (Some(failed), None) if pauses => {
                warn!("{seat}: {failed}; trying again in {:.1} s", pause.as_secs_f64());
            }
            (Some(failed), None) => {
                let next = records.first().map_or(0, |index| turn.load.batch.offset(*index).0);
                warn!("{seat}: {failed}; next are {} records from offset {next}", records.len());
            }
        }
        if let Some(kept) = &self.consume.kept {
            kept.tell(&mut turn.keeping, seat);
        }
        if !pauses {
            return Ok(false);
        }
        let until = Instant::now() + pause;
        let pausing = match turn.stays_before {
            Some(_) => Waiting::Halted { why: turn.trouble().to_string(), until },
            None => Waiting::Pause(until),
        };
        // A lone bad record must not hold those that come after it: what they do shows whether the store works.
        let grows = turn.trial.waits_for_proof() && turn.load.stop.is_none() && self.may_grow(&turn.load);
        let mut over = std::pin::pin!(self.held.during(pausing, sleep_until(until)));
        loop {
            tokio::select! {
                () = &mut over => return Ok(false),
                why = self.held.lease.lost() => return Err(End::Lost(why)),
                () = self.shutdown.requested() => return Err(End::Shutdown),
                more = next_load(intake.as_deref_mut().filter(|_| grows), self.held.partition()) => {
                    let has_grown = !more.batch.is_empty() || more.stop.is_some();
                    turn.trial.extend(more.batch.len());
                    turn.load.append(more);
                    // Of nothing but what nobody is given many may come, and none of them is a reason to wait anew.
                    if has_grown {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Whether another load may be added to it: as long as it is small, or has too few records for the breaker.
    fn may_grow(&self, load: &Load) -> bool {
        let (limits, records) = (self.consume.limits, load.batch.len());
        let is_small = records * 2 <= limits.records || records <= self.consume.rules.breaker.failures;
        is_small && (records == 1 || load.bytes() * 2 <= limits.bytes)
    }

    async fn run(&self, turn: &Turn, records: &[usize], attempt: u32, leave: &mut Leave<'_>) -> Result<Outcome, End> {
        let permit = match leave.permit.take() {
            Some(permit) => permit,
            None => tokio::select! {
                permit = self.held.during(Waiting::Slot, self.consume.permit()) => permit,
                why = self.held.lease.lost() => return Err(End::Lost(why)),
                () = self.shutdown.requested() => return Err(End::Shutdown),
            },
        };
        let (id, source) = (handler::new_id(), self.held.partition());
        let batch = &turn.load.batch;
        let (first, last) = (batch.offset(records[0]), batch.offset(records[records.len() - 1]));
        let told = handler::Batch {
            source,
            name: &self.held.seat.name,
            count: records.len(),
            first,
            last,
            attempt,
            term: self.held.lease.term().0.unsigned_abs(),
            id: &id,
        };
        let lines = turn.lines(records);
        let go = async {
            let Some(going) = &mut leave.going else { return true };
            let goes = going.await.is_ok();
            // Whoever comes later need not ask.
            leave.going = None;
            goes
        };
        let stop = async {
            self.held.lease.lost().await;
            Instant::now() + self.held.lease.grace()
        };
        let begun = Instant::now();
        let at_it = Waiting::Handler { first, last, attempt };
        let outcome = self.held.during(at_it, self.consume.handler.run(&told, &lines, go, stop)).await;
        drop(permit);
        debug!("{source}: {} records from {first} in {:?}: {outcome:?}", records.len(), begun.elapsed());
        Ok(outcome)
    }

    /// Learns from how a run ended.
    async fn take_in(&self, turn: &mut Turn, records: &[usize], outcome: Outcome) -> Result<(), End> {
        let ran = match outcome {
            Outcome::Stopped if self.held.lease.is_held() => {
                return Err(End::Again(anyhow!("the batch before could not be committed")));
            }
            Outcome::Stopped => return Err(End::Lost(self.held.lease.lost().await)),
            Outcome::Done(report) => Ok(report),
            Outcome::Failed(failed) => Err(failed),
        };
        let now = std::time::Instant::now();
        let times = (now, self.consume.worked());
        let works = turn.take_in(records, ran, times, self.consume.requires_result);
        if let (Some(kept), Some(_)) = (&self.consume.kept, &turn.failed) {
            let is_kept = kept.keep(&self.held.seat, turn.lines(records).into_owned()).await;
            turn.keeping.or_now(is_kept);
        }
        if works.map_err(End::Misconfigured)? {
            self.consume.has_worked(now);
        }
        Ok(())
    }
}

/// Reads ahead for as long as it is polled.
async fn read_on<T>(intake: Option<&mut Intake<'_>>) -> T {
    match intake {
        Some(intake) => intake.fill_on().await,
        None => future::pending().await,
    }
}

async fn next_load(intake: Option<&mut Intake<'_>>, partition: &TopicPartition) -> Load {
    match intake {
        Some(intake) => {
            intake.ready().await;
            intake.take(Load::new(partition))
        }
        None => future::pending().await,
    }
}
