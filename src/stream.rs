//! ksync-stream: announces rows of the database, or lines of stdin, and runs an action on them chunk by chunk.

use anyhow::Result;
use log::info;
use tokio::sync::mpsc;

use crate::announce::{Announcer, Phases};
use crate::database::Trouble;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::shutdown::Shutdown;

mod action;
mod checkpoint;
mod file;
mod job;
mod journal;
mod source;
mod window;

pub use action::Action;
use action::act;
pub use job::Job;
use journal::Journal;
pub use journal::{Keep, Resume};
use source::Chunk;
pub use source::{ChunkLimits, Lines, Source};
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
}

impl Stream {
    /// Runs to the end of the source; asked to end earlier, it finishes the chunk and exits with status 75.
    pub async fn run(self, mut announcer: Announcer, mut progress: Progress, shutdown: &Shutdown) -> Result<Exit> {
        let Stream { mut source, action, phases, chunk, resume } = self;
        let Some(mut journal) = Journal::begin(resume, &mut source, action.is_some()).await? else {
            return Ok(Exit::Done);
        };
        progress.skip(journal.rows());
        let outside = (&mut announcer, &mut journal, &mut progress);
        let ended = match action {
            None if phases == Phases::InstantOnly => reindex(source, chunk, outside, shutdown).await?,
            action => {
                let ended = update((source, chunk), action, phases, outside, shutdown).await;
                announcer.warn_of_short_delay();
                ended?
            }
        };
        progress.finish();
        if ended == Exit::Again {
            info!("asked to end before the end of the source{}", journal.outlook());
        }
        Ok(ended)
    }
}

/// Whom a run tells what.
type Outside<'a> = (&'a mut Announcer, &'a mut Journal, &'a mut Progress);

/// Instant messages only: chunks are read while others are sent, and acknowledged as they come.
async fn reindex(
    source: Source,
    limits: ChunkLimits,
    (announcer, journal, progress): Outside<'_>,
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
                if journal.is_kept() {
                    announcer.settled().await?;
                    journal.begin_chunk(&chunk, Phases::InstantOnly)?;
                    journal.end_chunk().await?;
                }
                progress.add(chunk.changes().len());
            }
        }
    };
    announcer.settled().await?;
    if failed.is_none() && ended == Exit::Done {
        journal.finish(None).await?;
    }
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
    (announcer, journal, progress): Outside<'_>,
    shutdown: &Shutdown,
) -> Result<Exit> {
    loop {
        let chunk = tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(Exit::Again),
            chunk = source.next(limits) => chunk?,
        };
        let Some(chunk) = chunk else {
            journal.finish(source.database()).await?;
            return Ok(Exit::Done);
        };
        let mark = journal.begin_chunk(&chunk, phases)?;
        announcer.around(chunk.changes(), phases, act(action.as_mut(), &mut source, &chunk, mark)).await?;
        journal.end_chunk().await?;
        progress.add(chunk.changes().len());
    }
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
