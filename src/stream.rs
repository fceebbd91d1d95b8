//! ksync-stream: announces rows of the database, or lines of stdin, and runs an action on them chunk by chunk.

use anyhow::{Context, Result};
use log::{error, info};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::announce::{Announcer, Phases, UNANNOUNCED};
use crate::database::Trouble;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::shutdown::Shutdown;

mod action;
mod checkpoint;
mod control;
mod file;
mod gauge;
mod job;
mod journal;
mod lag;
mod pace;
mod plan;
mod query;
mod sizing;
mod source;
mod status;
mod throttle;
mod window;

pub use action::Action;
use action::{act, target};
pub use control::Control;
pub use gauge::Gauge;
pub use job::Job;
use journal::Journal;
pub use journal::{Keep, Resume};
pub use lag::{Lag, Limits};
pub use pace::Rate;
pub use plan::Plan;
pub use query::Query;
use sizing::Sizing;
use source::Chunk;
pub use source::{ChunkLimits, Lines, Source};
pub use status::Console;
pub use throttle::Throttle;
pub use window::Window;

/// How many chunks are read ahead of the one that is being sent.
const AHEAD: usize = 2;

/// One run of ksync-stream.
pub struct Stream {
    pub source: Source,
    pub action: Option<Action>,
    pub phases: Phases,
    pub chunk: ChunkLimits,
    /// Lines of stdin have none.
    pub resume: Option<Resume>,
    pub throttle: Throttle,
}

impl Stream {
    /// Runs to the end of the source; asked to end earlier, it finishes the chunk and exits with status 75.
    pub async fn run(self, announcer: Announcer, progress: Progress, shutdown: &Shutdown) -> Result<Exit> {
        let Stream { mut source, mut action, phases, chunk, resume, throttle } = self;
        let Some(journal) = Journal::begin(resume, &mut source, action.as_mut()).await? else {
            return Ok(Exit::Done);
        };
        let mut run = Run { announcer, journal, progress, throttle, shutdown, unsettled: None };
        run.progress.skip(run.journal.rows());
        let ended = match action {
            None if phases == Phases::InstantOnly => run.reindex(source, chunk).await?,
            action => {
                let ended = run.update(source, chunk, action, phases).await;
                run.announcer.warn_of_short_delay();
                ended?
            }
        };
        run.progress.finish();
        if ended == Exit::Again {
            info!("asked to end before the end of the source{}", run.journal.outlook());
        }
        Ok(ended)
    }
}

/// What a run does its work with, whatever its rows and its action are.
struct Run<'a> {
    announcer: Announcer,
    journal: Journal,
    progress: Progress,
    throttle: Throttle,
    shutdown: &'a Shutdown,
    /// Of which the instant messages are not known to be acknowledged yet.
    unsettled: Option<Chunk>,
}

impl Run<'_> {
    /// Instant messages only: chunks are read while others are sent, and acknowledged as they come.
    async fn reindex(&mut self, source: Source, limits: ChunkLimits) -> Result<Exit> {
        let mut chunks = read_ahead(source, limits);
        let mut ended = Exit::Done;
        let failed = loop {
            let chunk = tokio::select! {
                chunk = chunks.recv() => chunk,
                () = self.shutdown.requested() => {
                    ended = Exit::Again;
                    break None;
                }
            };
            match chunk {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(chunk)) => {
                    match self.may_begin().await {
                        Ok(true) => {}
                        Ok(false) => {
                            ended = Exit::Again;
                            break None;
                        }
                        Err(error) => break Some(error),
                    }
                    self.announcer.instant_messages(chunk.changes()).await?;
                    if self.journal.is_kept() {
                        self.announcer.settled().await?;
                        self.journal.begin_chunk(&chunk, Phases::InstantOnly)?;
                        self.journal.end_chunk().await?;
                    }
                    self.done(&chunk);
                }
            }
        };
        self.announcer.settled().await?;
        if failed.is_none() && ended == Exit::Done {
            self.journal.finish(None).await?;
        }
        failed.map_or(Ok(ended), Err)
    }

    /// Chunk by chunk: delay messages, action, instant messages.
    async fn update(
        &mut self,
        source: Source,
        limits: ChunkLimits,
        action: Option<Action>,
        phases: Phases,
    ) -> Result<Exit> {
        let ended = self.update_all(source, limits, action, phases).await;
        // Whatever has ended it, what is done is to be known as done.
        let settled = self.settle().await;
        match (ended, settled) {
            (Err(ended), Err(unsettled)) => {
                error!("{unsettled:#}");
                Err(ended)
            }
            (ended, settled) => ended.and_then(|ended| settled.map(|()| ended)),
        }
    }

    /// While the delay messages of a chunk are on their way, and the instant messages of the one before, the next one is read.
    async fn update_all(
        &mut self,
        mut source: Source,
        limits: ChunkLimits,
        mut action: Option<Action>,
        phases: Phases,
    ) -> Result<Exit> {
        let mut sizing = Sizing::new(limits.rows, limits.time);
        let mut ahead = None;
        loop {
            let limits = ChunkLimits { rows: sizing.rows(), ..limits };
            if ahead.is_none() || self.throttle.looks() {
                self.settle().await?;
            }
            let chunk = match ahead.take() {
                Some(chunk) => {
                    // What has come to hold the run up since it was read holds it up, too.
                    if !self.is_free().await? {
                        self.settle().await?;
                        if !self.may_begin().await? {
                            return Ok(Exit::Again);
                        }
                    }
                    chunk
                }
                None => match self.next(&mut source, limits).await? {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => {
                        self.journal.finish(target(action.as_mut(), &mut source)).await?;
                        return Ok(Exit::Done);
                    }
                    Err(ended) => return Ok(ended),
                },
            };
            let reads_ahead = matches!(source, Source::Rows { .. }) && self.is_free().await?;
            let shutdown = self.shutdown;
            let read_ahead = async {
                tokio::select! {
                    biased;
                    () = shutdown.requested(), if reads_ahead => None,
                    next = source.next(limits), if reads_ahead => Some(next),
                    else => Some(Ok(None)),
                }
            };
            let (covered, next) = self.announcer.cover_while(chunk.changes(), phases, read_ahead).await?;
            self.settle().await?;
            // The answer to a reading that was broken off lies before that to any statement.
            let Some(next) = next.transpose()? else { return Ok(Exit::Again) };
            let mark = self.journal.begin_chunk(&chunk, phases)?;
            let action = async {
                let begun = Instant::now();
                act(action.as_mut(), &mut source, &chunk, mark).await?;
                Ok(begun.elapsed())
            };
            let took = self.announcer.act(covered, chunk.changes(), phases, action).await?;
            if let Chunk::Rows(_) = chunk {
                sizing.took(chunk.changes().len(), took);
            }
            self.unsettled = Some(chunk);
            ahead = next;
        }
    }

    /// The next chunk once it may begin, or how the run ends before it.
    async fn next(&mut self, source: &mut Source, limits: ChunkLimits) -> Result<Result<Option<Chunk>, Exit>> {
        let has_more = tokio::select! {
            biased;
            () = self.shutdown.requested() => return Ok(Err(Exit::Again)),
            has_more = source.has_more() => has_more?,
        };
        // Before the rows are read, so that they are not old when the action comes to them.
        if has_more && !self.may_begin().await? {
            return Ok(Err(Exit::Again));
        }
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(Err(Exit::Again)),
            chunk = source.next(limits) => Ok(Ok(chunk?)),
        }
    }

    /// Waits for the instant messages of the chunk before, and notes that it is done.
    async fn settle(&mut self) -> Result<()> {
        let Some(chunk) = self.unsettled.take() else { return Ok(()) };
        let settled = self.announcer.settled().await;
        settled.context(UNANNOUNCED)?;
        self.journal.end_chunk().await?;
        self.done(&chunk);
        Ok(())
    }

    /// Whether nothing holds chunks up; false once the run is to end.
    async fn is_free(&mut self) -> Result<bool> {
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(false),
            is_free = self.throttle.is_free(&self.announcer) => is_free,
        }
    }

    async fn may_begin(&mut self) -> Result<bool> {
        self.throttle.wait(&self.announcer, &mut self.progress, self.shutdown).await
    }

    fn done(&mut self, chunk: &Chunk) {
        self.throttle.done(chunk.changes());
        self.progress.add(chunk.changes().len());
    }
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

/// The error, with the exit status that its kind asks for.
pub fn failure(trouble: Trouble) -> anyhow::Error {
    match trouble {
        Trouble::Misconfigured(error) => Exit::Misconfigured.because(error),
        Trouble::Away(error) => Exit::Again.because(error),
        Trouble::Refused(error) => Exit::Person.because(error),
        Trouble::Busy(error) => Exit::Busy.because(error),
    }
}
