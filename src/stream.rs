//! ksync-stream: announces rows of the database, or lines of stdin, and runs an action on them chunk by chunk.

use anyhow::{Context, Result};
use log::{error, info};
use tokio::time::Instant;

use crate::announce::{Announcer, Covered, Destination, Phases, named};
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
mod reader;
mod sizing;
mod source;
mod status;
mod throttle;
mod window;

pub use action::Action;
use action::{act, target, wait_beside};
pub use action::{ended, wait};
pub use control::Control;
pub use gauge::Gauge;
pub use job::Job;
use journal::Journal;
pub use journal::{Beginning, Keep, Resume};
pub use lag::{Lag, Limits};
pub use pace::Rate;
pub use plan::{Plan, Prospect};
pub use query::Query;
use reader::Reader;
use sizing::Sizing;
use source::{Chunk, Place};
pub use source::{ChunkLimits, Lines, Source};
pub use status::Console;
pub use throttle::Throttle;
pub use window::Window;

/// One run of ksync-stream.
pub struct Stream {
    pub source: Source,
    pub to: Destination,
    pub action: Option<Action>,
    pub phases: Phases,
    pub chunk: ChunkLimits,
    /// How many chunks may be read ahead of the one that is being sent; with an action one at most.
    pub read_ahead: usize,
    /// Lines of stdin have none.
    pub resume: Option<Resume>,
    pub throttle: Throttle,
}

impl Stream {
    /// Runs to the end of the source; asked to end earlier, it finishes the chunk and exits with status 75.
    pub async fn run(self, announcer: Announcer, progress: Progress, shutdown: &Shutdown) -> Result<Exit> {
        let Stream { mut source, to, mut action, phases, chunk, read_ahead, resume, throttle } = self;
        let Some(journal) = Journal::begin(resume, &mut source, action.as_mut()).await? else {
            return Ok(Exit::Done);
        };
        let is_of_lines = matches!(source, Source::Lines(_));
        let mut run = Run { to, announcer, journal, progress, throttle, shutdown, phases, read_ahead, unsettled: None };
        let mut retries = 0;
        let is_reindex = action.is_none() && phases == Phases::InstantOnly;
        let ended = if is_reindex {
            run.reindex(source, chunk).await
        } else {
            let ended = run.update(&mut source, chunk, action.as_mut()).await;
            run.announcer.warn_of_short_delay();
            retries = target(action.as_mut(), &mut source).map_or(0, |database| database.retries());
            ended
        };
        let outlook = run.journal.outlook(ended.is_err());
        let rows = match ended {
            Ok(_) => run.progress.finish(phases.count(), retries, &run.announcer.outlook(phases)),
            Err(_) => {
                // Where nothing is kept, a re-index counts what it has queued.
                let most = if is_reindex && !run.journal.is_kept() { "at most " } else { "" };
                // What was changed without delay messages may be gone, or left out by the condition.
                let may_be_lost = phases == Phases::InstantOnly && !is_reindex && !outlook.is_empty();
                let but = if may_be_lost { "; what it does not find any more it does not announce" } else { "" };
                let rows = run.progress.give_up();
                info!("failed after {most}{rows} rows{outlook}{but}");
                rows
            }
        };
        if let Ok(Exit::Again) = ended {
            let behind =
                if is_of_lines { format!("; go on behind line {rows}, blank ones not counted") } else { outlook };
            info!("asked to end before the end of the source{behind}");
        }
        ended
    }
}

/// What a run does its work with, whatever its rows and its action are.
struct Run<'a> {
    to: Destination,
    announcer: Announcer,
    journal: Journal,
    progress: Progress,
    throttle: Throttle,
    shutdown: &'a Shutdown,
    phases: Phases,
    read_ahead: usize,
    /// Of which the instant messages are not known to be acknowledged yet.
    unsettled: Option<Chunk>,
}

impl Run<'_> {
    /// Instant messages only: chunks are read while others are sent, and acknowledged as they come.
    async fn reindex(&mut self, source: Source, limits: ChunkLimits) -> Result<Exit> {
        // In a pause columns would get old that are not the key; and a line that was taken cannot be read again by anybody.
        let suffers = source.tells_more_than_keys() || matches!(source, Source::Lines(_));
        let read_ahead = if suffers && self.throttle.may_hold() { 0 } else { self.read_ahead };
        let mut chunks = Reader::start(source, limits, read_ahead, self.journal.is_locked());
        let mut ended = Exit::Done;
        let failed = loop {
            match self.next_read(&mut chunks).await {
                Ok(Ok(None)) => break None,
                Ok(Err(early)) => {
                    ended = early;
                    break None;
                }
                Err(error) => break Some(error),
                Ok(Ok(Some(chunk))) => {
                    self.throttle.begin(chunk.changes());
                    self.announcer.instant_messages(&[chunk.changed(&self.to)]).await?;
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
    async fn update(&mut self, source: &mut Source, limits: ChunkLimits, action: Option<&mut Action>) -> Result<Exit> {
        let ended = self.update_all(source, limits, action).await;
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

    /// While the action of a chunk is at work, the instant messages of the one before and the delay messages of the one behind it
    /// are on their way.
    async fn update_all(
        &mut self,
        source: &mut Source,
        limits: ChunkLimits,
        mut action: Option<&mut Action>,
    ) -> Result<Exit> {
        let (phases, mut sizing) = (self.phases, Sizing::new(limits.rows, limits.time));
        let mut ahead = None::<(Chunk, Result<Covered>, Place)>;
        loop {
            let limits = ChunkLimits { rows: sizing.rows(), ..limits };
            if ahead.is_none() || self.throttle.looks() {
                self.settle().await?;
            }
            let (chunk, covered) = match ahead.take() {
                // In a pause it would get old: it is read again after that, and its delay messages were for nothing.
                Some((.., place)) if !self.is_free().await? => {
                    source.go_back(place);
                    continue;
                }
                Some((chunk, covered, _)) => (chunk, covered?),
                None => match self.next(source, action.as_deref_mut(), limits).await? {
                    Ok(Some(chunk)) => {
                        let covered = self.announcer.cover(&[chunk.changed(&self.to)], phases).await?;
                        (chunk, covered)
                    }
                    Ok(None) => {
                        self.journal.finish(target(action.as_deref_mut(), source)).await?;
                        return Ok(Exit::Done);
                    }
                    Err(ended) => return Ok(ended),
                },
            };
            self.throttle.begin(chunk.changes());
            let place = source.place();
            let next = match self.look_ahead(source, action.as_deref_mut(), limits).await? {
                Ok(next) => next,
                Err(ended) => return Ok(ended),
            };
            if self.journal.is_kept() {
                self.settle().await?;
            }
            let mark = self.journal.begin_chunk(&chunk, phases)?;
            let action = async {
                let begun = Instant::now();
                act(action.as_deref_mut(), source, (&chunk, phases), mark).await?;
                Ok(begun.elapsed())
            };
            let next_changed = next.as_ref().map(|next| next.changed(&self.to));
            let changed = (&[chunk.changed(&self.to)][..], next_changed.as_slice());
            let acted = self.announcer.act(covered, changed, phases, action).await;
            let (took, covered) = acted.map_err(|error| self.with_those_before(error))?;
            if let Chunk::Rows(_) = chunk {
                sizing.took(chunk.changes().len(), took);
            }
            if let Some(before) = self.unsettled.replace(chunk) {
                self.done(&before);
            }
            ahead = next.map(|next| (next, covered, place));
        }
    }

    /// The chunk behind the one that is about to begin, where nothing is to come between them. An answer to a reading that was
    /// broken off lies before that to any statement: then the run ends.
    async fn look_ahead(
        &mut self,
        source: &mut Source,
        action: Option<&mut Action>,
        limits: ChunkLimits,
    ) -> Result<Result<Option<Chunk>, Exit>> {
        let reads_ahead = self.read_ahead > 0 && matches!(source, Source::Rows { .. }) && self.is_free().await?;
        if !reads_ahead {
            return Ok(Ok(None));
        }
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(Err(Exit::Again)),
            next = wait_beside(action, source.next(limits)) => Ok(Ok(next?)),
        }
    }

    /// The next chunk once it may begin, or how the run ends before it.
    async fn next(
        &mut self,
        source: &mut Source,
        mut action: Option<&mut Action>,
        limits: ChunkLimits,
    ) -> Result<Result<Option<Chunk>, Exit>> {
        let has_more = tokio::select! {
            biased;
            () = self.shutdown.requested() => return Ok(Err(Exit::Again)),
            has_more = wait_beside(action.as_deref_mut(), source.has_more()) => has_more?,
        };
        if !has_more {
            return Ok(Ok(None));
        }
        // Before the rows are read, so that they are not old when the action comes to them.
        if !wait(action.as_deref_mut(), source, self.may_begin()).await? {
            return Ok(Err(Exit::Again));
        }
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(Err(Exit::Again)),
            chunk = wait_beside(action, source.next(limits)) => Ok(Ok(chunk?)),
        }
    }

    /// The same of a re-index.
    async fn next_read(&mut self, chunks: &mut Reader) -> Result<Result<Option<Chunk>, Exit>> {
        let has_more = tokio::select! {
            biased;
            () = self.shutdown.requested() => return Ok(Err(Exit::Again)),
            has_more = chunks.has_more() => has_more?,
        };
        if !has_more {
            return Ok(Ok(None));
        }
        if !chunks.wait(self.may_begin()).await? {
            return Ok(Err(Exit::Again));
        }
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(Err(Exit::Again)),
            chunk = chunks.next() => Ok(Ok(chunk?)),
        }
    }

    /// The error, which may be that of the chunk before.
    fn with_those_before(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.unsettled {
            Some(before) if self.announcer.has_lost_before() && self.phases == Phases::InstantOnly => {
                error.context(format!("announce the rows of the chunk before{}, too", named(before.changes())))
            }
            _ => error,
        }
    }

    /// Waits for the instant messages of the chunk before, and notes that it is done.
    async fn settle(&mut self) -> Result<()> {
        let Some(chunk) = self.unsettled.take() else { return Ok(()) };
        if self.announcer.has_lost_before() {
            // Its error was told, and it is not done.
            return Ok(());
        }
        let settled = self.announcer.settled().await;
        settled.with_context(|| self.phases.unannounced(&[chunk.changed(&self.to)]))?;
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

/// The error, with the exit status that its kind asks for.
pub fn failure(trouble: Trouble) -> anyhow::Error {
    match trouble {
        Trouble::Misconfigured(error) => Exit::Misconfigured.because(error),
        Trouble::Away(error) => Exit::Again.because(error),
        Trouble::Refused(error) | Trouble::Unfit(error) => Exit::Person.because(error),
        Trouble::Busy(error) => Exit::Busy.because(error),
    }
}
