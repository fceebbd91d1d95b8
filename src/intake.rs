//! Gathering the records of a partition into batches, the next one while the last is being handled.

use std::time::Duration;

use anyhow::{Context, Error, anyhow};
use log::{debug, warn};
use tokio::time::{Instant, sleep_until};

use crate::dead_letter::Letter;
use crate::kafka::{self, Event, Message};
use crate::lead::Done;
use crate::mutants::Mutant;
use crate::record::{Batch, Record};
use crate::topic::{Offset, TopicPartition};

/// How many records are taken before other tasks get their turn.
const TURN: usize = 256;

/// When a batch is full, and what of it is given.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub records: usize,
    /// Of lines and dead letters; a record that is larger goes alone.
    pub bytes: usize,
    /// How long to wait for more once one is there.
    pub wait: Duration,
    /// Of records with the same key only the last is given.
    pub coalesce: bool,
}

/// What to do with a record whose value is not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInvalid {
    Halt,
    DeadLetter,
    /// Its bytes are given.
    Raw,
}

/// Where batches come from.
pub struct Intake<'a> {
    partition: TopicPartition,
    records: &'a mut kafka::Partition,
    limits: Limits,
    on_invalid: OnInvalid,
    until: Option<Offset>,
    /// Records that the operator wants passed.
    skips: Vec<Offset>,
    load: Load,
    first_at: Option<Instant>,
    /// What was read lies before it.
    seen: Offset,
    /// The next record does not fit.
    is_full: bool,
}

/// A batch, what is to be done besides before its offset is committed, and what comes after it.
#[derive(Debug)]
pub struct Load {
    pub batch: Batch,
    /// Records for the dead-letter topic.
    pub letters: Vec<Letter>,
    /// The last record that was passed because the operator wants it so.
    skipped: Option<Offset>,
    /// Why nothing more can be read after this batch.
    pub stop: Option<Stop>,
}

#[derive(Debug)]
pub enum Stop {
    /// The next record is not JSON.
    Invalid(Error),
    /// What comes next is damaged.
    Damaged(Error),
    OutOfLog,
}

impl Load {
    pub fn new(partition: &TopicPartition) -> Load {
        Load::of(Batch::new(partition))
    }

    /// Nothing but this batch.
    pub fn of(batch: Batch) -> Load {
        Load { batch, letters: vec![], skipped: None, stop: None }
    }

    /// How far the partition is done once this is; `None` where there was nothing.
    pub fn done(&self) -> Option<Done> {
        let Load { batch, skipped, .. } = self;
        let (leader_epoch, last) = (batch.leader_epoch(), batch.last());
        Some(Done { offset: batch.next()?, leader_epoch, last, skipped: *skipped })
    }

    /// How far the partition is done if it is done up to one of the batch's records, and none of the letters is put aside.
    pub fn done_before(&self, index: usize) -> Option<Done> {
        let offset = self.batch.offset(index);
        let offset = self.letters.first().map_or(offset, |letter| letter.offset().min(offset));
        let skipped = self.skipped.filter(|skipped| *skipped < offset);
        // The epoch of the record before is not known; a later one does as well.
        Some(Done { offset, leader_epoch: self.batch.leader_epoch(), last: None, skipped })
    }

    fn skip(&mut self, partition: &TopicPartition, message: &Message<'_>) {
        warn!("{partition}: the record at offset {} is passed without being worked on (--skip)", message.offset());
        self.batch.pass(&message.record());
        self.skipped = Some(message.offset());
    }

    /// Adds what was read after it.
    pub fn append(&mut self, later: Load) {
        self.batch.append(&later.batch);
        self.letters.extend(later.letters);
        self.skipped = later.skipped.or(self.skipped);
        self.stop = later.stop;
    }

    /// Adds a record, or what is made of it by `on_invalid`. Whether there was room for it; for the first one there is.
    pub fn add(
        &mut self,
        record: &Record<'_>,
        letter: impl FnOnce(String) -> Letter,
        (on_invalid, room): (OnInvalid, usize),
    ) -> bool {
        let is_first = self.is_empty();
        // How long the line is shows only when it is written; but a large record is not to be copied for nothing.
        let at_least = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        if !is_first && self.bytes() + at_least > room {
            return false;
        }
        self.batch.make_room(record, room);
        let before = self.batch.mark();
        self.stop = self.add_record(record, letter, on_invalid);
        if !is_first && self.bytes() > room {
            self.batch.back_to(before);
            return false;
        }
        true
    }

    fn add_record(
        &mut self,
        record: &Record<'_>,
        letter: impl FnOnce(String) -> Letter,
        on_invalid: OnInvalid,
    ) -> Option<Stop> {
        let why = self.batch.push(record).err()?;
        let what = || format!("the value at offset {} cannot be given to the handler", record.offset);
        match on_invalid {
            OnInvalid::Halt if Mutant::SkipsInvalid.is_on() => {
                self.batch.pass(record);
                None
            }
            OnInvalid::Halt => {
                let mend = "mend its writer and let --on-invalid dead-letter put it aside";
                Some(Stop::Invalid(anyhow!("{}: {why:#}; {mend}", what())))
            }
            OnInvalid::DeadLetter => {
                self.letters.push(letter(format!("{why:#}")));
                self.batch.pass(record);
                None
            }
            OnInvalid::Raw => self.batch.push_raw(record).with_context(what).err().map(Stop::Invalid),
        }
    }

    /// Whether nothing more is to be added to it.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.stop.is_some() || self.records() >= limits.records || self.bytes() >= limits.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.letters.is_empty()
    }

    fn records(&self) -> usize {
        self.batch.len() + self.letters.len()
    }

    /// How much memory its records take.
    pub fn bytes(&self) -> usize {
        self.batch.bytes() + self.letters.iter().map(Letter::bytes).sum::<usize>()
    }

    fn clear(&mut self, room: usize) {
        self.batch.clear(room);
        self.letters.clear();
        (self.skipped, self.stop) = (None, None);
    }
}

impl<'a> Intake<'a> {
    pub fn new(
        partition: &TopicPartition,
        records: &'a mut kafka::Partition,
        (limits, on_invalid): (Limits, OnInvalid),
        (until, skips): (Option<Offset>, Vec<Offset>),
    ) -> Intake<'a> {
        let (partition, load) = (partition.clone(), Load::new(partition));
        let (first_at, seen, is_full) = (None, records.position(), false);
        Intake { partition, records, limits, on_invalid, until, skips, load, first_at, seen, is_full }
    }

    /// Reads until a batch is ready to be taken: full, or old enough. Cancelling loses nothing.
    pub async fn ready(&mut self) {
        while self.first_at.is_none() && !self.is_closed() {
            self.fill_some().await;
        }
        if let Some(first_at) = self.first_at {
            let old = sleep_until(first_at + self.limits.wait);
            tokio::select! {
                () = self.fill() => {}
                () = old => {}
            }
        }
    }

    /// Reads ahead for as long as it is polled; never returns once the batch is full. Cancelling loses nothing.
    pub async fn fill_on<T>(&mut self) -> T {
        self.fill().await;
        self.records.idle().await
    }

    /// Gives what was read, and goes on with an empty one.
    pub fn take(&mut self, mut spare: Load) -> Load {
        spare.clear(self.limits.bytes);
        (self.first_at, self.is_full) = (None, false);
        if self.limits.coalesce {
            self.load.batch.coalesce();
        }
        std::mem::replace(&mut self.load, spare)
    }

    /// Whatever lies before it was fetched from the broker before this call.
    pub fn fetched(&self) -> Offset {
        self.records.fetched()
    }

    async fn fill(&mut self) {
        while !self.is_closed() {
            self.fill_some().await;
        }
    }

    fn is_closed(&self) -> bool {
        self.is_full
            || self.load.is_full(&self.limits)
            || self.until.is_some_and(|until| self.load.batch.next() >= Some(until))
    }

    async fn fill_some(&mut self) {
        match self.take_some() {
            Taken::All => self.records.readable().await,
            Taken::Some => tokio::task::yield_now().await,
        }
    }

    fn take_some(&mut self) -> Taken {
        for _ in 0..TURN {
            if self.is_closed() {
                return Taken::Some;
            }
            match self.records.poll() {
                Some(Event::Record(message)) => {
                    let (letter, terms) = (|why| Letter::of(&message, why), (self.on_invalid, self.limits.bytes));
                    if self.skips.contains(&message.offset()) {
                        self.load.skip(&self.partition, &message);
                    } else if !self.load.add(&message.record(), letter, terms) {
                        self.records.put_back();
                        self.is_full = true;
                        continue;
                    }
                    self.seen = message.offset().next();
                    self.first_at.get_or_insert_with(Instant::now);
                }
                Some(Event::End(offset)) => {
                    if offset > self.seen {
                        // A batch of nothing, if need be: what nobody is given is not to look like what nobody has read.
                        self.seen = offset;
                        self.first_at.get_or_insert_with(Instant::now);
                    }
                    // Past control records too, which nobody is given. What `until` was measured by lies before this end.
                    self.load.batch.pass_to(self.until.map_or(offset, |until| offset.max(until)));
                }
                Some(Event::OutOfLog) => self.load.stop = Some(Stop::OutOfLog),
                Some(Event::Damaged(why)) => self.load.stop = Some(Stop::Damaged(why)),
                Some(Event::Trouble(error)) => debug!("{}: {error:#}", self.partition),
                None => return Taken::All,
            }
        }
        Taken::Some
    }
}

/// How much was taken of what is there.
enum Taken {
    All,
    Some,
}
