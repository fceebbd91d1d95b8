//! ksync-delayer: delay messages, once they are due, as instant messages to the same partition of the topic.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use anyhow::{Error, anyhow};
use log::{debug, warn};
use tokio::time::{Instant, sleep, sleep_until};

use crate::dead_letter::{DeadLetters, Letter};
use crate::election::Election;
use crate::intake::OnInvalid;
use crate::kafka::{self, Event, Lane, Message, Outgoing, Reader, Timestamp, Writer};
use crate::lead::{Done, End, Held, Work};
use crate::message::{self, DelayMessage};
use crate::record::LastRecord;
use crate::shutdown::Shutdown;
use crate::topic::Topic;

/// How often the offset is moved while messages flow.
const COMMIT: Duration = Duration::from_millis(200);
/// How long to wait before a broker that did not take a message is given it again.
const RETRY: Duration = Duration::from_secs(1);
/// How many messages are sent before other tasks get their turn.
const TURN: u32 = 256;

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
}

impl Work for Delay {
    async fn work(&self, records: &mut kafka::Partition, held: &mut Held<'_>, shutdown: &Shutdown) -> End {
        let Some(topic) = self.topics.get(&held.seat.partition.topic) else {
            return End::Halted(anyhow!("nothing is known of where its messages go"));
        };
        if let Err(refused) = self.election.declare_delay(&held.seat, self.delay).await {
            return End::Halted(refused);
        }
        let flight = Flight { lane: self.writer.lane(), sent: VecDeque::new(), counted: 0, moved: Instant::now() };
        let mut forwarder = Forwarder { delay: self, topic, held, shutdown, flight, end_seen: None };
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
    flight: Flight,
    /// When the partition was last seen to have no more messages: those that came since are not older than that.
    end_seen: Option<Instant>,
}

/// Messages that were sent and that the offset has not passed yet, in their order.
struct Flight {
    lane: Lane,
    sent: VecDeque<Done>,
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
        let mut taken = 0_u32;
        loop {
            let step = async {
                if self.flight.lane.has_failed() {
                    self.go_back(records).await?;
                }
                match records.poll() {
                    Some(Event::Record(message)) => {
                        self.take(&message).await?;
                        taken = taken.wrapping_add(1);
                        if taken.is_multiple_of(TURN) {
                            self.advance().await?;
                            tokio::task::yield_now().await;
                        }
                    }
                    Some(Event::End(_)) => self.end_seen = Some(Instant::now()),
                    Some(Event::OutOfLog) => return Err(End::Again(anyhow!("the offset is not in the log any more"))),
                    Some(Event::Trouble(error)) => debug!("{}: {error:#}", self.held.seat),
                    None => self.idle(records).await?,
                }
                if self.held.until.is_some() && self.flight.is_empty() && self.held.is_done() {
                    return Err(End::Done);
                }
                Ok(())
            };
            if let Err(end) = step.await {
                return end;
            }
        }
    }

    /// Sends the message on once it is due, or puts it aside.
    async fn take(&mut self, message: &Message<'_>) -> Result<(), End> {
        let delayed = match DelayMessage::parse(message.value()) {
            Ok(delayed) => delayed,
            Err(why) => return self.put_aside(message, &why).await,
        };
        let age = age(message.timestamp(), delayed.created_at);
        let at_most = self.end_seen.map(|seen| seen.elapsed());
        let wait = message::wait(self.delay.delay, age, at_most);
        if !wait.is_zero() {
            let due = Instant::now() + wait;
            while Instant::now() < due {
                self.pass_time(async { sleep_until(due).await }).await?;
            }
        }
        if !self.held.lease.is_held() {
            return Err(End::Lost(self.held.lease.lost().await));
        }
        let (topic, partition) = (self.topic, Some(self.held.seat.partition.partition));
        let (key, value, headers) = (message.key(), Some(delayed.payload), message.headers());
        let sent = tokio::select! {
            biased;
            sent = self.flight.lane.send(Outgoing { topic, partition, key, value, headers }) => sent,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
            () = self.shutdown.requested() => return Err(End::Shutdown),
        };
        match sent {
            Ok(()) => self.flight.sent.push_back(done(message)),
            // What failed before it is found by the next turn, which then begins again there.
            Err(_) if self.flight.lane.has_failed() => {}
            Err(never) => {
                let what = format!("cannot send the message of offset {} on to {topic}", message.offset());
                return Err(End::Halted(Error::new(never).context(what)));
            }
        }
        Ok(())
    }

    async fn put_aside(&mut self, message: &Message<'_>, why: &Error) -> Result<(), End> {
        // The offset must not pass it before those in front of it are acknowledged.
        self.land().await?;
        let origin = &self.held.seat.partition;
        let Some(dead_letters) =
            self.delay.dead_letters.as_ref().filter(|_| self.delay.on_invalid == OnInvalid::DeadLetter)
        else {
            let what = format!("the message at offset {} cannot be sent on: {why:#}", message.offset());
            return Err(End::Halted(anyhow!("{what}; mend its writer and let --on-invalid dead-letter put it aside")));
        };
        let letters = [Letter::of(message, format!("{why:#}"))];
        tokio::select! {
            put = dead_letters.put(origin, &letters) => put.map_err(End::Halted)?,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
        }
        self.commit(done(message)).await
    }

    /// Waits for more to read.
    async fn idle(&mut self, records: &kafka::Partition) -> Result<(), End> {
        self.pass_time(records.readable()).await?;
        let refresh = (self.delay.delay / 60).clamp(Duration::from_millis(100), Duration::from_secs(5));
        if self.end_seen.is_some_and(|seen| seen.elapsed() > refresh) {
            let asked = Instant::now();
            match self.delay.reader.log(&self.held.seat.partition).await {
                Ok(log) if log.end == records.position() => self.end_seen = Some(asked),
                Ok(_) => {}
                Err(error) => debug!("{error:#}"),
            }
        }
        Ok(())
    }

    /// Waits for `something`, and meanwhile moves the offset over what is acknowledged.
    async fn pass_time(&mut self, something: impl Future<Output = ()>) -> Result<(), End> {
        let mut something = std::pin::pin!(something);
        loop {
            self.advance().await?;
            tokio::select! {
                biased;
                why = self.held.lease.lost() => return Err(End::Lost(why)),
                () = self.shutdown.requested() => return Err(End::Shutdown),
                () = &mut something => return Ok(()),
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

    async fn commit(&mut self, done: Done) -> Result<(), End> {
        let checked = tokio::select! {
            checked = self.held.check_topic() => checked?,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
        };
        self.held.standing = self.held.commit(checked, done).await?;
        self.flight.moved = Instant::now();
        Ok(())
    }

    /// Waits until each message in flight has its report, and moves the offset over those before the first failure.
    async fn land(&mut self) -> Result<(), End> {
        while self.flight.lane.in_flight() > 0 {
            tokio::select! {
                () = self.flight.lane.reported() => {}
                why = self.held.lease.lost() => return Err(End::Lost(why)),
            }
        }
        self.advance_now().await
    }

    /// After a failed report: begins again with the first message that was not acknowledged.
    async fn go_back(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        self.land().await?;
        self.flight.sent.clear();
        self.flight.counted = 0;
        self.end_seen = None;
        let Err(undelivered) = self.flight.lane.settled().await else {
            return Ok(());
        };
        let (offset, transient) = (self.held.standing.offset, undelivered.is_transient());
        let failed =
            Error::new(undelivered).context(format!("cannot send messages from offset {offset} on to {}", self.topic));
        if !transient {
            return Err(End::Halted(failed));
        }
        warn!("{}: {failed:#}; trying again", self.held.seat);
        self.pass_time(sleep(RETRY)).await?;
        records.seek(offset).await.map_err(End::Again)
    }

    /// What is in flight is waited for and counted, however the work ended; unless somebody else leads already.
    async fn finish(&mut self, end: End) -> End {
        match end {
            End::Lost(why) => End::Lost(why),
            end => match self.land().await {
                Ok(()) => end,
                Err(lost) => lost,
            },
        }
    }
}

fn done(message: &Message<'_>) -> Done {
    let record = message.record();
    Done { offset: record.offset.next(), leader_epoch: record.leader_epoch, last: Some(LastRecord::of(&record)) }
}

/// How long ago a message was made: by the broker's clock where it gave the time, else as its writer says.
fn age(timestamp: Timestamp, created_at: Option<SystemTime>) -> Duration {
    let made = match timestamp {
        Timestamp::Append(time) => Some(time),
        Timestamp::Create(time) => created_at.or(Some(time)),
        Timestamp::None => created_at,
    };
    // A time that lies in the future counts as now.
    made.and_then(|made| made.elapsed().ok()).unwrap_or_default()
}
