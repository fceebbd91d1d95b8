//! The loop of a guarded update: for each chunk delay messages, action, instant messages.

use anyhow::{Context, Result};
use log::error;
use tokio::time::Instant;

use super::action::{Action, act, target, wait, wait_beside};
use super::sizing::Sizing;
use super::source::{Chunk, ChunkLimits, Place, Source};
use super::{Next, Run};
use crate::announce::{Covered, Phases};
use crate::exit::Exit;

impl Run<'_> {
    /// Chunk by chunk: delay messages, action, instant messages.
    pub(super) async fn update(
        &mut self,
        source: &mut Source,
        limits: ChunkLimits,
        action: Option<&mut Action>,
    ) -> Result<Exit> {
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
                    Next::Chunk(chunk) => {
                        let covered = self.announcer.cover(&[chunk.changed(&self.to)], phases).await?;
                        (chunk, covered)
                    }
                    Next::End => {
                        self.journal.finish(target(action.as_deref_mut(), source)).await?;
                        return Ok(Exit::Done);
                    }
                    Next::Early => return Ok(Exit::Again),
                },
            };
            self.throttle.begin(chunk.changes());
            let place = source.place();
            let mut next = None;
            if self.read_ahead > 0 && matches!(source, Source::Rows { .. }) && self.is_free().await? {
                match self.read(source, action.as_deref_mut(), limits).await? {
                    Next::Chunk(chunk) => next = Some(chunk),
                    Next::End => {}
                    Next::Early => return Ok(Exit::Again),
                }
            }
            if self.journal.is_kept() {
                self.settle().await?;
            }
            let mark = self.journal.begin_chunk(&chunk, phases)?;
            let action = async {
                let begun = Instant::now();
                let touched = act(action.as_deref_mut(), source, (&chunk, phases), mark).await?;
                Ok((begun.elapsed(), touched))
            };
            let next_changed = next.as_ref().map(|next| next.changed(&self.to));
            let changed = (&[chunk.changed(&self.to)][..], next_changed.as_slice());
            let acted = self.announcer.act(covered, changed, phases, action).await;
            let ((took, touched), covered) = acted.inspect_err(|_| self.tell_of_those_before())?;
            if let Some(touched) = touched {
                self.touched = Some(self.touched.unwrap_or_default() + touched);
            }
            if let Chunk::Rows(_) = chunk {
                sizing.took(chunk.changes().len(), took);
            }
            if let Some(before) = self.unsettled.replace(chunk) {
                self.done(&before);
            }
            ahead = next.map(|next| (next, covered, place));
        }
    }

    /// The next chunk once it may begin.
    async fn next(
        &mut self,
        source: &mut Source,
        mut action: Option<&mut Action>,
        limits: ChunkLimits,
    ) -> Result<Next> {
        let has_more = tokio::select! {
            biased;
            () = self.shutdown.requested() => return Ok(Next::Early),
            has_more = wait_beside(action.as_deref_mut(), source.has_more()) => has_more?,
        };
        if !has_more {
            return Ok(Next::End);
        }
        // Before the rows are read, so that they are not old when the action comes to them.
        if !wait(action.as_deref_mut(), source, self.may_begin()).await? {
            return Ok(Next::Early);
        }
        self.read(source, action, limits).await
    }

    /// The next chunk. A reading that was broken off leaves its answer in the session, before that of any later statement, so the
    /// run ends.
    async fn read(&mut self, source: &mut Source, action: Option<&mut Action>, limits: ChunkLimits) -> Result<Next> {
        Next::of(wait_beside(action, source.next(limits)), self.shutdown).await
    }

    /// The error of a chunk, which follows, names its own rows only.
    fn tell_of_those_before(&self) {
        if let Some(before) = &self.unsettled
            && self.announcer.has_lost_before()
            && self.phases == Phases::InstantOnly
        {
            error!("{}; the reason follows", self.phases.unannounced(&[before.changed(&self.to)]));
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
}
