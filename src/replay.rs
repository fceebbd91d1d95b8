//! ksync-consume --replay: the handler on the records of a file, and what would become of them. No server is asked, and no
//! pause is waited for.

mod batches;
mod line;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::future::ready;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use log::warn;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::consume::{Consume, Step, Turn};
use crate::exit::Exit;
use crate::handler::{self, Outcome};
use crate::intake::{Load, Stop};
use crate::shutdown::Shutdown;
use crate::topic::{Name, TopicPartition};
use batches::Reading;

/// What a handler gets between TERM and KILL when the end is asked for.
const GRACE: Duration = Duration::from_secs(5);

/// So many runs in vain more than it takes until a batch is cut in halves: then it would go on so for ever.
const MORE: u32 = 3;

/// How ksync-consume --replay works on a file.
pub struct Replay {
    pub consume: Consume,
    pub name: Name,
    /// How much the records of the file may take, in bytes.
    pub memory: usize,
}

/// One batch on its way, with what was seen of it.
struct Case {
    turn: Turn,
    /// Runs in a row after which was to be waited, and that no record was done by.
    in_vain: u32,
    /// Whether the batches of other partitions were let past, as they would be meanwhile.
    is_deferred: bool,
}

/// What becomes of a batch.
enum Verdict {
    Done,
    /// It needs to be seen first that the handler can succeed.
    Later,
    /// Nothing after it would be worked on.
    Stuck,
}

/// The work on all batches of a file.
struct Rehearsal<'a> {
    replay: &'a Replay,
    shutdown: &'a Shutdown,
    cases: VecDeque<Case>,
    runs: u32,
    has_dead_lettered: bool,
    is_stuck: bool,
}

impl Replay {
    /// Reads all of the file, `-` being stdin, before the handler is run for the first time.
    pub async fn run(&self, file: &Path, shutdown: &Shutdown) -> Result<Exit> {
        let Consume { limits, on_invalid, skips, .. } = &self.consume;
        let memory = self.memory;
        let reading = Reading { limits: *limits, on_invalid: *on_invalid, skips: skips.clone(), memory };
        let path = file.to_owned();
        let loads = tokio::select! {
            loads = spawn_blocking(move || read(&reading, &path)) => loads??,
            () = shutdown.requested() => return Ok(Exit::Again),
        };
        if loads.is_empty() {
            warn!("{} has no records", file.display());
        }
        let case = |load| Case { turn: self.turn(load), in_vain: 0, is_deferred: false };
        let cases = loads.into_iter().map(case).collect();
        let (has_dead_lettered, is_stuck) = (false, false);
        let rehearsal = Rehearsal { replay: self, shutdown, cases, runs: 0, has_dead_lettered, is_stuck };
        let ended = rehearsal.go_through().await;
        self.consume.handler.close().await;
        ended
    }

    fn turn(&self, load: Load) -> Turn {
        Turn::new(load, self.consume.rules, self.consume.pauses)
    }
}

fn read(reading: &Reading, file: &PathBuf) -> Result<Vec<Load>> {
    let cannot = || format!("cannot read {}", file.display());
    match file.as_os_str() == "-" {
        true => reading.read(io::stdin().lock()).context("cannot read stdin"),
        false => File::open(file)
            .map_err(Error::from)
            .and_then(|file| reading.read(BufReader::new(file)))
            .with_context(cannot),
    }
}

impl Rehearsal<'_> {
    async fn go_through(mut self) -> Result<Exit> {
        while let Some(mut case) = self.cases.pop_front() {
            let partition = case.turn.load.batch.partition().clone();
            match self.go_on(&mut case).await? {
                None => return Ok(Exit::Again),
                Some(Verdict::Done) => {}
                Some(Verdict::Later) => self.cases.push_back(Case { is_deferred: true, ..case }),
                Some(Verdict::Stuck) => {
                    self.is_stuck = true;
                    self.pass_over(&partition)?;
                }
            }
        }
        Ok(match (self.is_stuck, self.has_dead_lettered) {
            (true, _) => Exit::Person,
            (false, true) => Exit::DeadLettered,
            (false, false) => Exit::Done,
        })
    }

    /// Runs the handler until it is clear what becomes of the batch; `None` where the end was asked for.
    async fn go_on(&mut self, case: &mut Case) -> Result<Option<Verdict>> {
        let mut run = None;
        loop {
            let turn = &mut case.turn;
            let worked = self.replay.consume.worked();
            let (records, pauses) = match turn.trial.next(worked) {
                Step::Run { records, pauses } => (records, pauses),
                Step::Finished { bad } => {
                    tell_run(run, "")?;
                    turn.put_aside(&bad)?;
                    return self.finish(turn).map(Some);
                }
            };
            if let Some(index) = turn.trial.stays_before() {
                tell_run(run, "")?;
                turn.stays_before = Some(index);
                return halt(turn, index).map(Some);
            }
            let waits_for_proof = turn.trial.waits_for_proof();
            if waits_for_proof && pauses && self.take_more(turn) {
                continue;
            }
            if waits_for_proof && pauses && !case.is_deferred && !self.cases.is_empty() {
                tell_run(run, "; would let other partitions go on")?;
                return Ok(Some(Verdict::Later));
            }
            if pauses && case.in_vain >= self.replay.consume.rules.isolate_after + MORE {
                tell_run(run, "")?;
                return give_up(turn, &records).map(Some);
            }
            let follows = self.follows(turn, &records, pauses);
            tell_run(run.take(), &follows)?;
            let Some(told) = self.run(case, &records).await? else { return Ok(None) };
            run = Some(told);
        }
    }

    /// Adds the next batch of the same partition, as is done while its records wait for a sign that the handler works.
    fn take_more(&mut self, turn: &mut Turn) -> bool {
        let is_next = |case: &Case| case.turn.load.batch.partition() == turn.load.batch.partition();
        let next = self.cases.iter().position(is_next).filter(|_| turn.load.stop.is_none());
        let Some(Case { turn: next, .. }) = next.and_then(|at| self.cases.remove(at)) else {
            return false;
        };
        turn.trial.extend(next.load.batch.len());
        turn.load.append(next.load);
        true
    }

    /// What comes after a run that failed, in the place of waiting for it.
    fn follows(&self, turn: &mut Turn, records: &[usize], pauses: bool) -> String {
        if !pauses {
            let first = turn.load.batch.offset(records[0]);
            return format!("; next would be {} from offset {first}", counted(records.len()));
        }
        let longest = self.replay.consume.pauses.longest;
        let pause = turn.pause.take().map_or_else(|| turn.backoff.next_pause(), |pause| pause.min(longest));
        format!("; would wait {:.1} s", pause.as_secs_f64())
    }

    /// Runs the handler; gives what there is to tell, or `None` where the end was asked for.
    async fn run(&mut self, case: &mut Case, records: &[usize]) -> Result<Option<String>> {
        let (turn, consume) = (&mut case.turn, &self.replay.consume);
        let batch = &turn.load.batch;
        let (first, last) = (batch.offset(records[0]), batch.offset(records[records.len() - 1]));
        let (source, id) = (batch.partition().clone(), handler::new_id());
        let told = handler::Batch {
            source: &source,
            name: &self.replay.name,
            count: records.len(),
            first,
            last,
            attempt: turn.trial.runs(records[0]) + 1,
            term: 0,
            id: &id,
        };
        let stop = async {
            self.shutdown.requested().await;
            Instant::now() + GRACE
        };
        let ran = match consume.handler.run(&told, &turn.lines(records), ready(true), stop).await {
            Outcome::Stopped => return Ok(None),
            Outcome::Done(report) => Ok(report),
            Outcome::Failed(failed) => Err(failed),
        };
        let now = std::time::Instant::now();
        let works = turn.take_in(records, ran, (now, consume.worked()), consume.requires_result);
        if works.map_err(|why| Exit::Misconfigured.because(why))? {
            consume.has_worked(now);
            case.in_vain = 0;
        } else {
            case.in_vain += 1;
        }
        self.runs += 1;
        let fault = turn.failed.take();
        let why = fault.as_ref().map_or("done", |fault| &fault.why);
        Ok(Some(format!("run {}: {} ({}): {why}", self.runs, at(turn, records), counted(records.len()))))
    }

    /// It is gone through.
    fn finish(&mut self, turn: &Turn) -> Result<Verdict> {
        let partition = turn.load.batch.partition();
        for letter in &turn.load.letters {
            self.has_dead_lettered = true;
            tell(format_args!("would put {partition}@{} aside: {}", letter.offset(), letter.why()))?;
        }
        tell_commit(turn)?;
        match &turn.load.stop {
            Some(Stop::Invalid(why)) => {
                tell(format_args!("would halt at {partition}: {why:#}"))?;
                Ok(Verdict::Stuck)
            }
            _ => Ok(Verdict::Done),
        }
    }

    /// Drops what comes after a record that its partition stays before.
    fn pass_over(&mut self, partition: &TopicPartition) -> Result<()> {
        let is_after = |case: &Case| case.turn.load.batch.partition() == partition;
        let records: usize =
            self.cases.iter().filter(|case| is_after(case)).map(|case| case.turn.load.batch.len()).sum();
        self.cases.retain(|case| !is_after(case));
        if records > 0 {
            tell(format_args!("would not go on in {partition}: {} after that", counted(records)))?;
        }
        Ok(())
    }
}

fn halt(turn: &Turn, index: usize) -> Result<Verdict> {
    tell_commit(turn)?;
    let (partition, offset) = (turn.load.batch.partition(), turn.load.batch.offset(index));
    match turn.trial.is_breaker_open() {
        true => tell(format_args!(
            "would halt at {partition}@{offset}: so many records fail that the fault may not be theirs: none is put aside \
             until this one works"
        ))?,
        false => tell(format_args!("would halt at {partition}@{offset}: {}", turn.trouble()))?,
    }
    Ok(Verdict::Stuck)
}

/// It would never come to an end.
fn give_up(turn: &Turn, records: &[usize]) -> Result<Verdict> {
    let until = match turn.trial.waits_for_proof() {
        true => ": only once the handler was done with another record would it put this one aside",
        false => "",
    };
    tell(format_args!("would try {} again for ever{until}", at(turn, records)))?;
    Ok(Verdict::Stuck)
}

/// `products/0 offsets 42 to 57`
fn at(turn: &Turn, records: &[usize]) -> String {
    let batch = &turn.load.batch;
    let (first, last) = (batch.offset(records[0]), batch.offset(records[records.len() - 1]));
    match records {
        [_] => format!("{} offset {first}", batch.partition()),
        _ => format!("{} offsets {first} to {last}", batch.partition()),
    }
}

fn counted(records: usize) -> String {
    if records == 1 { "1 record".to_owned() } else { format!("{records} records") }
}

fn tell_run(run: Option<String>, follows: &str) -> Result<()> {
    run.map_or(Ok(()), |run| tell(format_args!("{run}{follows}")))
}

fn tell_commit(turn: &Turn) -> Result<()> {
    let Some(done) = turn.done() else { return Ok(()) };
    let is_further = turn.is_finished() || turn.trial.first_not_done() != Some(0);
    if is_further {
        tell(format_args!("would commit {} at offset {}", turn.load.batch.partition(), done.offset))?;
    }
    Ok(())
}

fn tell(line: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}
