//! Reads the chunks of a re-index, some of them ahead of the one that is being sent.

use std::future::Future;

use anyhow::Result;
use log::warn;
use tokio::sync::mpsc;

use super::action::wait;
use super::source::{Chunk, ChunkLimits, Source};

/// Gives the chunks of a source one after the other.
pub(super) enum Reader {
    /// When it is asked for one.
    Lazy { source: Box<Source>, limits: ChunkLimits },
    /// Before it is asked, by a task that keeps the source as long as this lives, and with it the lock of its job.
    Eager { chunks: mpsc::Receiver<Option<Result<Chunk>>>, next: Option<Chunk> },
}

impl Reader {
    /// Reads so many chunks ahead. Where its session holds a lock, it stays after the last of them.
    pub fn start(source: Source, limits: ChunkLimits, ahead: usize, is_locked: bool) -> Reader {
        if ahead == 0 {
            return Reader::Lazy { source: Box::new(source), limits };
        }
        let (sender, chunks) = mpsc::channel(ahead);
        tokio::spawn(read(source, limits, sender, is_locked));
        Reader::Eager { chunks, next: None }
    }

    /// Lets `meanwhile` finish while no chunk is wanted.
    pub async fn wait<T>(&mut self, meanwhile: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Reader::Lazy { source, .. } => wait(None, source, meanwhile).await,
            // Its task keeps the session awake.
            Reader::Eager { .. } => meanwhile.await,
        }
    }

    /// Whether there may be another chunk. Cancelling loses none.
    pub async fn has_more(&mut self) -> Result<bool> {
        match self {
            Reader::Lazy { source, .. } => source.has_more().await,
            Reader::Eager { chunks, next } => {
                if next.is_none() {
                    *next = chunks.recv().await.flatten().transpose()?;
                }
                Ok(next.is_some())
            }
        }
    }

    /// The one that there may be; `None` at the end of the source.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        match self {
            Reader::Lazy { source, limits } => source.next(*limits).await,
            Reader::Eager { next, .. } => Ok(next.take()),
        }
    }
}

/// Reads on whenever there is a place for one more; nothing is sent behind an error, and behind the end.
async fn read(mut source: Source, limits: ChunkLimits, sender: mpsc::Sender<Option<Result<Chunk>>>, is_locked: bool) {
    let mut is_last = false;
    while !is_last {
        let place = async { Ok(sender.reserve().await) };
        let chunk = match wait(None, &mut source, place).await {
            Ok(Ok(place)) => Ok((place, source.next(limits).await.transpose())),
            // Nobody wants more.
            Ok(Err(_)) => return,
            Err(error) => Err(error),
        };
        match chunk {
            Ok((place, chunk)) => {
                is_last = !matches!(chunk, Some(Ok(_)));
                place.send(chunk);
            }
            Err(error) => {
                is_last = true;
                drop(sender.send(Some(Err(error))).await);
            }
        }
    }
    if !is_locked {
        return;
    }
    let closed = async {
        sender.closed().await;
        Ok(())
    };
    if let Err(error) = wait(None, &mut source, closed).await {
        warn!("{error:#}; another run of the same job would not be noticed any more");
    }
}
