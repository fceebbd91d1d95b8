//! The loop of a re-index: nothing but instant messages.

use anyhow::Result;
use log::error;

use super::reader::Reader;
use super::source::{ChunkLimits, Source};
use super::{Next, Run};
use crate::announce::Phases;
use crate::exit::Exit;

impl Run<'_> {
    /// Instant messages only: chunks are read while others are sent, and acknowledged as they come.
    pub(super) async fn reindex(&mut self, source: Source, limits: ChunkLimits) -> Result<Exit> {
        // In a pause columns would get old that are not the key; and a line that was taken cannot be read again by anybody.
        let suffers = source.tells_more_than_keys() || matches!(source, Source::Lines(_));
        let read_ahead = if suffers && self.throttle.may_hold() { 0 } else { self.read_ahead };
        let mut chunks = Reader::start(source, limits, read_ahead, self.journal.is_locked());
        let ended = loop {
            match self.next_read(&mut chunks).await {
                Ok(Next::Chunk(chunk)) => {
                    self.throttle.begin(chunk.changes());
                    self.announcer.instant_messages(&[chunk.changed(&self.to)]).await?;
                    if self.journal.is_kept() {
                        self.announcer.settled().await?;
                        self.journal.begin_chunk(&chunk, Phases::InstantOnly)?;
                        self.journal.end_chunk().await?;
                    }
                    self.done(&chunk);
                }
                Ok(Next::End) => break Ok(Exit::Done),
                Ok(Next::Early) => break Ok(Exit::Again),
                Err(error) => break Err(error),
            }
        };
        match (&ended, self.announcer.settled().await) {
            (_, Ok(())) => {}
            (Ok(_), Err(unsettled)) => return Err(unsettled),
            (Err(_), Err(unsettled)) => error!("{unsettled:#}"),
        }
        if let Ok(Exit::Done) = ended {
            self.journal.finish(None).await?;
        }
        ended
    }

    /// The next chunk once it may begin.
    async fn next_read(&mut self, chunks: &mut Reader) -> Result<Next> {
        let has_more = tokio::select! {
            biased;
            () = self.shutdown.requested() => return Ok(Next::Early),
            has_more = chunks.has_more() => has_more?,
        };
        if !has_more {
            return Ok(Next::End);
        }
        if !chunks.wait(self.may_begin()).await? {
            return Ok(Next::Early);
        }
        Next::of(chunks.next(), self.shutdown).await
    }
}
