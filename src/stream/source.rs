//! Where the rows of a chunk come from: a table, a query, or lines of stdin.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use log::warn;
use memchr::memchr;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, BufReader, Stdin};
use tokio::time::{Instant, timeout_at};

use super::action::kept_awake;
use super::failure;
use crate::announce::{Changed, Destination};
use crate::database::{self, Database, Key, Limit, Scan};
use crate::message::{Change, key_of};

/// How long a line of stdin may be, in bytes: more than a record may have.
const LONGEST: usize = 128 << 20;

/// When a chunk is full.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    pub rows: usize,
    /// Of payloads; one row fits whatever its size.
    pub bytes: usize,
    /// How long to wait for more lines of stdin once one is there.
    pub wait: Duration,
    /// How long an action on rows of a database is to take: where it takes longer, the next chunk is smaller.
    pub time: Duration,
}

/// Where the rows come from.
pub enum Source {
    Lines(Lines),
    Rows {
        database: Database,
        scan: Scan,
    },
    /// Lines that name the rows of a database by their keys.
    Keys {
        lines: Lines,
        /// Where they are, unless the statement is run elsewhere.
        database: Option<Database>,
        key: Key,
    },
}

/// JSON lines of stdin, each a payload.
pub struct Lines {
    input: BufReader<Stdin>,
    /// What was read of the next one.
    line: Vec<u8>,
    /// The members that make the record key.
    key: Vec<String>,
    number: u64,
    /// Of the next chunk, where it was read already.
    first: Option<Change>,
}

/// Where a source stood; lines cannot be read again.
pub(super) struct Place(Option<Scan>);

/// The rows that are served at once.
pub enum Chunk {
    Lines(Vec<Change>),
    Rows(database::Chunk),
}

impl Chunk {
    pub fn changes(&self) -> &[Change] {
        match self {
            Chunk::Lines(changes) => changes,
            Chunk::Rows(chunk) => &chunk.changes,
        }
    }

    /// The same as what is announced to a topic.
    pub fn changed<'a>(&'a self, to: &'a Destination) -> Changed<'a> {
        Changed { to, changes: self.changes() }
    }
}

impl Source {
    /// Where the rows are, or are named.
    pub fn database(&mut self) -> Option<&mut Database> {
        match self {
            Source::Lines(_) => None,
            Source::Rows { database, .. } => Some(database),
            Source::Keys { database, .. } => database.as_mut(),
        }
    }

    /// Whether there may be another chunk; of stdin it waits for the first line. Cancelling loses no line.
    pub(super) async fn has_more(&mut self) -> Result<bool> {
        match self {
            Source::Lines(lines) => lines.has_more().await,
            Source::Keys { lines, database, .. } => kept_awake(database.as_mut(), lines.has_more()).await,
            Source::Rows { scan, .. } => Ok(!scan.is_done()),
        }
    }

    /// Where it stands.
    pub(super) fn place(&self) -> Place {
        match self {
            Source::Rows { scan, .. } => Place(Some(scan.clone())),
            Source::Lines(_) | Source::Keys { .. } => Place(None),
        }
    }

    /// Reads on from there.
    pub(super) fn go_back(&mut self, place: Place) {
        if let (Source::Rows { scan, .. }, Place(Some(place))) = (self, place) {
            *scan = place;
        }
    }

    /// Whether what it gives would not be true any more when a row is changed.
    pub(super) fn tells_more_than_keys(&self) -> bool {
        matches!(self, Source::Rows { scan, .. } if scan.tells_more_than_keys())
    }

    pub(super) async fn next(&mut self, limits: ChunkLimits) -> Result<Option<Chunk>> {
        match self {
            Source::Lines(lines) => Ok(lines.next(limits).await?.map(Chunk::Lines)),
            Source::Keys { lines, database, key } => {
                let Some(changes) = kept_awake(database.as_mut(), lines.next(limits)).await? else { return Ok(None) };
                let chunk = key.chunk(changes);
                Ok(Some(Chunk::Rows(chunk.with_context(|| format!("up to line {} of stdin", lines.number))?)))
            }
            Source::Rows { database, scan } => {
                let limit = Limit { rows: limits.rows, bytes: limits.bytes };
                let chunk = database.next_chunk(scan, limit).await.map_err(failure)?;
                Ok(chunk.map(Chunk::Rows))
            }
        }
    }
}

impl Lines {
    pub fn new(key: Vec<String>) -> Lines {
        let input = BufReader::with_capacity(1 << 20, tokio::io::stdin());
        Lines { input, line: Vec::new(), key, number: 0, first: None }
    }

    /// The next lines; `None` at the end. A line that is not JSON is an error before anything of its chunk is sent.
    async fn next(&mut self, limits: ChunkLimits) -> Result<Option<Vec<Change>>> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        if !self.has_more().await? {
            return Ok(None);
        }
        let end = Instant::now() + limits.wait;
        let mut next = self.first.take();
        while let Some(change) = next {
            bytes += change.payload.len();
            changes.push(change);
            if changes.len() >= limits.rows || bytes >= limits.bytes {
                break;
            }
            next = match timeout_at(end, self.change()).await {
                Ok(change) => change?,
                Err(_) => None,
            };
        }
        Ok(Some(changes))
    }

    async fn has_more(&mut self) -> Result<bool> {
        if self.first.is_none() {
            self.first = self.change().await?;
        }
        if self.first.is_none() && self.number == 0 {
            warn!("there was no line on stdin");
        }
        Ok(self.first.is_some())
    }

    async fn change(&mut self) -> Result<Option<Change>> {
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            let line = line.trim_ascii();
            if !line.is_empty() {
                return self.parse(line).map(Some);
            }
        }
    }

    /// The next line, as it is. Cancelling loses nothing.
    async fn line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let there = self.input.fill_buf().await.context("cannot read stdin")?;
            let end = memchr(b'\n', there);
            let is_over = there.is_empty();
            self.line.extend_from_slice(&there[..end.unwrap_or(there.len())]);
            let used = end.map_or(there.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() || (is_over && !self.line.is_empty()) {
                self.number += 1;
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if is_over {
                return Ok(None);
            }
            ensure!(self.line.len() <= LONGEST, "line {} of stdin is longer than {LONGEST} bytes", self.number + 1);
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Change> {
        let at = || format!("line {} of stdin", self.number);
        let payload: &RawValue = serde_json::from_slice(line).with_context(|| format!("{} is not JSON", at()))?;
        let payload = payload.get().as_bytes();
        let key = key_of(payload, &self.key).with_context(|| format!("{} has no usable key", at()))?;
        Ok(Change { key, payload: payload.to_vec() })
    }
}
