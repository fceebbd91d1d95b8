//! ksync-stream: announces rows of the database, or lines of stdin, and runs an action on them chunk by chunk.

use std::future::{pending, ready};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use log::{info, warn};
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, BufReader, Split, Stdin};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::announce::{Announcer, Phases};
use crate::database::{self, Database, Limit, Scan, Statement, Trouble};
use crate::exit::Exit;
use crate::handler::{Command, Failed, Input, Kind, Outcome};
use crate::message::{Change, key_of};
use crate::progress::Progress;
use crate::shutdown::Shutdown;

/// How many chunks are read ahead of the one that is being sent.
const AHEAD: usize = 2;

/// One run of ksync-stream.
pub struct Stream {
    pub source: Source,
    pub action: Option<Action>,
    pub phases: Phases,
    pub chunk: ChunkLimits,
}

/// When a chunk is full.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    pub rows: usize,
    /// Of payloads; one row fits whatever its size.
    pub bytes: usize,
    /// How long to wait for more lines of stdin once one is there.
    pub wait: Duration,
}

/// Where the rows come from.
pub enum Source {
    Lines(Lines),
    Rows { database: Database, scan: Scan },
}

/// What is done to the rows of a chunk between its messages.
pub enum Action {
    Sql(Statement),
    Command(Command),
}

/// JSON lines of stdin, each a payload.
pub struct Lines {
    lines: Split<BufReader<Stdin>>,
    /// The members that make the record key.
    key: Vec<String>,
    number: u64,
}

/// The rows that are served at once.
enum Chunk {
    Lines(Vec<Change>),
    Rows(database::Chunk),
}

impl Chunk {
    fn changes(&self) -> &[Change] {
        match self {
            Chunk::Lines(changes) => changes,
            Chunk::Rows(chunk) => &chunk.changes,
        }
    }
}

impl Stream {
    /// Runs to the end of the source; asked to end earlier, it finishes the chunk and exits with status 75.
    pub async fn run(self, mut announcer: Announcer, mut progress: Progress, shutdown: &Shutdown) -> Result<Exit> {
        let Stream { source, action, phases, chunk } = self;
        let ended = match action {
            None if phases == Phases::InstantOnly => {
                reindex(source, chunk, &mut announcer, &mut progress, shutdown).await?
            }
            action => {
                let ended = update((source, chunk), action, phases, &mut announcer, &mut progress, shutdown).await;
                announcer.warn_of_short_delay();
                ended?
            }
        };
        progress.finish();
        if ended == Exit::Again {
            info!("asked to end before the end of the source");
        }
        Ok(ended)
    }
}

/// Instant messages only: chunks are read while others are sent, and acknowledged as they come.
async fn reindex(
    source: Source,
    limits: ChunkLimits,
    announcer: &mut Announcer,
    progress: &mut Progress,
    shutdown: &Shutdown,
) -> Result<Exit> {
    let mut chunks = read_ahead(source, limits);
    let mut ended = Exit::Done;
    let failed = loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            () = shutdown.requested() => {
                ended = Exit::Again;
                break None;
            }
        };
        match chunk {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(chunk)) => {
                announcer.instant_messages(chunk.changes()).await?;
                progress.add(chunk.changes().len());
            }
        }
    };
    announcer.settled().await?;
    failed.map_or(Ok(ended), Err)
}

fn read_ahead(mut source: Source, limits: ChunkLimits) -> mpsc::Receiver<Result<Chunk>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        while let Some(chunk) = source.next(limits).await.transpose() {
            let is_last = chunk.is_err();
            if sender.send(chunk).await.is_err() || is_last {
                break;
            }
        }
    });
    receiver
}

/// Chunk by chunk: delay messages, action, instant messages.
async fn update(
    (mut source, limits): (Source, ChunkLimits),
    mut action: Option<Action>,
    phases: Phases,
    announcer: &mut Announcer,
    progress: &mut Progress,
    shutdown: &Shutdown,
) -> Result<Exit> {
    loop {
        let chunk = tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(Exit::Again),
            chunk = source.next(limits) => chunk?,
        };
        let Some(chunk) = chunk else { return Ok(Exit::Done) };
        announcer.around(chunk.changes(), phases, act(action.as_mut(), &mut source, &chunk)).await?;
        progress.add(chunk.changes().len());
    }
}

async fn act(action: Option<&mut Action>, source: &mut Source, chunk: &Chunk) -> Result<()> {
    match (action, source, chunk) {
        (None, _, _) => Ok(()),
        (Some(Action::Sql(statement)), Source::Rows { database, .. }, Chunk::Rows(rows)) => {
            database.run(statement, rows).await.map_err(failure).map(drop)
        }
        (Some(Action::Sql(_)), _, _) => Err(anyhow!("a statement needs rows of a database")),
        (Some(Action::Command(command)), _, _) => run(command, chunk.changes()).await,
    }
}

/// Gives the command the chunk's payloads; its end decides whether the run goes on.
async fn run(command: &Command, changes: &[Change]) -> Result<()> {
    let mut lines = Vec::with_capacity(changes.iter().map(|change| change.payload.len() + 1).sum());
    for change in changes {
        lines.extend_from_slice(&change.payload);
        lines.push(b'\n');
    }
    let environment = [("KSYNC_BATCH_COUNT", changes.len().to_string())];
    let input = Input { label: "action", lines: &lines, environment: &environment };
    match command.run(input, ready(true), pending()).await {
        Outcome::Done(_) => Ok(()),
        Outcome::Failed(Failed { failure, .. }) => {
            let exit = match failure.kind() {
                Kind::Temporary => Exit::Again,
                Kind::Misconfigured => Exit::Misconfigured,
                Kind::Permanent | Kind::Failed => Exit::Person,
            };
            Err(exit.because(anyhow!("the action failed: {failure}; the delay messages of its chunk are sent")))
        }
        Outcome::Stopped => Err(Exit::Again.because(anyhow!("the action was stopped"))),
    }
}

impl Source {
    async fn next(&mut self, limits: ChunkLimits) -> Result<Option<Chunk>> {
        match self {
            Source::Lines(lines) => Ok(lines.next(limits).await?.map(Chunk::Lines)),
            Source::Rows { database, scan } => {
                let limit = Limit { rows: limits.rows, bytes: limits.bytes };
                let chunk = database.next_chunk(scan, limit).await.map_err(failure)?;
                Ok(chunk.map(Chunk::Rows))
            }
        }
    }
}

/// The error, with the exit status that its kind asks for.
pub fn failure(trouble: Trouble) -> anyhow::Error {
    match trouble {
        Trouble::Misconfigured(error) => Exit::Misconfigured.because(error),
        Trouble::Away(error) => Exit::Again.because(error),
        Trouble::Refused(error) => Exit::Person.because(error),
    }
}

impl Lines {
    pub fn new(key: Vec<String>) -> Lines {
        Lines { lines: BufReader::with_capacity(1 << 20, tokio::io::stdin()).split(b'\n'), key, number: 0 }
    }

    /// The next lines; `None` at the end. A line that is not JSON is an error before anything of its chunk is sent.
    async fn next(&mut self, limits: ChunkLimits) -> Result<Option<Vec<Change>>> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        let Some(first) = self.change().await? else {
            if self.number == 0 {
                warn!("there was no line on stdin");
            }
            return Ok(None);
        };
        let end = Instant::now() + limits.wait;
        let mut next = Some(first);
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

    async fn change(&mut self) -> Result<Option<Change>> {
        loop {
            let line = self.lines.next_segment().await.context("cannot read stdin")?;
            let Some(line) = line else { return Ok(None) };
            self.number += 1;
            let line = line.trim_ascii();
            if !line.is_empty() {
                return self.parse(line).map(Some);
            }
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
