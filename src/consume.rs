//! ksync-consume: batches of a partition's records to the user's command, the offset after its success.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use log::{debug, info, warn};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep};

use crate::dead_letter::DeadLetters;
use crate::fit::Standing;
use crate::handler::{self, Backoff, Command, Input, Outcome};
use crate::intake::{Intake, Limits, Load, OnInvalid, Stop};
use crate::kafka;
use crate::lead::{Checked, Done, End, Held, Work};
use crate::record::Batch;
use crate::shutdown::Shutdown;
use crate::topic::Offset;

/// How ksync-consume works on a partition.
pub struct Consume {
    pub handler: Command,
    /// One permit for each handler that may run at once.
    pub jobs: Semaphore,
    pub limits: Limits,
    pub on_invalid: OnInvalid,
    pub dead_letters: Option<DeadLetters>,
    /// After so long without any success a bounded run gives up.
    pub give_up: Option<Duration>,
    /// Set when something went to the dead-letter topic.
    pub has_dead_lettered: Arc<AtomicBool>,
}

impl Work for Consume {
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        let partition = held.seat.partition.clone();
        let mut intake = Intake::new(&partition, records, (self.limits, self.on_invalid), held.until);
        let mut load = Load::new(&partition);
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
                let mut next = pin!(self.next(&mut intake, (load, proven), going, held, shutdown));
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
            (load, proven) = match next {
                Ok((load, proven)) => (load, Some(proven)),
                Err(end) => return end,
            };
            handled = load.done();
            let is_last = held.until.is_some_and(|until| handled.is_some_and(|done| done.offset >= until));
            if is_last || load.stop.is_some() {
                match commit(handled, proven, held).await {
                    Ok(standing) => held.standing = standing,
                    Err(end) => return end,
                }
                return match load.stop {
                    None => End::Done,
                    Some(Stop::Invalid(why)) => End::Halted(why),
                    Some(Stop::OutOfLog) => End::Again(anyhow!("the offset is not in the log any more")),
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
        (Some(done), Some(proven)) if done.offset > held.standing.offset => held.commit(proven.topic, done).await,
        _ => Ok(held.standing),
    }
}

impl Consume {
    /// Waits for a batch and has it done: by the handler, once `going` says so, or by the dead-letter topic.
    async fn next(
        &self,
        intake: &mut Intake<'_>,
        (spare, proven): (Load, Option<Proven>),
        going: oneshot::Receiver<()>,
        held: &Held<'_>,
        shutdown: &Shutdown,
    ) -> Result<(Load, Proven), End> {
        tokio::select! {
            biased;
            why = held.lease.lost() => return Err(End::Lost(why)),
            () = shutdown.requested() => return Err(End::Shutdown),
            () = intake.ready() => {}
            end = held.topic_changed() => return Err(end),
        }
        let load = intake.take(spare);
        let fetched = intake.fetched();
        let work = async {
            if !load.batch.is_empty() {
                let work = self.handle(&load.batch, going, held, shutdown);
                tokio::select! {
                    biased;
                    handled = work => handled?,
                    never = intake.fill_on() => never,
                }
            }
            self.put_aside(&load, held).await
        };
        // The topic's id is asked for after the batch was fetched, beside the handler: so it takes no time of its own. The
        // answer counts for all that had been fetched by then, which often is more than one batch. What it says must not
        // end a handler in the middle of its work.
        let prove = async {
            match proven {
                Some(proven) if load.batch.next() <= Some(proven.before) => Ok(Ok(proven)),
                _ => tokio::select! {
                    checked = held.check_topic() => Ok(checked.map(|topic| Proven { topic, before: fetched })),
                    why = held.lease.lost() => Ok(Err(End::Lost(why))),
                },
            }
        };
        let ((), proven) = tokio::try_join!(work, prove)?;
        Ok((load, proven?))
    }

    /// Has the handler work on the batch, however often that takes.
    async fn handle(
        &self,
        batch: &Batch,
        going: oneshot::Receiver<()>,
        held: &Held<'_>,
        shutdown: &Shutdown,
    ) -> Result<(), End> {
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        let mut going = Some(going);
        for attempt in 1.. {
            let permit = tokio::select! {
                permit = self.jobs.acquire() => permit.context("no handler may run").map_err(End::Halted)?,
                why = held.lease.lost() => return Err(End::Lost(why)),
                () = shutdown.requested() => return Err(End::Shutdown),
            };
            let outcome = self.run(batch, attempt, going.take(), held).await;
            drop(permit);
            let failure = match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Stopped if held.lease.is_held() => {
                    return Err(End::Again(anyhow!("the batch before could not be committed")));
                }
                Outcome::Stopped => return Err(End::Lost(held.lease.lost().await)),
                Outcome::Failed(failure) => failure,
            };
            let pause = backoff.next_pause();
            let (first, last) = batch.range().unwrap_or((held.standing.offset, held.standing.offset));
            let what = format!("the handler failed at offsets {first} to {last}, attempt {attempt}: {failure}");
            if self.give_up.is_some_and(|limit| begun.elapsed() + pause > limit) {
                return Err(End::GaveUp(anyhow!(what)));
            }
            warn!("{}: {what}; trying again in {:.1} s", held.seat, pause.as_secs_f64());
            tokio::select! {
                () = sleep(pause) => {}
                why = held.lease.lost() => return Err(End::Lost(why)),
                () = shutdown.requested() => return Err(End::Shutdown),
            }
        }
        unreachable!("attempts do not end")
    }

    async fn run(&self, batch: &Batch, attempt: u32, going: Option<oneshot::Receiver<()>>, held: &Held<'_>) -> Outcome {
        let Some((first, last)) = batch.range() else {
            return Outcome::Done;
        };
        let (id, source) = (format!("{:016x}", rand::random::<u64>()), &held.seat.partition);
        let told = handler::Batch {
            source,
            name: &held.seat.name,
            count: batch.len(),
            first,
            last,
            attempt,
            term: held.lease.term().0.unsigned_abs(),
            id: &id,
        };
        let label = source.to_string();
        let input = Input { label: &label, lines: batch.lines(), environment: &told.environment() };
        let go = async {
            match going {
                Some(going) => going.await.is_ok(),
                None => true,
            }
        };
        let stop = async {
            held.lease.lost().await;
            Instant::now() + held.lease.grace()
        };
        let begun = Instant::now();
        let outcome = self.handler.run(input, go, stop).await;
        debug!("{source}: {} records from {first} in {:?}: {outcome:?}", batch.len(), begun.elapsed());
        outcome
    }

    async fn put_aside(&self, load: &Load, held: &Held<'_>) -> Result<(), End> {
        if load.letters.is_empty() {
            return Ok(());
        }
        let origin = &held.seat.partition;
        let Some(dead_letters) = &self.dead_letters else {
            return Err(End::Halted(anyhow!("there is no dead-letter topic")));
        };
        tokio::select! {
            biased;
            why = held.lease.lost() => return Err(End::Lost(why)),
            put = dead_letters.put(origin, &load.letters) => put.map_err(End::Halted)?,
        }
        self.has_dead_lettered.store(true, Ordering::Relaxed);
        info!("{origin}: {} records are in the dead-letter topic", load.letters.len());
        Ok(())
    }
}
