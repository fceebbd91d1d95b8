//! ksync-consume: batches of a partition's records to the user's command, the offset after its success.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use log::info;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};

use crate::dead_letter::{DeadLetters, Letter};
use crate::exit::Exit;
use crate::fit::{Skip, Standing};
use crate::handler::{Handler, Pauses};
use crate::intake::{Intake, Limits, OnInvalid, Stop};
use crate::kafka;
use crate::lead::{Checked, Done, End, Held, Leading, Waiting, Work};
use crate::shutdown::Shutdown;
use crate::topic::Offset;

mod by_key;
mod handling;
mod kept;
mod trial;
mod turn;
mod window;

use by_key::ByKey;
use handling::{Handling, Leave};
pub use kept::Kept;
pub(crate) use trial::Step;
pub use trial::{Breaker, Rules};
pub(crate) use turn::Turn;

/// How ksync-consume works on a partition.
pub struct Consume {
    pub handler: Arc<Handler>,
    /// One permit for each handler that may run at once.
    pub jobs: Semaphore,
    /// Among so many handlers a partition's records are split by their keys; `None`: they are one's at a time.
    pub split: Option<usize>,
    pub limits: Limits,
    pub on_invalid: OnInvalid,
    /// Records to be passed without being worked on.
    pub skips: Vec<Skip>,
    pub rules: Rules,
    /// How long to wait after failures.
    pub pauses: Pauses,
    /// Whether a record is done only if the handler says so.
    pub requires_result: bool,
    pub dead_letters: Option<DeadLetters>,
    /// Where the last failing batch of each partition is kept.
    pub kept: Option<Kept>,
    /// After so long without any success a bounded run gives up.
    pub give_up: Option<Duration>,
    /// Set when something went to the dead-letter topic.
    pub has_dead_lettered: Arc<AtomicBool>,
    /// When the handler last succeeded with any record of any partition.
    pub worked: watch::Sender<Option<Instant>>,
}

impl Work for Consume {
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        let partition = held.seat.partition.clone();
        let skips = self.skips.iter().filter(|skip| skip.partition == partition).map(|skip| skip.offset).collect();
        let mut intake = Intake::new(&partition, records, (self.limits, self.on_invalid), (held.until, skips));
        if let Some(handlers) = self.split {
            let (standing, end) = ByKey::new((self, handlers), held, shutdown).work(&mut intake).await;
            held.standing = standing;
            return end;
        }
        let mut turn = Turn::before_the_first(&partition, self.rules, self.pauses);
        let (mut handled, mut proven) = (None, None);
        loop {
            // The next handler is started beside the commit, and given its batch after it: so the time that both take is
            // spent once, and no more than one batch can come again.
            let (committed, going) = oneshot::channel();
            let (standing, next) = {
                let mut committing = pin!(async {
                    let standing = commit(handled.take(), proven, held).await?;
                    committed.send(()).ok(); // There may be no next batch.
                    Ok(standing)
                });
                let mut next = pin!(self.next(&mut intake, (turn, proven), going, held, shutdown));
                tokio::select! {
                    biased;
                    standing = &mut committing => match standing {
                        Ok(standing) => (Ok(standing), next.await),
                        // The next handler was given nothing yet.
                        Err(end) => return end,
                    },
                    next = &mut next => (committing.await, next),
                }
            };
            match standing {
                Ok(standing) => held.standing = standing,
                Err(end) => return end,
            }
            (turn, proven) = match next {
                Ok((turn, proven)) => (turn, Some(proven)),
                Err(end) => return end,
            };
            handled = turn.done();
            if let Some(end) = self.end_after(&turn, held) {
                return match commit(handled, proven, held).await {
                    Ok(standing) => {
                        held.standing = standing;
                        end
                    }
                    Err(end) => end,
                };
            }
        }
    }
}

/// That the topic was still the same when all records before an offset had been fetched: whatever happens to it later,
/// those records are its own.
#[derive(Clone, Copy)]
struct Proven {
    topic: Checked,
    before: Offset,
}

/// Commits what is done.
async fn commit(handled: Option<Done>, proven: Option<Proven>, held: &Held<'_>) -> Result<Standing, End> {
    match (handled, proven) {
        (Some(done), Some(proven)) if done.offset > held.standing.offset => {
            held.commit(held.standing, proven.topic, done).await
        }
        _ => Ok(held.standing),
    }
}

/// Why nothing can be read after this.
fn end_by(stop: &Stop) -> End {
    match stop {
        Stop::Invalid(why) | Stop::Damaged(why) => End::Halted(anyhow!("{why:#}")),
        Stop::OutOfLog => End::OutOfLog,
    }
}

impl Consume {
    /// Works on all partitions that this process leads, until it is told to end or a bounded run is at its end.
    pub async fn run(self, leading: Leading, shutdown: &Shutdown) -> Result<Exit> {
        let (handler, has_dead_lettered) = (self.handler.clone(), self.has_dead_lettered.clone());
        let is_bounded = self.give_up.is_some();
        let ended = leading.run(self, shutdown).await;
        handler.close().await;
        let ended = ended?;
        let is_incomplete = is_bounded && has_dead_lettered.load(Ordering::Relaxed);
        Ok(if ended == Exit::Done && is_incomplete { Exit::DeadLettered } else { ended })
    }

    /// Has the batch done, by the handler once `going` says so or by the dead-letter topic, as far as that can be; where it
    /// is done, waits for the next one, in the memory of this one.
    async fn next(
        &self,
        intake: &mut Intake<'_>,
        (mut turn, proven): (Turn, Option<Proven>),
        going: oneshot::Receiver<()>,
        held: &Held<'_>,
        shutdown: &Shutdown,
    ) -> Result<(Turn, Proven), End> {
        if turn.is_finished() {
            tokio::select! {
                biased;
                why = held.lease.lost() => return Err(End::Lost(why)),
                () = shutdown.requested() => return Err(End::Shutdown),
                () = held.during(Waiting::Records, intake.ready()) => {}
                end = held.topic_changed() => return Err(end),
            }
            turn = Turn::new(intake.take(turn.load), self.rules, self.pauses);
        }
        let (end, fetched) = (turn.load.batch.next(), intake.fetched());
        let work = async {
            let leave = Leave { going: Some(going), permit: None };
            Handling { consume: self, held, shutdown }.go_on(&mut turn, Some(intake), leave).await?;
            self.put_aside(&turn.load.letters, held).await?;
            turn.load.letters.clear();
            Ok(())
        };
        // The topic's id is asked for after the batch was fetched, beside the handler: so it takes no time of its own. The
        // answer counts for all that had been fetched by then, which often is more than one batch. What it says must not
        // end a handler in the middle of its work.
        let prove = async { Ok(self.prove(proven.filter(|proven| end <= Some(proven.before)), fetched, held).await) };
        let ((), proven) = tokio::try_join!(work, prove)?;
        let mut proven = proven?;
        if turn.load.batch.next() > end {
            // It has grown meanwhile.
            proven = self.prove(None, intake.fetched(), held).await?;
        }
        Ok((turn, proven))
    }

    async fn prove(&self, proven: Option<Proven>, fetched: Offset, held: &Held<'_>) -> Result<Proven, End> {
        if let Some(proven) = proven {
            return Ok(proven);
        }
        tokio::select! {
            topic = held.check_topic() => Ok(Proven { topic: topic?, before: fetched }),
            why = held.lease.lost() => Err(End::Lost(why)),
        }
    }

    /// Why nothing follows after this, once it is committed.
    fn end_after(&self, turn: &Turn, held: &Held<'_>) -> Option<End> {
        if !turn.is_finished() {
            return held.until.map(|_| End::Halted(turn.trouble()));
        }
        match &turn.load.stop {
            Some(stop) => Some(end_by(stop)),
            None => (held.until.is_some() && turn.done().map(|done| done.offset) >= held.until).then_some(End::Done),
        }
    }

    async fn put_aside(&self, letters: &[Letter], held: &Held<'_>) -> Result<(), End> {
        if letters.is_empty() {
            return Ok(());
        }
        let origin = &held.seat.partition;
        let Some(dead_letters) = &self.dead_letters else {
            return Err(End::Halted(anyhow!("there is no dead-letter topic")));
        };
        tokio::select! {
            biased;
            why = held.lease.lost() => return Err(End::Lost(why)),
            put = held.during(Waiting::Kafka, dead_letters.put(origin, letters)) => put.map_err(End::Halted)?,
        }
        self.has_dead_lettered.store(true, Ordering::Relaxed);
        info!("{origin}: {} records are in the dead-letter topic", letters.len());
        Ok(())
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.jobs.acquire().await.expect("it is never closed")
    }

    pub(crate) fn worked(&self) -> Option<Instant> {
        *self.worked.borrow()
    }

    pub(crate) fn has_worked(&self, now: Instant) {
        self.worked.send_replace(Some(now));
    }
}
