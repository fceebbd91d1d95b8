//! Delay messages that were read and are not due yet.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use tokio::time::Instant;

use crate::dead_letter::Letter;
use crate::kafka::{Headers, Message, Timestamp};
use crate::lead::Done;
use crate::message::DelayMessage;
use crate::mutants::Mutant;
use crate::topic::Offset;

/// How many messages are held at most, whatever their size.
const MOST: usize = 10_000;

/// A message and the moment from which it may be sent on.
pub struct Waiting {
    pub key: Option<Vec<u8>>,
    pub headers: Option<Headers>,
    /// Why it is no delay message, or what it holds back.
    pub payload: Result<Vec<u8>>,
    /// The whole of it, where it is none.
    pub letter: Option<Letter>,
    /// Where the partition stands once it is sent.
    pub done: Done,
    due: Instant,
    /// What the broker's clock shows when it is due, where the message tells.
    due_there: Option<SystemTime>,
}

impl Waiting {
    /// `age` is how old a message is that was made then, as far as that may be believed.
    pub fn of(message: &Message<'_>, delay: Duration, age: impl Fn(SystemTime) -> Duration) -> Waiting {
        let record = message.record();
        let done = Done::after(&record);
        let (key, headers) = (message.key().map(<[u8]>::to_vec), message.headers());
        match DelayMessage::parse(message.value()) {
            Ok(DelayMessage { payload, created_at }) => {
                let age = made(message.timestamp(), created_at).map_or(Duration::ZERO, age);
                let due = Instant::now() + delay.saturating_sub(age);
                let due_there = match message.timestamp() {
                    Timestamp::Append(time) => Some(time + age.max(delay)),
                    Timestamp::Create(_) | Timestamp::None => None,
                };
                Waiting { key, headers, payload: Ok(payload.to_vec()), letter: None, done, due, due_there }
            }
            Err(why) => {
                let letter = Some(Letter::of(message, format!("{why:#}")));
                Waiting { key, headers, payload: Err(why), letter, done, due: Instant::now(), due_there: None }
            }
        }
    }

    pub fn offset(&self) -> Offset {
        Offset(self.done.offset.0 - 1)
    }

    /// The time to send it on with. By this machine's clock, if that is wrong, its topic might refuse it, or soon delete it.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.due_there.map(|time| time + self.due.elapsed())
    }

    fn bytes(&self) -> usize {
        let payload = self.payload.as_ref().map_or(0, Vec::len) + self.letter.as_ref().map_or(0, Letter::bytes);
        let beside = self.key.as_ref().map_or(0, Vec::len) + self.headers.as_ref().map_or(0, Headers::bytes);
        beside + payload + size_of::<Waiting>()
    }
}

/// When a message was made: by the broker's clock where it gave the time, else as its writer says.
fn made(timestamp: Timestamp, created_at: Option<SystemTime>) -> Option<SystemTime> {
    match timestamp {
        _ if Mutant::BelievesPayload.is_on() => created_at,
        Timestamp::Append(time) => Some(time),
        Timestamp::Create(time) => created_at.or(Some(time)),
        Timestamp::None => created_at,
    }
}

/// Messages in their order, and how many more there is room for.
pub struct Room {
    messages: VecDeque<Waiting>,
    bytes: usize,
    limit: usize,
}

impl Room {
    pub fn new(limit: usize) -> Room {
        Room { messages: VecDeque::new(), bytes: 0, limit }
    }

    pub fn push(&mut self, message: Waiting) {
        self.bytes += message.bytes();
        self.messages.push_back(message);
    }

    /// One message fits whatever its size.
    pub fn is_full(&self) -> bool {
        !self.messages.is_empty() && (self.bytes >= self.limit || self.messages.len() >= MOST)
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The offset of the first one, and when it is due. Those behind it wait for it.
    pub fn due(&self) -> Option<(Offset, Instant)> {
        self.messages.front().map(|message| (message.offset(), message.due))
    }

    pub fn take_due(&mut self) -> Option<Waiting> {
        let (_, due) = self.due()?;
        if due > Instant::now() {
            return None;
        }
        let message = self.messages.pop_front()?;
        self.bytes -= message.bytes();
        Some(message)
    }

    pub fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }
}
