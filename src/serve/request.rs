//! What an application asks for, a JSON line each, and what it is answered.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::announce::{Changed, Destination};
use crate::message::{Change, key_of};

/// How long an id and a tx may be, in bytes.
const LONGEST_NAME: usize = 1024;
/// How much is told of an error, in bytes: it may repeat a part of the request, of whatever length.
const LONGEST_ERROR: usize = 1024;
/// What a change takes in memory besides its own bytes, about.
const BESIDE: usize = 100;

/// One request, as it was understood.
#[derive(Debug)]
pub(super) struct Request {
    /// As it was written; `null` where there was none.
    pub id: String,
    pub asked: Result<Asked>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    /// As it was written; an `instant` that brings all its messages along needs none.
    pub tx: Option<String>,
    pub op: Op,
    pub changes: Changes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Op {
    /// Before the commit.
    Delay,
    /// After it.
    Instant,
    /// Rolled back.
    Forget,
}

/// Changed records, by the topics that are served.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes(Vec<(usize, Vec<Change>)>);

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// About how much memory they take, in bytes.
    pub fn weight(&self) -> usize {
        let weight =
            |(_, change): (usize, &Change)| BESIDE + change.payload.len() + change.key.as_ref().map_or(0, Vec::len);
        self.iter().map(weight).sum()
    }

    /// All of them, each record once, as it is told last. Those without a key are one record if they have the same payload.
    pub fn last_of_each<'a>(all: impl Iterator<Item = &'a Changes>) -> Changes {
        let mut last = Changes::default();
        let mut places = HashMap::<(usize, Result<_, _>), (usize, usize)>::new();
        for (topic, change) in all.flat_map(Changes::iter) {
            let record = (topic, change.key.as_ref().ok_or(&change.payload));
            match places.get(&record) {
                Some((at, place)) => last.0[*at].1[*place] = change.clone(),
                None => drop(places.insert(record, last.add(topic, change.clone()))),
            }
        }
        last
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &Change)> {
        self.0.iter().flat_map(|(topic, changes)| changes.iter().map(|change| (*topic, change)))
    }

    pub fn to<'a>(&'a self, topics: &'a Topics) -> Vec<Changed<'a>> {
        self.0.iter().map(|(topic, changes)| Changed { to: &topics.destinations[*topic], changes }).collect()
    }

    /// Gives its place.
    fn add(&mut self, topic: usize, change: Change) -> (usize, usize) {
        let at = self.0.iter().position(|(known, _)| *known == topic).unwrap_or_else(|| {
            self.0.push((topic, vec![]));
            self.0.len() - 1
        });
        self.0[at].1.push(change);
        (at, self.0[at].1.len() - 1)
    }
}

/// The topics that are served, and the members of a payload that make its key.
#[derive(Debug)]
pub(super) struct Topics {
    pub destinations: Vec<Destination>,
    pub key: Vec<String>,
}

impl Topics {
    fn find(&self, name: Option<&str>) -> Result<usize> {
        let Some(name) = name else {
            return match self.destinations.len() {
                1 => Ok(0),
                several => Err(anyhow!("a message has to name its topic, since {several} are served")),
            };
        };
        let names = || self.destinations.iter().map(|to| to.topic().as_str()).collect::<Vec<_>>().join(", ");
        let found = self.destinations.iter().position(|to| to.topic().as_str() == name);
        found.with_context(|| format!("topic {name} is not served, only {}; see --topic", names()))
    }
}

impl Request {
    pub fn parse(line: &[u8], topics: &Topics) -> Request {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
            #[serde(borrow)]
            tx: Option<&'a RawValue>,
            #[serde(borrow)]
            op: &'a RawValue,
            #[serde(borrow, default)]
            messages: Vec<Message<'a>>,
        }
        let line = match serde_json::from_slice::<Line>(line) {
            Ok(line) => line,
            Err(error) => {
                return Request { id: id_of(line), asked: Err(anyhow!("this is not a request: {error}")) };
            }
        };
        if line.id.get().len() > LONGEST_NAME || line.tx.is_some_and(|tx| tx.get().len() > LONGEST_NAME) {
            let error = anyhow!("an id or a tx is longer than {LONGEST_NAME} bytes");
            return Request { id: "null".to_owned(), asked: Err(error) };
        }
        let asked = asked(line.op, line.tx, &line.messages, topics);
        Request { id: line.id.get().to_owned(), asked }
    }
}

/// As it is written in what may be no request otherwise; `null` where there is none.
pub(super) fn id_of(line: &[u8]) -> String {
    let members = serde_json::from_slice::<HashMap<String, &RawValue>>(line).unwrap_or_default();
    let id = members.get("id").map(|id| id.get()).filter(|id| id.len() <= LONGEST_NAME);
    id.unwrap_or("null").to_owned()
}

#[derive(Deserialize)]
struct Message<'a> {
    topic: Option<String>,
    key: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

fn asked(op: &RawValue, tx: Option<&RawValue>, messages: &[Message<'_>], topics: &Topics) -> Result<Asked> {
    let known: Option<Op> = serde_json::from_str(op.get()).ok();
    let op = known.with_context(|| format!("op is delay, instant or forget, not {op}"))?;
    let tx = tx.map(|tx| tx.get()).filter(|tx| *tx != "null").map(str::to_owned);
    let mut changes = Changes::default();
    for message in messages {
        let payload = message.payload.get().as_bytes().to_vec();
        let key = match &message.key {
            Some(key) => Some(key.clone().into_bytes()),
            None => key_of(&payload, &topics.key).context("a message has no usable key")?,
        };
        changes.add(topics.find(message.topic.as_deref())?, Change { key, payload });
    }
    match op {
        Op::Delay if messages.is_empty() => bail!("a delay request needs messages"),
        Op::Delay | Op::Forget if tx.is_none() => {
            bail!("a {} request needs a tx", if op == Op::Delay { "delay" } else { "forget" })
        }
        Op::Instant if tx.is_none() && messages.is_empty() => bail!("an instant request needs a tx, or messages"),
        _ => Ok(Asked { tx, op, changes: Changes::last_of_each([&changes].into_iter()) }),
    }
}

/// The answer to a request, a line.
pub(super) fn answer(id: &str, result: &Result<()>) -> String {
    match result {
        Ok(()) => format!("{{\"id\":{id},\"ok\":true}}\n"),
        Err(error) => {
            let mut error = format!("{error:#}");
            error.truncate(error.floor_char_boundary(LONGEST_ERROR));
            let error = serde_json::Value::from(error);
            format!("{{\"id\":{id},\"ok\":false,\"error\":{error}}}\n")
        }
    }
}
