//! ksync-stream: announces rows of the database, or lines of stdin, and runs an action on them chunk by chunk.

use std::future::Future;

use anyhow::Result;
use log::{info, warn};

use crate::announce::{Announcer, Destination, Phases};
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
mod reindex;
mod sizing;
mod source;
mod status;
mod throttle;
mod update;
mod window;

use action::target;
pub use action::{Action, ended, wait};
pub use control::Control;
pub use gauge::Gauge;
pub use job::Job;
use journal::Journal;
pub use journal::{Beginning, Keep, Resume};
pub use lag::{Lag, Limits};
pub use pace::Rate;
pub use plan::{Plan, Prospect};
pub use query::Query;
use source::Chunk;
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
        let are_lines = matches!(source, Source::Lines(_) | Source::Keys { .. });
        let (unsettled, touched) = (None, None);
        let mut run =
            Run { to, announcer, journal, progress, throttle, shutdown, phases, read_ahead, unsettled, touched };
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
            Ok(_) => {
                let rows = run.progress.finish(phases.count(), retries, &run.announcer.outlook(phases));
                if let Some(touched) = run.touched {
                    tell_of_untouched(touched, rows);
                }
                rows
            }
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
            info!("asked to end before the end of the source{outlook}");
        }
        // A re-index that fails does not know how many have arrived.
        let is_exact = ended.is_ok() || !is_reindex;
        if are_lines && is_exact && !matches!(ended, Ok(Exit::Done)) {
            // Whatever was taken behind it is gone: that has to be known with --quiet, too.
            warn!("the next run has to go on behind line {rows} of stdin, blank ones not counted");
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
    /// How many rows a statement has touched.
    touched: Option<u64>,
}

/// A statement may leave out rows of its own accord, or by mistake; then whoever reads how many were announced should know.
fn tell_of_untouched(touched: u64, rows: u64) {
    match touched {
        0 if rows > 0 => warn!("the statement has touched none of these {rows} rows"),
        _ if touched < rows => info!("the statement has touched {touched} of these {rows} rows"),
        _ => {}
    }
}

/// What comes next of a source.
enum Next {
    Chunk(Chunk),
    End,
    /// The end of the run was asked for.
    Early,
}

impl Next {
    /// What `reading` gives, which is broken off where the end of the run is asked for.
    async fn of(reading: impl Future<Output = Result<Option<Chunk>>>, shutdown: &Shutdown) -> Result<Next> {
        tokio::select! {
            biased;
            () = shutdown.requested() => Ok(Next::Early),
            chunk = reading => Ok(chunk?.map_or(Next::End, Next::Chunk)),
        }
    }
}

impl Run<'_> {
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
