//! Having a batch worked on by the handler, however often that takes and whatever it makes of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use log::{debug, error, info, warn};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::Consume;
use super::trial::{Blame, Named, Ran, Step, Trial};
use crate::dead_letter::{Letter, Reason};
use crate::handler::{self, Backoff, Failed, Failure, Input, Kind, Outcome, Report, Said};
use crate::intake::{Intake, Load};
use crate::lead::{Done, End, Held};
use crate::record::Batch;
use crate::shutdown::Shutdown;
use crate::topic::TopicPartition;

/// A batch and what is known of its records.
pub(super) struct Turn {
    pub load: Load,
    trial: Trial,
    backoff: Backoff,
    begun: Instant,
    /// Why the last run failed; told once it is known what follows.
    failed: Option<String>,
    /// Of records that stood alone, or that the handler named.
    reasons: BTreeMap<usize, Reason>,
    /// The record that the partition stays before, and that its batch was left for once.
    stays_before: Option<usize>,
    is_finished: bool,
}

impl Turn {
    pub fn new(load: Load, consume: &Consume) -> Turn {
        let (trial, backoff) = (Trial::new(load.batch.len(), consume.rules), Backoff::new(consume.pauses));
        let reasons = BTreeMap::new();
        Turn {
            load,
            trial,
            backoff,
            begun: Instant::now(),
            failed: None,
            reasons,
            stays_before: None,
            is_finished: false,
        }
    }

    /// A batch of nothing, which is done.
    pub fn before_the_first(partition: &TopicPartition, consume: &Consume) -> Turn {
        Turn { is_finished: true, ..Turn::new(Load::new(partition), consume) }
    }

    /// How far the partition is done; `None` where it is no further than before.
    pub fn done(&self) -> Option<Done> {
        match self.is_finished {
            true => self.load.done(),
            // Not where it stays: a record before that may have to come again.
            false => self.load.done_before(self.trial.first_not_done()?),
        }
    }

    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// What a person is told of the record that the partition stays before.
    pub fn trouble(&self) -> anyhow::Error {
        let (offset, why) = match self.stays_before {
            Some(index) => (self.load.batch.offset(index), self.reasons.get(&index)),
            None => return anyhow!("the handler fails"),
        };
        let why = why.map_or_else(|| "failed".to_owned(), |reason| reason.error.clone());
        anyhow!(
            "the handler cannot work on the record at offset {offset}: {why}; mend it, or let --dead-letter put such records \
             aside, or pass this one by --skip {}@{offset}",
            self.load.batch.partition()
        )
    }
}

/// One partition's batch at the handler.
pub(super) struct Handling<'a> {
    pub consume: &'a Consume,
    pub held: &'a Held<'a>,
    pub shutdown: &'a Shutdown,
}

impl Handling<'_> {
    /// Goes on until all of the batch is done, or to be put aside; or once until it is known that the partition has to
    /// stay before one of its records, so that what lies before can be committed.
    ///
    /// The first run is given its input once `going` says so.
    pub async fn go_on(
        &self,
        turn: &mut Turn,
        intake: &mut Intake<'_>,
        going: oneshot::Receiver<()>,
    ) -> Result<(), End> {
        let mut going = Some(going);
        loop {
            let (records, pauses) = match turn.trial.next(self.consume.worked()) {
                Step::Run { records, pauses } => (records, pauses),
                Step::Finished { bad } => {
                    self.put_aside(turn, &bad).map_err(End::Halted)?;
                    turn.is_finished = true;
                    return Ok(());
                }
            };
            let stays_before = turn.trial.stays_before();
            if std::mem::replace(&mut turn.stays_before, stays_before) != stays_before && stays_before.is_some() {
                return Ok(());
            }
            if self.wait(turn, intake, (&records, pauses)).await? {
                continue;
            }
            let attempt = turn.trial.runs(records[0]) + 1;
            let outcome = {
                let run = self.run(&turn.load.batch, &records, attempt, going.take());
                tokio::select! {
                    biased;
                    outcome = run => outcome?,
                    never = intake.fill_on() => never,
                }
            };
            self.take_in(turn, &records, outcome).await?;
        }
    }

    /// Tells what came of the run before, and waits if that is called for. Whether the batch has grown meanwhile.
    async fn wait(
        &self,
        turn: &mut Turn,
        intake: &mut Intake<'_>,
        (records, pauses): (&[usize], bool),
    ) -> Result<bool, End> {
        let pause = if pauses { turn.backoff.next_pause() } else { Duration::ZERO };
        let failed = turn.failed.take();
        if pauses && self.consume.give_up.is_some_and(|limit| turn.begun.elapsed() + pause > limit) {
            return Err(End::GaveUp(anyhow!(failed.unwrap_or_else(|| "the handler fails".to_owned()))));
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
        if !pauses {
            return Ok(false);
        }
        // A lone bad record must not hold those that come after it: what they do shows whether the store works.
        let grows = turn.trial.waits_for_proof() && turn.load.stop.is_none() && self.may_grow(&turn.load);
        tokio::select! {
            () = sleep(pause) => Ok(false),
            why = self.held.lease.lost() => Err(End::Lost(why)),
            () = self.shutdown.requested() => Err(End::Shutdown),
            () = intake.ready(), if grows => {
                let more = intake.take(Load::new(self.held.partition()));
                turn.trial.extend(more.batch.len());
                turn.load.append(more);
                Ok(true)
            }
        }
    }

    /// Whether another load may be added to it: as long as it is small, or has too few records for the breaker.
    fn may_grow(&self, load: &Load) -> bool {
        let (limits, records) = (self.consume.limits, load.batch.len());
        let is_small = records * 2 <= limits.records || records <= self.consume.rules.breaker.failures;
        is_small && (records == 1 || load.bytes() * 2 <= limits.bytes)
    }

    async fn run(
        &self,
        batch: &Batch,
        records: &[usize],
        attempt: u32,
        going: Option<oneshot::Receiver<()>>,
    ) -> Result<Outcome, End> {
        let permit = tokio::select! {
            permit = self.consume.jobs.acquire() => permit.context("no handler may run").map_err(End::Halted)?,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
            () = self.shutdown.requested() => return Err(End::Shutdown),
        };
        let (id, source) = (format!("{:016x}", rand::random::<u64>()), self.held.partition());
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
        let (label, lines) = (source.to_string(), lines(batch, records));
        let input = Input { label: &label, lines: &lines, environment: &told.environment() };
        let go = async {
            match going {
                Some(going) => going.await.is_ok(),
                None => true,
            }
        };
        let stop = async {
            self.held.lease.lost().await;
            Instant::now() + self.held.lease.grace()
        };
        let begun = Instant::now();
        let outcome = self.consume.handler.run(input, go, stop).await;
        drop(permit);
        debug!("{source}: {} records from {first} in {:?}: {outcome:?}", records.len(), begun.elapsed());
        Ok(outcome)
    }

    /// Learns from how a run ended.
    async fn take_in(&self, turn: &mut Turn, records: &[usize], outcome: Outcome) -> Result<(), End> {
        let outcome = self.checked(&turn.load.batch, records, outcome);
        let (ran, works) = match outcome {
            Outcome::Stopped if self.held.lease.is_held() => {
                return Err(End::Again(anyhow!("the batch before could not be committed")));
            }
            Outcome::Stopped => return Err(End::Lost(self.held.lease.lost().await)),
            Outcome::Done(report) => {
                let failed = self.named(turn, records, &report);
                turn.failed =
                    (!failed.is_empty()).then(|| format!("the handler named {} failed records", failed.len()));
                let works = failed.len() < records.len();
                (Ran::Done { failed }, works)
            }
            Outcome::Failed(Failed { failure, report, stderr }) => {
                let failed = self.named(turn, records, &report);
                turn.failed = Some(what_failed(turn, records, &failure));
                let blame = match failure.kind() {
                    Kind::Permanent => Blame::RecordsForEver,
                    Kind::Failed => Blame::Records,
                    Kind::Misconfigured if self.consume.worked().is_none() => {
                        return Err(End::Misconfigured(anyhow!(
                            "the handler ended with {failure} before it ever succeeded, which means that it is not set up as it \
                             has to be: look at its command line, its rights, its interpreter and its settings"
                        )));
                    }
                    Kind::Temporary | Kind::Misconfigured => Blame::Circumstances,
                };
                if let [alone] = records {
                    turn.reasons.insert(*alone, Reason { error: failure.to_string(), attempts: 0, stderr });
                }
                let ok = report.records.iter().filter(|(_, said)| **said == Said::Ok);
                let ok: Vec<_> = ok.filter_map(|(offset, _)| turn.load.batch.find(*offset)).collect();
                let works = !ok.is_empty();
                (Ran::Failed { blame, ok, failed }, works)
            }
        };
        let now = std::time::Instant::now();
        let batch = &turn.load.batch;
        turn.trial.ended(records, &ran, (now, self.consume.worked()), |index| batch.later_of_its_key(index));
        if works {
            self.consume.has_worked(now);
            turn.backoff.reset();
        }
        Ok(())
    }

    /// The outcome, unless what it reports cannot be.
    fn checked(&self, batch: &Batch, records: &[usize], outcome: Outcome) -> Outcome {
        let report = match &outcome {
            Outcome::Done(report) => report,
            Outcome::Failed(failed) => &failed.report,
            Outcome::Stopped => return outcome,
        };
        let is_known = |offset| batch.find(offset).is_some_and(|index| records.binary_search(&index).is_ok());
        if let Some((unknown, _)) = report.records.iter().find(|(offset, _)| !is_known(**offset)) {
            return Failure::Report(anyhow!("the results name offset {unknown}, which is not in the batch")).into();
        }
        let silent = records.len() - report.records.len();
        match outcome {
            Outcome::Done(report) if self.consume.requires_result && silent > 0 => {
                let why = anyhow!("exit status 0, but nothing was said of {silent} records (--require-result)");
                Outcome::Failed(Failed { failure: Failure::Report(why), report, stderr: vec![] })
            }
            outcome => outcome,
        }
    }

    /// The records that the handler calls failed.
    fn named(&self, turn: &mut Turn, records: &[usize], report: &Report) -> Vec<Named> {
        let mut named = vec![];
        for (offset, said) in &report.records {
            let (Said::Failed { error, is_permanent }, Some(index)) = (said, turn.load.batch.find(*offset)) else {
                continue;
            };
            debug_assert!(records.contains(&index));
            let error = if error.is_empty() { "the handler says that it failed".to_owned() } else { error.clone() };
            turn.reasons.insert(index, Reason { error, attempts: 0, stderr: vec![] });
            named.push(Named { index, is_permanent: *is_permanent });
        }
        named
    }

    fn put_aside(&self, turn: &mut Turn, bad: &[usize]) -> anyhow::Result<()> {
        for index in bad {
            let mut reason = turn.reasons.remove(index).unwrap_or_default();
            reason.attempts = turn.trial.runs(*index);
            let offset = turn.load.batch.offset(*index);
            let original = turn.load.batch.original(*index);
            let original = original.with_context(|| format!("cannot read back the record at offset {offset}"))?;
            turn.load.letters.push(Letter::of_original(offset, original, reason));
        }
        turn.load.letters.sort_by_key(Letter::offset);
        if !bad.is_empty() {
            info!("{}: {} records stood alone and failed", self.held.seat, bad.len());
        }
        Ok(())
    }
}

/// The lines of some of the batch's records.
fn lines<'b>(batch: &'b Batch, records: &[usize]) -> Cow<'b, [u8]> {
    let (first, last) = (records[0], records[records.len() - 1]);
    match last - first + 1 == records.len() {
        true => Cow::Borrowed(batch.lines_of(first..last + 1)),
        false => Cow::Owned(batch.gather(records)),
    }
}

fn what_failed(turn: &Turn, records: &[usize], failure: &Failure) -> String {
    let batch = &turn.load.batch;
    let (first, last) = (batch.offset(records[0]), batch.offset(records[records.len() - 1]));
    let attempt = turn.trial.runs(records[0]) + 1;
    format!("the handler failed at offsets {first} to {last}, attempt {attempt}: {failure}")
}
