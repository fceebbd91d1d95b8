//! A share: records that a handler is given together, and which of them are done after it.

use std::collections::BTreeSet;

use tokio::sync::SemaphorePermit;

use super::{ByKey, Came};
use crate::consume::handling::{Handling, Leave};
use crate::consume::turn::Turn;
use crate::consume::window::At;
use crate::intake::Load;
use crate::record::Batch;

/// Records that are given to a handler together.
pub(super) struct Share {
    pub turn: Turn,
    /// Where its records are in the window; `None` once the window knows that they are done.
    records: Vec<Option<At>>,
    /// Those that failed and let others of their key pass.
    pub passed: BTreeSet<usize>,
}

impl<'a> ByKey<'a> {
    /// Gives a share of what can be begun to a handler.
    pub(super) fn give_out(&mut self, permit: SemaphorePermit<'a>) {
        let records = self.window.take(self.handlers, self.consume.limits.records);
        let share = self.share(records);
        self.go_on(share, Leave { going: None, permit: Some(permit) });
    }

    pub(super) fn share(&self, records: Vec<At>) -> Box<Share> {
        let mut batch = Batch::new(self.held.partition());
        for at in &records {
            batch.add_of(&self.batches[&at.batch].load.batch, at.index);
        }
        let turn = Turn::new(Load::of(batch), self.consume.rules, self.consume.pauses);
        Box::new(Share { turn, records: records.into_iter().map(Some).collect(), passed: BTreeSet::new() })
    }

    pub(super) fn go_on(&mut self, mut share: Box<Share>, leave: Leave<'a>) {
        let handling = Handling { consume: self.consume, held: self.held, shutdown: self.shutdown };
        self.tasks.push(Box::pin(async move {
            let went = handling.go_on(&mut share.turn, None, leave).await;
            Came::Worked { share, went }
        }));
    }

    /// Tells the window what is done of a share.
    pub(super) fn worked(&mut self, mut share: Box<Share>) {
        let (trial, is_finished) = (&share.turn.trial, share.turn.is_finished());
        let bad: BTreeSet<usize> = trial.bad().collect();
        // What comes after a bad record of its key may have to be done again, so it is not done before that is judged.
        let mut open = BTreeSet::new();
        let (mut done, mut passes) = (vec![], vec![]);
        for (index, at) in share.records.iter().enumerate().filter_map(|(index, at)| Some((index, (*at)?))) {
            let key = self.window.key(at);
            if bad.contains(&index) {
                open.insert(key);
            }
            if trial.is_done(index) && (is_finished || !open.contains(&key)) {
                done.push((index, at));
            } else if open.contains(&key) && (is_finished || share.turn.waits) {
                passes.push((index, at));
            }
        }
        for (index, at) in passes {
            self.window.let_pass(at);
            if bad.contains(&index) {
                share.passed.insert(index);
            }
        }
        for (index, at) in done {
            share.records[index] = None;
            match share.passed.contains(&index) {
                true => self.window.done_late(at),
                false => self.window.done(at),
            }
        }
        if !is_finished {
            return self.goes_on(share);
        }
        for (index, letter) in bad.into_iter().zip(std::mem::take(&mut share.turn.load.letters)) {
            let at = share.records[index].expect("what is bad is not done");
            self.batches.get_mut(&at.batch).expect("it is open until all is done").bad.insert(at.index, letter);
        }
    }

    fn goes_on(&mut self, share: Box<Share>) {
        if self.held.until.is_some() && share.turn.stays_before.is_some() {
            self.trouble.get_or_insert(share.turn.trouble());
        } else {
            self.go_on(share, Leave::default());
        }
    }
}
