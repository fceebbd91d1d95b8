//! Reads the chunks of a re-index, some of them ahead of the one that is being sent.

use std::future::Future;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::action::wait;
use super::failure;
use super::source::{Chunk, ChunkLimits, Source};

/// Gives the chunks of a source one after the other.
pub(super) enum Reader {
    /// When it is asked for one.
    Lazy { source: Box<Source>, limits: ChunkLimits },
    /// Before it is asked; the source is kept to the end of the run, and with it the lock of its job.
    Eager { chunks: mpsc::Receiver<Result<Chunk>>, _source: JoinHandle<Source> },
}

impl Reader {
    /// Reads so many chunks ahead.
    pub fn start(source: Source, limits: ChunkLimits, ahead: usize) -> Reader {
        if ahead == 0 {
            return Reader::Lazy { source: Box::new(source), limits };
        }
        let (sender, chunks) = mpsc::channel(ahead);
        Reader::Eager { chunks, _source: tokio::spawn(read(source, limits, sender)) }
    }

    /// Lets `meanwhile` finish while no chunk is wanted.
    pub async fn wait<T>(&mut self, meanwhile: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Reader::Lazy { source, .. } => wait(None, source, meanwhile).await,
            // Its task keeps the session awake.
            Reader::Eager { .. } => meanwhile.await,
        }
    }

    /// `None` at the end of the source, and behind an error.
    pub async fn next(&mut self) -> Option<Result<Chunk>> {
        match self {
            Reader::Lazy { source, limits } => source.next(*limits).await.transpose(),
            Reader::Eager { chunks, .. } => chunks.recv().await,
        }
    }
}

/// Reads on whenever there is a place for one more.
async fn read(mut source: Source, limits: ChunkLimits, sender: mpsc::Sender<Result<Chunk>>) -> Source {
    loop {
        let place = match source.database() {
            Some(database) => database.kept_awake(sender.reserve()).await,
            None => Ok(sender.reserve().await),
        };
        let place = match place {
            Ok(Ok(place)) => place,
            // Nobody wants more.
            Ok(Err(_)) => return source,
            Err(trouble) => {
                drop(sender.send(Err(failure(trouble))).await);
                return source;
            }
        };
        let Some(chunk) = source.next(limits).await.transpose() else { return source };
        let is_last = chunk.is_err();
        place.send(chunk);
        if is_last {
            return source;
        }
    }
}
