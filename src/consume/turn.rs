//! A batch, what its runs came to, and what is made of that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use log::info;

use super::kept::Keeping;
use super::trial::{Blame, Named, Ran, Rules, Trial};
use crate::dead_letter::{Letter, Reason};
use crate::handler::{Backoff, Failed, Failure, Kind, Pauses, Report, Said};
use crate::intake::Load;
use crate::lead::Done;
use crate::topic::TopicPartition;

/// A batch and what is known of its records.
pub struct Turn {
    pub load: Load,
    pub trial: Trial,
    pub backoff: Backoff,
    /// How long the handler itself wants to wait.
    pub pause: Option<Duration>,
    pub begun: Instant,
    /// Why the last run failed; told once it is known what follows.
    pub failed: Option<Fault>,
    /// Whether a run that failed is kept as a file.
    pub keeping: Keeping,
    /// Of records that stood alone, or that the handler named.
    reasons: BTreeMap<usize, Reason>,
    /// The record that the partition stays before, and that its batch was left for once.
    pub stays_before: Option<usize>,
    /// Whether nothing is left but bad records that wait for a success of others.
    pub waits: bool,
    is_finished: bool,
}

/// What was wrong with a run.
#[derive(Debug)]
pub struct Fault {
    /// Which run it was: `the handler failed at offsets 42 to 57, attempt 1`.
    run: Option<String>,
    pub why: String,
}

impl Turn {
    pub fn new(load: Load, rules: Rules, pauses: Pauses) -> Turn {
        let (trial, backoff) = (Trial::new(load.batch.len(), rules), Backoff::new(pauses));
        let reasons = BTreeMap::new();
        Turn {
            load,
            trial,
            backoff,
            pause: None,
            begun: Instant::now(),
            failed: None,
            keeping: Keeping::None,
            reasons,
            stays_before: None,
            waits: false,
            is_finished: false,
        }
    }

    /// A batch of nothing, which is done.
    pub fn before_the_first(partition: &TopicPartition, rules: Rules, pauses: Pauses) -> Turn {
        Turn { is_finished: true, ..Turn::new(Load::new(partition), rules, pauses) }
    }

    /// How far the partition is done; `None` where it is no further than before.
    pub fn done(&self) -> Option<Done> {
        match self.is_finished {
            true => self.load.done(),
            // Not where it stays: a record before that may have to come again.
            false => self.load.done_before(self.trial.first_not_done()?),
        }
    }

    /// Learns from how a run of these records ended; `worked` is when the handler last succeeded before. Whether it
    /// succeeded with any record.
    ///
    /// Fails where the handler is not set up as it has to be, so that no record can be worked on.
    pub fn take_in(
        &mut self,
        records: &[usize],
        ran: Result<Report, Failed>,
        (now, worked): (Instant, Option<Instant>),
        requires_result: bool,
    ) -> anyhow::Result<bool> {
        let (ran, works) = match self.checked(records, ran, requires_result) {
            Ok(report) => {
                let failed = self.named(records, &report);
                let why = || format!("the handler named {} failed records", failed.len());
                self.failed = (!failed.is_empty()).then(|| Fault { run: None, why: why() });
                let works = failed.len() < records.len();
                (Ran::Done { failed }, works)
            }
            Err(Failed { failure, report, stderr }) => {
                let failed = self.named(records, &report);
                self.failed = Some(self.what_failed(records, &failure));
                self.pause = failure.pause();
                let blame = match failure.kind() {
                    Kind::Permanent => Blame::RecordsForEver,
                    Kind::Failed => Blame::Records,
                    Kind::Misconfigured if worked.is_none() => bail!(
                        "the handler failed before it ever succeeded: {failure}. It is not set up as it has to be: look at its command \
                         line, its rights, its interpreter and its settings"
                    ),
                    Kind::Temporary | Kind::Misconfigured => Blame::Circumstances,
                };
                if let [alone] = records {
                    self.reasons.insert(*alone, Reason { error: failure.to_string(), attempts: 0, stderr });
                }
                let ok = report.records.iter().filter(|(_, said)| **said == Said::Ok);
                let ok: Vec<_> = ok.filter_map(|(offset, _)| self.load.batch.find(*offset)).collect();
                let works = !ok.is_empty();
                (Ran::Failed { blame, ok, failed }, works)
            }
        };
        let batch = &self.load.batch;
        self.trial.ended(records, &ran, (now, worked), |index| batch.later_of_its_key(index));
        if works {
            self.backoff.reset();
        }
        Ok(works)
    }

    /// How the run ended, unless what it reports cannot be.
    fn checked(&self, records: &[usize], ran: Result<Report, Failed>, requires_result: bool) -> Result<Report, Failed> {
        let report = match &ran {
            Ok(report) => report,
            Err(failed) => &failed.report,
        };
        let is_known = |offset| self.load.batch.find(offset).is_some_and(|index| records.binary_search(&index).is_ok());
        if let Some((unknown, _)) = report.records.iter().find(|(offset, _)| !is_known(**offset)) {
            return Err(Failure::Report(anyhow!("the results name offset {unknown}, which is not in the batch")).into());
        }
        let silent = records.len() - report.records.len();
        match ran {
            Ok(report) if requires_result && silent > 0 => {
                let why = anyhow!("exit status 0, but nothing was said of {silent} records (--require-result)");
                Err(Failed { failure: Failure::Report(why), report, stderr: vec![] })
            }
            ran => ran,
        }
    }

    /// The records that the handler calls failed.
    fn named(&mut self, records: &[usize], report: &Report) -> Vec<Named> {
        let mut named = vec![];
        for (offset, said) in &report.records {
            let (Said::Failed { error, is_permanent }, Some(index)) = (said, self.load.batch.find(*offset)) else {
                continue;
            };
            debug_assert!(records.contains(&index));
            let error = if error.is_empty() { "the handler says that it failed".to_owned() } else { error.clone() };
            self.reasons.insert(index, Reason { error, attempts: 0, stderr: vec![] });
            named.push(Named { index, is_permanent: *is_permanent });
        }
        named
    }

    fn what_failed(&self, records: &[usize], failure: &Failure) -> Fault {
        let batch = &self.load.batch;
        let (first, last) = (batch.offset(records[0]), batch.offset(records[records.len() - 1]));
        let attempt = self.trial.runs(records[0]) + 1;
        let run = format!("the handler failed at offsets {first} to {last}, attempt {attempt}");
        Fault { run: Some(run), why: failure.to_string() }
    }

    /// It is gone through: the bad ones become letters.
    pub fn put_aside(&mut self, bad: &[usize]) -> anyhow::Result<()> {
        for index in bad {
            let mut reason = self.reasons.remove(index).unwrap_or_default();
            reason.attempts = self.trial.runs(*index);
            let offset = self.load.batch.offset(*index);
            let original = self.load.batch.original(*index);
            let original = original.with_context(|| format!("cannot read back the record at offset {offset}"))?;
            self.load.letters.push(Letter::of_original(offset, original, reason));
        }
        self.load.letters.sort_by_key(Letter::offset);
        self.is_finished = true;
        if !bad.is_empty() {
            info!("{}: {} records stood alone and failed", self.load.batch.partition(), bad.len());
        }
        Ok(())
    }

    /// The lines of some of its records.
    pub fn lines(&self, records: &[usize]) -> Cow<'_, [u8]> {
        let batch = &self.load.batch;
        let (first, last) = (records[0], records[records.len() - 1]);
        match last - first + 1 == records.len() {
            true => Cow::Borrowed(batch.lines_of(first..last + 1)),
            false => Cow::Owned(batch.gather(records)),
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.run {
            Some(run) => write!(f, "{run}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}
