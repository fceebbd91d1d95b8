//! ksync-consume --redrive: dead letters back to the topics that they came from, as they were there.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use log::{debug, info, warn};
use tokio::time::{Instant, sleep, sleep_until};

use crate::dead_letter::Origin;
use crate::election::Lease;
use crate::exit::Exit;
use crate::fit::Skip;
use crate::kafka::{self, Event, Headers, Lane, Message, Outgoing, Undelivered, Writer};
use crate::lead::{Done, End, Held, Leading, Work};
use crate::shutdown::Shutdown;
use crate::topic::{Offset, Topic};

/// How many records are read at most before all that is sent has to be acknowledged and the offset is moved.
const MOST: u64 = 1000;
/// How long to wait before a broker that did not take a record is given it again.
const RETRY: Duration = Duration::from_secs(1);

/// How ksync-consume --redrive works on a partition of a dead-letter topic.
pub struct Redrive {
    pub route: Route,
    /// Records to be passed whatever they are.
    pub skips: Vec<Skip>,
    /// After so long without any success the run ends.
    pub give_up: Duration,
    pub tally: Arc<Tally>,
}

/// Which letters go back, and to what.
pub struct Route {
    pub writer: Writer,
    /// The topics that letters may have come from, and how many partitions each has.
    pub origins: BTreeMap<Topic, i32>,
    /// Only letters of this partition, and of these offsets there; the others are passed.
    pub partition: Option<i32>,
    pub offsets: Option<RangeInclusive<Offset>>,
}

/// How many records the offsets have passed.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    passed: AtomicU64,
}

impl Redrive {
    /// Sends what is there now, and tells how much that was.
    pub async fn run(self, leading: Leading, shutdown: &Shutdown) -> Result<Exit> {
        let tally = self.tally.clone();
        let ended = leading.run(self, shutdown).await;
        let [sent, passed] = [&tally.sent, &tally.passed].map(|count| count.load(Ordering::Relaxed));
        info!("redrive: {sent} records were sent back, {passed} were passed");
        ended
    }

    /// What goes back of a record, and where; `None` where it is to be passed.
    ///
    /// Fails where that cannot be known.
    fn returned(&self, message: &Message<'_>) -> Result<Option<Returned>> {
        let Origin { partition, offset, headers } = Origin::of(&message.record())?;
        let Route { origins, partition: only, offsets, .. } = &self.route;
        let topic = partition.topic;
        let count = *origins.get(&topic).with_context(|| format!("it came from topic {topic}; add -t {topic}"))?;
        let number = partition.partition;
        if only.is_some_and(|only| only != number) || offsets.as_ref().is_some_and(|range| !range.contains(&offset)) {
            return Ok(None);
        }
        let partition = (0..count).contains(&number).then_some(number);
        let (key, value) = (message.key().map(<[u8]>::to_vec), message.value().map(<[u8]>::to_vec));
        Ok(Some(Returned { topic, partition, key, value, headers }))
    }
}

impl Work for Redrive {
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        let Some(until) = held.until else {
            return End::Halted(anyhow!("sending letters back has no end"));
        };
        let (lane, worked) = (self.route.writer.lane(), Instant::now());
        let mut courier = Courier { redrive: self, held, until, lane, most: MOST, worked };
        loop {
            match courier.round(records).await {
                Ok(()) if courier.held.is_done() => return End::Done,
                Ok(()) if shutdown.is_requested() => return End::Shutdown,
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }
}

/// A record as it was in its topic.
struct Returned {
    topic: Topic,
    /// `None` where the topic does not have it any more: by the key.
    partition: Option<i32>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<Headers>,
}

/// The work on one partition under one lease.
struct Courier<'a, 'l> {
    redrive: &'a Redrive,
    held: &'a mut Held<'l>,
    until: Offset,
    lane: Lane,
    /// How many records may be read in a round.
    most: u64,
    /// When the offset was last moved.
    worked: Instant,
}

/// Some letters in a row.
#[derive(Default)]
struct Round {
    sent: u64,
    last_sent: Option<Offset>,
    passed: u64,
    skipped: Option<Offset>,
    /// Where the partition stands once all are acknowledged.
    done: Option<Done>,
}

impl Round {
    fn pass(&mut self, done: Done) {
        self.passed += 1;
        self.done = Some(done);
    }
}

impl<'l> Courier<'_, 'l> {
    /// Sends some letters, and moves the offset once all are acknowledged: they go to several partitions, whose reports
    /// come in any order.
    async fn round(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        let mut round = Round::default();
        let sent = self.send_some(records, &mut round).await;
        let patience = self.patience();
        if let Err(undelivered) = patience.wait(self.lane.settled()).await? {
            return self.go_back(records, &round, undelivered).await;
        }
        let Some(done) = round.done else {
            sent?;
            return patience.wait(records.readable()).await;
        };
        let checked = patience.wait(self.held.check_topic()).await??;
        self.held.standing =
            self.held.commit(self.held.standing, checked, Done { skipped: round.skipped, ..done }).await?;
        (self.worked, self.most) = (Instant::now(), (2 * self.most).min(MOST));
        self.redrive.tally.sent.fetch_add(round.sent, Ordering::Relaxed);
        self.redrive.tally.passed.fetch_add(round.passed, Ordering::Relaxed);
        sent
    }

    /// Fails with what has to end the work once what was sent before is acknowledged.
    async fn send_some(&mut self, records: &mut kafka::Partition, round: &mut Round) -> Result<(), End> {
        while let Some((letter, done)) = self.next(records, round)? {
            if !self.held.lease.is_held() {
                return Err(End::Lost(self.held.lease.lost().await));
            }
            let offset = Offset(done.offset.0 - 1);
            let Returned { topic, partition, key, value, headers } = &letter;
            let (key, value, headers) = (key.as_deref(), value.as_deref(), headers.clone());
            let outgoing = Outgoing { topic, partition: *partition, key, value, headers, timestamp: None };
            match self.patience().wait(self.lane.send(outgoing)).await? {
                Ok(()) => {
                    round.sent += 1;
                    (round.last_sent, round.done) = (Some(offset), Some(done));
                }
                // What failed before it is told when the lane is settled.
                Err(_) if self.lane.has_failed() => return Ok(()),
                Err(never) => return Err(self.halted(offset, &Error::new(never))),
            }
        }
        Ok(())
    }

    /// The next letter that is to be sent in this round.
    fn next(&self, records: &mut kafka::Partition, round: &mut Round) -> Result<Option<(Returned, Done)>, End> {
        let (seat, until) = (&self.held.seat, self.until);
        let at = |offset| Done { offset, leader_epoch: None, last: None, skipped: None };
        while round.sent + round.passed < self.most && round.done.is_none_or(|done| done.offset < until) {
            match records.poll() {
                Some(Event::Record(message)) if message.offset() >= until => round.done = Some(at(until)),
                Some(Event::Record(message)) => {
                    let (offset, done) = (message.offset(), Done::after(&message.record()));
                    let is_this = |skip: &Skip| skip.partition == seat.partition && skip.offset == offset;
                    if self.redrive.skips.iter().any(is_this) {
                        warn!("{seat}: the record at offset {offset} is passed without being sent back (--skip)");
                        round.skipped = Some(offset);
                        round.pass(done);
                        continue;
                    }
                    match self.redrive.returned(&message) {
                        Ok(Some(letter)) => return Ok(Some((letter, done))),
                        Ok(None) => round.pass(done),
                        Err(why) => return Err(self.halted(offset, &why)),
                    }
                }
                // Past control records too, which nobody is given. What `until` was measured by lies before this end.
                Some(Event::End(offset)) => round.done = Some(at(offset.max(until))),
                Some(Event::OutOfLog) => return Err(End::OutOfLog),
                Some(Event::Damaged(why)) => return Err(End::Halted(why)),
                Some(Event::Trouble(error)) => debug!("{seat}: {error:#}"),
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn halted(&self, offset: Offset, why: &Error) -> End {
        let skip = format!("--skip {}@{offset}", self.held.seat.partition);
        End::Halted(anyhow!("cannot send the record at offset {offset} back: {why:#}; to pass it, start with {skip}"))
    }

    /// After a failed report: begins again with the first letter of the round.
    async fn go_back(&mut self, records: &mut kafka::Partition, round: &Round, why: Undelivered) -> Result<(), End> {
        let (seat, offset) = (&self.held.seat, self.held.standing.offset);
        match round.last_sent {
            _ if why.is_transient() => {
                warn!("{seat}: cannot send the records from offset {offset} on back: {why}; trying again");
                self.patience().wait(sleep(RETRY)).await?;
            }
            // Which one it is shows when each goes alone.
            Some(_) if round.sent > 1 => self.most = 1,
            last => return Err(self.halted(last.unwrap_or(offset), &Error::new(why))),
        }
        records.seek(offset, self.held.standing.epoch());
        Ok(())
    }

    fn patience(&self) -> Patience<'l> {
        Patience { lease: self.held.lease, worked: self.worked, give_up: self.redrive.give_up }
    }
}

/// How long may be waited for a broker.
#[derive(Clone, Copy)]
struct Patience<'l> {
    lease: &'l Lease,
    worked: Instant,
    give_up: Duration,
}

impl Patience<'_> {
    /// Fails where the lease is lost, or nothing has worked for too long.
    async fn wait<T>(self, something: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            why = self.lease.lost() => Err(End::Lost(why)),
            got = something => Ok(got),
            () = sleep_until(self.worked + self.give_up) => {
                let time = humantime::format_duration(self.give_up);
                Err(End::GaveUp(anyhow!("nothing could be sent back for {time} (--give-up)")))
            }
        }
    }
}
