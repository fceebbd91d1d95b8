//! ksync-delayer: delay messages, once they are due, as instant messages to the same partition of the topic.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::time::Duration;

use anyhow::{Error, anyhow};
use log::{debug, warn};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::dead_letter::DeadLetters;
use crate::election::Election;
use crate::intake::OnInvalid;
use crate::kafka::{self, Event, Lane, Outgoing, Reader, Timestamp, Writer};
use crate::lead::{self, Done, End, Held, Work};
use crate::mutants::Mutant;
use crate::shutdown::Shutdown;
use crate::topic::{Offset, Topic};

mod clock;
mod end_seen;
mod waiting;

use clock::Clock;
pub use clock::Clocks;
use end_seen::EndSeen;
use waiting::{Room, Waiting};

/// How often the offset is moved while messages flow.
const COMMIT: Duration = Duration::from_millis(200);
/// How long to wait before a broker that did not take a message is given it again.
const RETRY: Duration = Duration::from_secs(1);
/// How long reports are waited for at the end, so that a standby need not wait for the session to expire.
const LAST_REPORTS: Duration = Duration::from_secs(10);
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
        let end_seen = EndSeen::new(&self.reader, &held.seat.partition, self.delay);
        let lane = self.writer.lane();
        let flight = Flight { lane, sent: VecDeque::new(), most: usize::MAX, counted: 0, moved: Instant::now() };
        let waiting = Room::new(self.room);
        let mut forwarder = Forwarder {
            delay: self,
            topic,
            held,
            shutdown,
            waiting,
            damaged: None,
            end: None,
            flight,
            clock,
            end_seen,
        };
        let end = forwarder.run(records).await;
        forwarder.finish(end).await
    }
}

/// The work on one partition under one lease.
struct Forwarder<'a, 'l> {
    delay: &'a Delay,
    topic: &'a Topic,
    held: &'a mut Held<'l>,
    shutdown: &'a Shutdown,
    /// Read, and not sent yet.
    waiting: Room,
    /// Why nothing is read behind these.
    damaged: Option<Error>,
    /// Where the partition ended when all of it had been read.
    end: Option<Offset>,
    flight: Flight,
    clock: Clock,
    end_seen: EndSeen,
}

/// Messages that were sent and that the offset has not passed yet, in their order.
struct Flight {
    lane: Lane,
    sent: VecDeque<Done>,
    /// How many are sent before all of them have to be acknowledged.
    most: usize,
    /// How many of the acknowledged ones the offset has passed.
    counted: u64,
    /// When it was last moved.
    moved: Instant,
}

impl Flight {
    /// How far everything is acknowledged, if that is further than before.
    fn take_acknowledged(&mut self) -> Option<Done> {
        let acknowledged = self.lane.acknowledged();
        let new = usize::try_from(acknowledged - self.counted).unwrap_or(usize::MAX).min(self.sent.len());
        self.counted = acknowledged;
        self.sent.drain(..new).next_back()
    }

    fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}

impl Forwarder<'_, '_> {
    async fn run(&mut self, records: &mut kafka::Partition) -> End {
        loop {
            if let Err(end) = self.turn(records).await {
                return end;
            }
        }
    }

    /// Reads what is there, sends what is due, and waits for either, or for the next look at the end.
    async fn turn(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        if self.flight.lane.has_failed() {
            return self.go_back(records).await;
        }
        self.end_seen.look();
        let is_read_empty = self.read(records)?;
        let sent = self.send_due().await?;
        self.advance().await?;
        self.pass_to_end().await?;
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
            let shutdown = self.shutdown;
            tokio::select! {
                landed = self.land() => landed?,
                () = shutdown.requested() => return Err(End::Shutdown),
            }
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
        let sent = tokio::select! {
            biased;
            sent = self.held.during(lead::Waiting::Kafka, self.flight.lane.send(outgoing)) => sent,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
            () = self.shutdown.requested() => return Err(End::Shutdown),
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
        }
        self.commit(message.done).await
    }

    /// Waits for `something`, and meanwhile moves the offset over what is acknowledged.
    async fn pass_time(&mut self, what: lead::Waiting, something: impl Future<Output = ()>) -> Result<(), End> {
        let mut something = std::pin::pin!(something);
        loop {
            self.advance().await?;
            tokio::select! {
                biased;
                why = self.held.lease.lost() => return Err(End::Lost(why)),
                () = self.shutdown.requested() => return Err(End::Shutdown),
                () = self.held.during(what.clone(), &mut something) => return Ok(()),
                () = sleep_until(self.flight.moved + COMMIT), if !self.flight.is_empty() => {
                    if self.flight.lane.has_failed() {
                        return Ok(());
                    }
                    self.flight.moved = Instant::now();
                    self.advance_now().await?;
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<(), End> {
        if self.flight.moved.elapsed() >= COMMIT { self.advance_now().await } else { Ok(()) }
    }

    async fn advance_now(&mut self) -> Result<(), End> {
        match self.flight.take_acknowledged() {
            Some(done) => self.commit(done).await,
            None => Ok(()),
        }
    }

    /// Moves the offset over what nobody is given behind the last message: markers of transactions, what was aborted.
    async fn pass_to_end(&mut self) -> Result<(), End> {
        let is_all_done = self.waiting.is_empty() && self.flight.is_empty();
        match self.end.take_if(|_| is_all_done) {
            Some(end) if end > self.held.standing.offset => self.commit(Done::before(end)).await,
            _ => Ok(()),
        }
    }

    async fn commit(&mut self, done: Done) -> Result<(), End> {
        let checked = tokio::select! {
            checked = self.held.check_topic() => checked?,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
        };
        self.held.standing = self.held.commit(self.held.standing, checked, done).await?;
        self.flight.moved = Instant::now();
        Ok(())
    }

    /// Waits until each message in flight has its report, and moves the offset over those before the first failure.
    async fn land(&mut self) -> Result<(), End> {
        while self.flight.lane.in_flight() > 0 {
            tokio::select! {
                () = self.held.during(lead::Waiting::Kafka, self.flight.lane.reported()) => {}
                why = self.held.lease.lost() => return Err(End::Lost(why)),
            }
        }
        self.advance_now().await
    }

    /// After a failed report: begins again with the first message that was not acknowledged.
    async fn go_back(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        self.land().await?;
        let refused = self.flight.sent.len();
        self.flight.sent.clear();
        self.flight.counted = 0;
        self.waiting.clear();
        (self.damaged, self.end) = (None, None);
        let Err(undelivered) = self.flight.lane.settled().await else {
            return Ok(());
        };
        let (standing, transient) = (self.held.standing, undelivered.is_transient());
        let offset = standing.offset;
        if !transient && refused > 1 {
            // A broker refuses a whole batch for one of its messages, or for their sum. Which one shows when each goes alone.
            self.flight.most = 1;
        } else if !transient {
            let what = format!("cannot send the message of offset {offset} on to {}", self.topic);
            return Err(End::Halted(Error::new(undelivered).context(what)));
        } else {
            warn!(
                "{}: cannot send messages from offset {offset} on to {}: {undelivered}; trying again",
                self.held.seat, self.topic
            );
            self.pass_time(lead::Waiting::Pause(Instant::now() + RETRY), sleep(RETRY)).await?;
        }
        records.seek(offset, standing.epoch());
        Ok(())
    }

    /// What is in flight is waited for and counted, however the work ended; unless somebody else leads already. What has no
    /// report for too long the next leader sends again.
    async fn finish(&mut self, end: End) -> End {
        match end {
            End::Lost(why) => End::Lost(why),
            end => match timeout(LAST_REPORTS, self.land()).await {
                Ok(Err(lost)) => lost,
                Ok(Ok(())) | Err(_) => end,
            },
        }
    }
}
