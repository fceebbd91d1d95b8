//! A worker through all of the protocol, on records that are made up: which rules it keeps, and which it breaks.

use std::fmt;
use std::future::pending;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::outcome::Failure;
use super::outgoing::{self, Outgoing};
use super::report::{Report, Said};
use super::worker::{Worked, Worker};
use super::workers::Workers;
use super::{Batch, GRACE};
use crate::topic::{Offset, TopicPartition};

/// How long to listen for what a worker should not say.
const SILENCE: Duration = Duration::from_millis(300);

/// How long a worker may look at a batch before its end is given, or it is taken back.
const LOOK: Duration = Duration::from_millis(300);

/// Offset, and id, of the record that the batch with a bad one has in its middle.
const BAD: Offset = Offset(1);

/// What a worker is put through, in this order.
const STEPS: [Step; 6] =
    [Step::Batch, Step::BadRecord, Step::CancelBeforeEnd, Step::CancelAfterEnd, Step::Unknown, Step::Shutdown];

#[derive(Clone, Copy)]
enum Step {
    Batch,
    BadRecord,
    CancelBeforeEnd,
    CancelAfterEnd,
    Unknown,
    Shutdown,
}

/// What a worker did at one step. Its text is a line for a person.
pub struct Finding {
    step: &'static str,
    kept: Result<String, Failure>,
}

/// The worker of the moment, and what is told of it.
struct Exam<'a, T> {
    workers: &'a Workers,
    partition: &'a TopicPartition,
    tell: T,
    keeps_all: bool,
    /// How many batches were made up.
    batches: u32,
}

impl Workers {
    /// Puts a worker through the protocol, a new one after each rule that is broken. The records are those of `partition`,
    /// with ids below 0, which no row should have. Says whether all rules were kept.
    ///
    /// Fails where `tell` does.
    pub async fn examine(&self, partition: &TopicPartition, tell: impl FnMut(&Finding) -> Result<()>) -> Result<bool> {
        let mut exam = Exam { workers: self, partition, tell, keeps_all: true, batches: 0 };
        let mut worker = None;
        for step in STEPS {
            if worker.is_none() {
                worker = exam.hire().await?;
            }
            let Some(hired) = worker.take() else { break };
            worker = exam.put_through(step, hired).await?;
        }
        Ok(exam.keeps_all)
    }
}

impl<T: FnMut(&Finding) -> Result<()>> Exam<'_, T> {
    async fn hire(&mut self) -> Result<Option<Worker>> {
        let begun = Instant::now();
        let (worker, kept) = match self.workers.hire().await {
            Ok(hired) => (Some(hired.worker), Ok(format!("after {:.1} s", begun.elapsed().as_secs_f64()))),
            Err(failed) => (None, Err(failed.failure)),
        };
        self.note(Finding { step: "ready", kept })?;
        Ok(worker)
    }

    /// Gives the worker back where it has kept the rule and is still there.
    async fn put_through(&mut self, step: Step, mut worker: Worker) -> Result<Option<Worker>> {
        let (step, kept) = match step {
            Step::Shutdown => {
                self.note(Finding { step: "shutdown", kept: shut_down(worker).await })?;
                return Ok(None);
            }
            Step::Batch => ("a batch with a deletion", self.batch(&mut worker).await),
            Step::BadRecord => ("a record without an id", self.bad_record(&mut worker).await),
            Step::CancelBeforeEnd => ("cancel before the end of a batch", self.cancel_before_end(&mut worker).await),
            Step::CancelAfterEnd => ("cancel after the end of a batch", self.cancel_after_end(&mut worker).await),
            Step::Unknown => ("a message of an unknown type", self.unknown(&mut worker).await),
        };
        let kept = match (kept, timeout(SILENCE, worker.idle()).await) {
            (Ok(_), Ok(failure)) => Err(failure),
            (kept, _) => kept,
        };
        let (worker, kept) = match kept {
            Ok(how) => (Some(worker), Ok(how)),
            Err(failure) => (None, Err(worker.end(failure).await.failure)),
        };
        self.note(Finding { step, kept })?;
        Ok(worker)
    }

    fn note(&mut self, finding: Finding) -> Result<()> {
        self.keeps_all &= finding.kept.is_ok();
        (self.tell)(&finding)
    }

    async fn batch(&mut self, worker: &mut Worker) -> Result<String, Failure> {
        let records = [json!({"id": -1}), json!({"id": -2}), Value::Null];
        match self.work(worker, &records).await? {
            Ok(report) if report.records.is_empty() => Ok("done".to_owned()),
            Ok(report) => Ok(format!("done but for {} of 3, {}", report.records.len(), first_error(&report))),
            Err(rest) => Ok(rest),
        }
    }

    async fn bad_record(&mut self, worker: &mut Worker) -> Result<String, Failure> {
        let records = [json!({"id": -1}), json!({}), json!({"id": -3})];
        match self.work(worker, &records).await? {
            Ok(report) if report.records.is_empty() => Ok("taken for done".to_owned()),
            Ok(report) if report.records.len() == 1 && report.records.contains_key(&BAD) => {
                Ok(format!("named as failed, {}", first_error(&report)))
            }
            Ok(report) => Ok(format!("{} of 3 named as failed, {}", report.records.len(), first_error(&report))),
            Err(rest) => Ok(rest),
        }
    }

    /// What it answers to a batch of these payloads: its report, or that it wants a rest.
    async fn work(&mut self, worker: &mut Worker, payloads: &[Value]) -> Result<Result<Report, String>, Failure> {
        let id = self.next_id();
        let (batch, lines) = (self.batch_of(payloads.len(), &id), self.lines(payloads));
        // An answer before the end of the batch has to have the time to come.
        let worked = worker.work((&batch, &lines), self.workers.timeout(), after_a_look(true), pending()).await;
        reported(worked, payloads.len())
    }

    async fn cancel_before_end(&mut self, worker: &mut Worker) -> Result<String, Failure> {
        let (id, payloads) = (self.next_id(), [json!({"id": -1}), json!({"id": -2})]);
        let (batch, lines) = (self.batch_of(payloads.len(), &id), self.lines(&payloads));
        match worker.work((&batch, &lines), self.workers.timeout(), after_a_look(false), pending()).await {
            Worked::Stopped { is_free: true } => {}
            Worked::Stopped { is_free: false } => {
                return Err(Failure::Protocol("it did not let go of a batch that was cancelled".to_owned()));
            }
            other => return Err(failure_of(other)),
        }
        // An answer for the other one would be taken for one to this.
        self.batch(worker).await.map(|_| "forgotten, and the next batch answered".to_owned())
    }

    /// The end and the cancel come at once: whichever it heeds, one answer is due.
    async fn cancel_after_end(&mut self, worker: &mut Worker) -> Result<String, Failure> {
        let (id, payloads) = (self.next_id(), [json!({"id": -1}), json!({"id": -2})]);
        let (batch, lines) = (self.batch_of(payloads.len(), &id), self.lines(&payloads));
        let begin = outgoing::begin(&batch);
        let [end, cancel] = ["end", "cancel"].map(|kind| outgoing::line(&json!({"type": kind, "id": id})));
        let ends = [end, cancel].concat();
        let mut out = Outgoing::new([&begin, &lines, &ends]);
        let answer = reported(worker.hold(&id, &mut out, self.workers.timeout()).await, payloads.len())?;
        self.batch(worker).await?;
        Ok(answer.err().unwrap_or_else(|| "answered once".to_owned()))
    }

    async fn unknown(&mut self, worker: &mut Worker) -> Result<String, Failure> {
        let line = outgoing::line(&json!({"type": "of-a-later-version"}));
        worker.tell(&line, self.workers.timeout()).await?;
        self.batch(worker).await.map(|_| "passed over".to_owned())
    }

    fn next_id(&mut self) -> String {
        self.batches += 1;
        format!("b{}", self.batches)
    }

    fn batch_of<'a>(&'a self, count: usize, id: &'a str) -> Batch<'a> {
        let (first, last) = (Offset(0), Offset(count as i64 - 1));
        Batch { source: self.partition, name: self.workers.name(), count, first, last, attempt: 1, term: 1, id }
    }

    /// Their lines, as a handler gets them; the key of each is the id that it has or would have.
    fn lines(&self, payloads: &[Value]) -> Vec<u8> {
        let TopicPartition { topic, partition } = self.partition;
        let line = |(offset, payload): (usize, &Value)| {
            let (start, key) = (format!(r#"{{"topic":"{topic}","partition":{partition}"#), -1 - offset as i64);
            format!(
                r#"{start},"offset":{offset},"ts":1700000000000,"key":"{key}","headers":[],"payload":{payload}}}{}"#,
                '\n'
            )
        };
        payloads.iter().enumerate().map(line).collect::<String>().into()
    }
}

/// What was answered: a report of these records, or a wish for rest.
fn reported(worked: Worked, count: usize) -> Result<Result<Report, String>, Failure> {
    match worked {
        Worked::Answered(Ok(report)) => {
            match report.records.keys().find(|offset| !(0..count as i64).contains(&offset.0)) {
                Some(stranger) => {
                    Err(Failure::Protocol(format!("it named offset {stranger}, which is not in the batch")))
                }
                None => Ok(Ok(report)),
            }
        }
        Worked::Answered(Err(rest @ Failure::Backoff(_))) => Ok(Err(rest.to_string())),
        other => Err(failure_of(other)),
    }
}

fn failure_of(worked: Worked) -> Failure {
    match worked {
        Worked::Broken(failure) | Worked::Answered(Err(failure)) => failure,
        Worked::Answered(Ok(_)) | Worked::Stopped { .. } => {
            Failure::Protocol("it answered before it was given the end of the batch".to_owned())
        }
    }
}

async fn after_a_look(goes: bool) -> bool {
    sleep(LOOK).await;
    goes
}

fn first_error(report: &Report) -> String {
    let error = report.records.iter().find_map(|(offset, said)| match said {
        Said::Failed { error, .. } => Some(format!("offset {offset}: {error}")),
        Said::Ok => None,
    });
    error.unwrap_or_default()
}

async fn shut_down(worker: Worker) -> Result<String, Failure> {
    let begun = Instant::now();
    let how = worker.retire().await;
    let took = begun.elapsed();
    match how {
        _ if took >= GRACE => Err(Failure::Protocol(format!("it had not ended {} s later", GRACE.as_secs()))),
        None => Ok(format!("ended after {:.1} s", took.as_secs_f64())),
        Some(how) => Ok(format!("ended after {:.1} s with {how}", took.as_secs_f64())),
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kept {
            Ok(how) => write!(f, "ok      {}: {how}", self.step),
            Err(failure) => write!(f, "broken  {}: {failure}", self.step),
        }
    }
}
