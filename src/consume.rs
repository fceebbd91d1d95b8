//! ksync-consume: batches of a partition's records to the user's command, the offset after its success.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use log::{debug, info, warn};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::dead_letter::DeadLetters;
use crate::handler::{self, Backoff, Command, Input, Outcome};
use crate::intake::{Intake, Limits, Load, OnInvalid, Stop};
use crate::kafka;
use crate::lead::{Done, End, Held, Work};
use crate::record::Batch;
use crate::shutdown::Shutdown;

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
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held, shutdown: &Shutdown) -> End {
        let partition = held.seat.partition.clone();
        let mut intake = Intake::new(&partition, records, (self.limits, self.on_invalid), held.until);
        let mut spare = Load::new(&partition);
        loop {
            tokio::select! {
                biased;
                why = held.lease.lost() => return End::Lost(why),
                () = shutdown.requested() => return End::Shutdown,
                () = intake.ready() => {}
            }
            let load = intake.take(spare);
            if let Err(end) = self.settle(&load, &mut intake, held, shutdown).await {
                return end;
            }
            match load.stop {
                Some(Stop::Invalid(why)) => return End::Halted(why),
                Some(Stop::OutOfLog) => return End::Again(anyhow!("the offset is not in the log any more")),
                None if held.is_done() => return End::Done,
                None => spare = load,
            }
        }
    }
}

impl Consume {
    /// Has the batch handled, however often that takes, puts its letters into the dead-letter topic, and commits.
    async fn settle(
        &self,
        load: &Load,
        intake: &mut Intake<'_>,
        held: &mut Held,
        shutdown: &Shutdown,
    ) -> Result<(), End> {
        let batch = &load.batch;
        let Some(offset) = batch.next().filter(|next| *next > held.standing.offset) else {
            return Ok(());
        };
        let handled = async {
            if !batch.is_empty() {
                self.handle(batch, intake, held, shutdown).await?;
            }
            self.put_aside(load, held).await
        };
        // The question must be asked after the batch was read; it takes no time of its own beside the handler.
        let asked = async {
            tokio::select! {
                checked = held.check_topic() => checked,
                why = held.lease.lost() => Err(End::Lost(why)),
            }
        };
        let (handled, checked) = tokio::join!(handled, asked);
        handled?;
        let done = Done { offset, leader_epoch: batch.leader_epoch(), last: batch.last() };
        held.commit(checked?, done).await
    }

    async fn handle(
        &self,
        batch: &Batch,
        intake: &mut Intake<'_>,
        held: &Held,
        shutdown: &Shutdown,
    ) -> Result<(), End> {
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        for attempt in 1.. {
            let run = async {
                let _permit = tokio::select! {
                    permit = self.jobs.acquire() => permit.context("no handler may run").map_err(End::Halted)?,
                    why = held.lease.lost() => return Err(End::Lost(why)),
                    () = shutdown.requested() => return Err(End::Shutdown),
                };
                Ok(self.run(batch, attempt, held).await)
            };
            let outcome = tokio::select! {
                outcome = run => outcome?,
                never = intake.fill_on() => never,
            };
            let failure = match outcome {
                Outcome::Done => return Ok(()),
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

    async fn run(&self, batch: &Batch, attempt: u32, held: &Held) -> Outcome {
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
        let stop = async {
            held.lease.lost().await;
            Instant::now() + held.lease.grace()
        };
        let begun = Instant::now();
        let outcome = self.handler.run(input, stop).await;
        debug!("{source}: {} records from {first} in {:?}: {outcome:?}", batch.len(), begun.elapsed());
        outcome
    }

    async fn put_aside(&self, load: &Load, held: &Held) -> Result<(), End> {
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
