//! Putting records aside that cannot be worked on: as they are, with what happened in added headers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use log::warn;
use tokio::time::sleep;

use crate::kafka::{Headers, Lane, Message, Outgoing, Writer};
use crate::record::Original;
use crate::topic::{Name, Offset, Topic, TopicPartition};

/// How long to wait before a broker that did not take a record is asked again.
const RETRY: Duration = Duration::from_secs(1);

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

    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

impl DeadLetters {
    /// Returns when all letters are acknowledged; while no broker takes them it goes on trying. Cancelling may leave
    /// some of them written, which the next attempt writes again.
    ///
    /// Fails where a letter can never be written, because it is too large, or because writing is not allowed.
    pub async fn put(&self, origin: &TopicPartition, letters: &[Letter]) -> Result<()> {
        let topic = self.topics.get(&origin.topic).context("no dead-letter topic is known for this one")?;
        let mut lane = self.writer.lane();
        for letter in letters {
            warn!("{origin}: the record at offset {} goes to {topic}: {}", letter.offset, letter.reason.error);
        }
        loop {
            for letter in letters {
                if self.send(&mut lane, origin, topic, letter).await.is_err() {
                    break; // Why, settled() tells.
                }
            }
            match lane.settled().await {
                Ok(()) => return Ok(()),
                Err(undelivered) if undelivered.is_transient() => {
                    warn!("{origin}: {undelivered}; writing to {topic} again");
                    sleep(RETRY).await;
                }
                Err(undelivered) => return Err(anyhow!(undelivered).context(format!("cannot write to {topic}"))),
            }
        }
    }

    async fn send(
        &self,
        lane: &mut Lane,
        origin: &TopicPartition,
        topic: &Topic,
        letter: &Letter,
    ) -> Result<(), crate::kafka::Undelivered> {
        let Reason { error, attempts, stderr } = &letter.reason;
        let mut headers = (letter.headers.clone())
            .with("ksync.topic", Some(origin.topic.as_str().as_bytes()))
            .with("ksync.partition", Some(origin.partition.to_string().as_bytes()))
            .with("ksync.offset", Some(letter.offset.to_string().as_bytes()))
            .with("ksync.name", Some(self.name.as_str().as_bytes()))
            .with("ksync.error", Some(error.as_bytes()));
        if *attempts > 0 {
            headers = headers.with("ksync.attempts", Some(attempts.to_string().as_bytes()));
        }
        if !stderr.is_empty() {
            headers = headers.with("ksync.stderr", Some(stderr));
        }
        let (key, value) = (letter.key.as_deref(), letter.value.as_deref());
        lane.send(Outgoing { topic, partition: None, key, value, headers: Some(headers) }).await
    }
}
