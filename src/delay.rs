//! ksync-delayer: delay messages, once they are due, as instant messages to the same partition of the topic.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Error, anyhow};
use log::{debug, warn};
use tokio::time::{Instant, sleep_until};

use crate::dead_letter::DeadLetters;
use crate::election::Election;
use crate::fit::Standing;
use crate::intake::OnInvalid;
use crate::kafka::{self, Event, Outgoing, Reader, Timestamp, Writer};
use crate::lead::{self, End, Held, Work};
use crate::mutants::Mutant;
use crate::shutdown::Shutdown;
use crate::topic::{Offset, Topic};

mod clock;
mod commits;
mod end_seen;
mod flight;
mod waiting;

use clock::Clock;
pub use clock::Clocks;
use commits::Commits;
use end_seen::EndSeen;
use flight::Flight;
use waiting::{Room, Waiting};

/// How many messages are taken before other tasks get their turn.
const TURN: usize = 256;

/// How ksync-delayer works on a partition of a delay topic.
pub struct Delay {
    pub delay: Duration,
    pub election: Election,
    /// Where the messages of each delay topic go.
    pub topics: BTreeMap<Topic, Topic>,
    pub reader: Reader,
    pub writer: Writer,
    pub on_invalid: OnInvalid,
    pub dead_letters: Option<DeadLetters>,
    /// How many bytes of messages each partition may hold until they are due.
    pub room: usize,
    pub clocks: Clocks,
}

impl Work for Delay {
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        let Some(topic) = self.topics.get(&held.seat.partition.topic) else {
            return End::Halted(anyhow!("nothing is known of where its messages go"));
        };
        let declared = tokio::select! {
            declared = self.election.declare_delay(&held.seat, self.delay) => declared,
            why = held.lease.lost() => return End::Lost(why),
            () = shutdown.requested() => return End::Shutdown,
        };
        let clock = match declared {
            Ok(theirs) => Clock::beside(theirs),
            Err(refused) => return End::Halted(refused),
        };
        let forwarder = Forwarder {
            delay: self,
            topic,
            held,
            shutdown,
            waiting: Room::new(self.room),
            damaged: None,
            end: None,
            flight: Flight::new(self.writer.lane()),
            commits: Commits::new(held),
            clock,
            end_seen: EndSeen::new(&self.reader, &held.seat.partition, self.delay),
        };
        let (standing, end) = forwarder.work(records).await;
        held.standing = standing;
        end
    }
}

/// The work on one partition under one lease.
struct Forwarder<'a> {
    delay: &'a Delay,
    topic: &'a Topic,
    held: &'a Held<'a>,
    shutdown: &'a Shutdown,
    /// Read, and not sent yet.
    waiting: Room,
    /// Why nothing is read behind these.
    damaged: Option<Error>,
    /// Where the partition ended when all of it had been read.
    end: Option<Offset>,
    flight: Flight,
    commits: Commits<'a>,
    clock: Clock,
    end_seen: EndSeen,
}

impl Forwarder<'_> {
    /// Works until it has to end; where the partition stands then.
    async fn work(mut self, records: &mut kafka::Partition) -> (Standing, End) {
        let end = loop {
            if let Err(end) = self.turn(records).await {
                break self.finish(end).await;
            }
        };
        (self.commits.standing, end)
    }

    /// Reads what is there, sends what is due, and waits for either, or for the next look at the end.
    async fn turn(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        if self.flight.lane.has_failed() {
            return self.go_back(records).await;
        }
        self.end_seen.look();
        let is_read_empty = self.read(records)?;
        let sent = self.send_due().await?;
        self.advance()?;
        if sent >= TURN || !(is_read_empty || self.waiting.is_full()) {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let (due, is_full, look) = (self.waiting.due(), self.waiting.is_full(), self.end_seen.next());
        let what = match due {
            Some((offset, at)) => lead::Waiting::Due { offset, at },
            None => lead::Waiting::Records,
        };
        if due.is_none() && self.damaged.is_some() {
            self.land().await?;
            // The next turn goes back.
            if self.flight.lane.has_failed() {
                return Ok(());
            }
            return self.damaged.take().map_or(Ok(()), |why| Err(End::Halted(why)));
        }
        let (readable, is_damaged) = (records.readable(), self.damaged.is_some());
        self.pass_time(what, async {
            tokio::select! {
                () = readable, if !is_full && !is_damaged => {}
                () = sleep_until(look) => {}
                () = sleep_until(due.map_or_else(Instant::now, |(_, at)| at)), if due.is_some() => {}
            }
        })
        .await
    }

    /// Takes messages over as long as there are some and there is room: a message's time begins when it is first seen.
    /// Whether there were no more.
    fn read(&mut self, records: &mut kafka::Partition) -> Result<bool, End> {
        for _ in 0..TURN {
            if self.waiting.is_full() || self.damaged.is_some() {
                return Ok(self.damaged.is_some());
            }
            match records.poll() {
                Some(Event::Record(message)) => {
                    let age = |made| match self.clock.age(made) {
                        told if Mutant::BelievesPayload.is_on() => told,
                        told => self.end_seen.age(message.offset(), told),
                    };
                    self.waiting.push(Waiting::of(&message, self.delay.delay, age));
                    if let Timestamp::Append(made) = message.timestamp() {
                        let at_most = || self.end_seen.at_most(message.offset());
                        self.delay.clocks.compare(&self.held.seat, made, at_most);
                    }
                }
                Some(Event::End(end)) => self.end = Some(end),
                Some(Event::OutOfLog) => return Err(End::OutOfLog),
                Some(Event::Damaged(why)) => {
                    warn!("{}: {why:#}; what lies before it is sent on first", self.held.seat);
                    self.damaged = Some(why);
                    return Ok(true);
                }
                Some(Event::Trouble(error)) => debug!("{}: {error:#}", self.held.seat),
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    async fn send_due(&mut self) -> Result<usize, End> {
        let mut sent = 0;
        while sent < TURN
            && let Some(message) = self.waiting.take_due()
        {
            self.send(message).await?;
            self.hold_back().await?;
            sent += 1;
        }
        Ok(sent)
    }

    /// Sends the message on, or puts it aside.
    async fn send(&mut self, message: Waiting) -> Result<(), End> {
        if !self.held.lease.is_held() {
            return Err(End::Lost(self.held.lease.lost().await));
        }
        let payload = match &message.payload {
            Ok(payload) => payload,
            Err(why) => return self.put_aside(&message, why).await,
        };
        let outgoing = Outgoing {
            topic: self.topic,
            partition: Some(self.held.seat.partition.partition),
            key: message.key.as_deref(),
            value: Some(payload),
            headers: message.headers.clone(),
            timestamp: message.timestamp(),
        };
        let sent = {
            let mut sending = pin!(self.held.during(lead::Waiting::Kafka, self.flight.lane.send(outgoing)));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => break sent,
                    moved = self.commits.moved() => moved?,
                    () = self.shutdown.requested() => return Err(End::Shutdown),
                }
            }
        };
        match sent {
            Ok(()) => {
                self.flight.sent.push_back(message.done);
                if self.flight.sent.len() >= self.flight.most {
                    self.land().await?;
                    self.flight.most = self.flight.most.saturating_mul(2);
                }
            }
            // What failed before it is found by the next turn, which then begins again there.
            Err(_) if self.flight.lane.has_failed() => {}
            Err(never) => {
                let what = format!("cannot send the message of offset {} on to {}", message.offset(), self.topic);
                return Err(End::Halted(Error::new(never).context(what)));
            }
        }
        Ok(())
    }

    async fn put_aside(&mut self, message: &Waiting, why: &Error) -> Result<(), End> {
        // The offset must not pass it before those in front of it are acknowledged.
        self.land().await?;
        if self.flight.lane.has_failed() {
            return Ok(());
        }
        let origin = &self.held.seat.partition;
        let aside = self.delay.dead_letters.as_ref().filter(|_| self.delay.on_invalid == OnInvalid::DeadLetter);
        let Some(dead_letters) = aside else {
            let what = format!("the message at offset {} cannot be sent on: {why:#}", message.offset());
            return Err(End::Halted(anyhow!("{what}; mend its writer and let --on-invalid dead-letter put it aside")));
        };
        let letters = message.letter.as_slice();
        tokio::select! {
            put = self.held.during(lead::Waiting::Kafka, dead_letters.put(origin, letters)) => {
                put.map_err(End::Halted)?;
            }
            why = self.held.lease.lost() => return Err(End::Lost(why)),
            // The next leader puts it aside again.
            () = self.shutdown.requested() => return Err(End::Shutdown),
        }
        self.commits.begin(message.done);
        self.land().await
    }
}
