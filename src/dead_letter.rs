//! Putting records aside that cannot be worked on: as they are, with what happened in added headers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::slice;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use log::warn;
use tokio::time::sleep;

use crate::kafka::{Headers, Lane, Message, Outgoing, Undelivered, Writer};
use crate::record::{Original, Record};
use crate::topic::{Name, Offset, Topic, TopicPartition};

/// How long to wait before a broker that did not take a record is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// The headers that are added behind a letter's own, in this order; the last two only where there is something to tell.
const ADDED: [&str; 7] = [TOPIC, PARTITION, OFFSET, NAME, ERROR, ATTEMPTS, STDERR];
const TOPIC: &str = "ksync.topic";
const PARTITION: &str = "ksync.partition";
const OFFSET: &str = "ksync.offset";
const NAME: &str = "ksync.name";
const ERROR: &str = "ksync.error";
const ATTEMPTS: &str = "ksync.attempts";
const STDERR: &str = "ksync.stderr";

/// Where each topic's bad records go.
pub struct DeadLetters {
    pub writer: Writer,
    pub topics: BTreeMap<Topic, Topic>,
    pub name: Name,
}

/// A record on its way there.
#[derive(Clone, Debug)]
pub struct Letter {
    offset: Offset,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Headers,
    reason: Reason,
}

/// Where a dead letter comes from, by its added headers, and the headers that it had there.
#[derive(Debug)]
pub struct Origin {
    pub partition: TopicPartition,
    pub offset: Offset,
    pub headers: Option<Headers>,
}

/// Why a record is put aside.
#[derive(Clone, Debug, Default)]
pub struct Reason {
    pub error: String,
    /// How many runs of the handler have had it; 0 where none could be given it.
    pub attempts: u32,
    /// The last that the handler wrote to stderr when it failed.
    pub stderr: Vec<u8>,
}

impl Letter {
    pub fn of(message: &Message<'_>, why: String) -> Letter {
        Letter {
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.value().map(<[u8]>::to_vec),
            headers: message.headers().unwrap_or_default(),
            reason: Reason { error: why, ..Reason::default() },
        }
    }

    /// A letter of a record that was read earlier.
    pub fn of_original(offset: Offset, original: Original, reason: Reason) -> Letter {
        let Original { key, value, headers } = original;
        let headers = headers.iter().fold(Headers::default(), |all, (name, value)| all.with(name, value.as_deref()));
        Letter { offset, key, value, headers, reason }
    }

    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// Why it is put aside.
    pub fn why(&self) -> &str {
        &self.reason.error
    }

    pub fn bytes(&self) -> usize {
        let record = self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len);
        record + self.headers.bytes() + self.reason.error.len() + self.reason.stderr.len() + size_of::<Letter>()
    }
}

impl Origin {
    /// Fails where the record has not the headers that every letter has: somebody else wrote it.
    pub fn of(record: &Record<'_>) -> Result<Origin> {
        // The last one: a letter that came to be a letter again has two.
        let begin = record.headers.iter().rposition(|(name, _)| name == TOPIC);
        let missing = || format!("it is no dead letter of ksync, for it has no header {TOPIC}");
        let (before, added) = record.headers.split_at(begin.with_context(missing)?);
        // What others have put behind ours is not ours either.
        let own = before.iter().chain(added.iter().filter(|(name, _)| !ADDED.contains(&name.as_ref())));
        let mut own = own.peekable();
        let headers = own.peek().is_some().then(|| own.fold(Headers::default(), |all, (n, value)| all.with(n, *value)));
        let topic: Topic = parsed(added, TOPIC)?;
        Ok(Origin {
            partition: topic.partition(parsed(added, PARTITION)?),
            offset: Offset(parsed(added, OFFSET)?),
            headers,
        })
    }
}

fn parsed<T: FromStr>(added: &[(Cow<'_, str>, Option<&[u8]>)], name: &str) -> Result<T> {
    let text = added.iter().find(|(header, _)| header == name).and_then(|(_, value)| *value);
    let text = text.with_context(|| format!("it is no dead letter of ksync, for it has no header {name}"))?;
    let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    value.with_context(|| format!("its header {name} is '{}'", text.escape_ascii()))
}

impl DeadLetters {
    /// Returns when all letters are acknowledged; while no broker takes them it goes on trying. Cancelling may leave
    /// some of them written, which the next attempt writes again.
    ///
    /// Fails where a letter can never be written, because it is too large, or because writing is not allowed.
    pub async fn put(&self, origin: &TopicPartition, letters: &[Letter]) -> Result<()> {
        let topic = self.topics.get(&origin.topic).context("no dead-letter topic is known for this one")?;
        for letter in letters {
            warn!("{origin}: the record at offset {} goes to {topic}: {}", letter.offset, letter.reason.error);
        }
        let mut written = self.write(origin, topic, letters).await;
        if written.is_err() && letters.len() > 1 {
            // A broker refuses a whole batch for one of its letters, or for their sum. Which one shows when each goes alone.
            written = Ok(());
            for letter in letters {
                written = written.and(self.write(origin, topic, slice::from_ref(letter)).await);
            }
        }
        written.with_context(|| format!("cannot write to {topic}"))
    }

    /// Fails where one can never be written.
    async fn write(&self, origin: &TopicPartition, topic: &Topic, letters: &[Letter]) -> Result<(), Undelivered> {
        let mut lane = self.writer.lane();
        loop {
            let mut sent = Ok(());
            for letter in letters {
                sent = self.send(&mut lane, origin, topic, letter).await;
                if sent.is_err() {
                    break;
                }
            }
            // The lane does not know of a letter that was not even queued.
            match lane.settled().await.and(sent) {
                Err(undelivered) if undelivered.is_transient() => {
                    warn!("{origin}: {undelivered}; writing to {topic} again");
                    sleep(RETRY).await;
                }
                written => return written,
            }
        }
    }

    async fn send(
        &self,
        lane: &mut Lane,
        origin: &TopicPartition,
        topic: &Topic,
        letter: &Letter,
    ) -> Result<(), Undelivered> {
        let Reason { error, attempts, stderr } = &letter.reason;
        let mut headers = (letter.headers.clone())
            .with(TOPIC, Some(origin.topic.as_str().as_bytes()))
            .with(PARTITION, Some(origin.partition.to_string().as_bytes()))
            .with(OFFSET, Some(letter.offset.to_string().as_bytes()))
            .with(NAME, Some(self.name.as_str().as_bytes()))
            .with(ERROR, Some(error.as_bytes()));
        if *attempts > 0 {
            headers = headers.with(ATTEMPTS, Some(attempts.to_string().as_bytes()));
        }
        if !stderr.is_empty() {
            headers = headers.with(STDERR, Some(stderr));
        }
        let (key, value) = (letter.key.as_deref(), letter.value.as_deref());
        let headers = Some(headers);
        lane.send(Outgoing { topic, partition: None, key, value, headers, timestamp: None }).await
    }
}
