//! Several handlers at work on one partition: its records are split among them by their keys.
//!
//! Batches are read as long as there is room; of their records those that may be begun (see [`Window`]) are given out in
//! shares, and each share is a batch of its own to the handler, to its retries and to the search for its bad records. The
//! partition is done up to its first record that is not.

use std::collections::BTreeMap;
use std::future;
use std::hash::RandomState;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::SemaphorePermit;

use super::handling::Leave;
use super::trial::Trial;
use super::window::{At, Window};
use super::{Consume, Proven, end_by};
use crate::dead_letter::Letter;
use crate::fit::Standing;
use crate::intake::{Intake, Load};
use crate::lead::{Done, End, Held, Waiting};
use crate::shutdown::Shutdown;
use crate::topic::Offset;

mod share;

use share::Share;

/// How many batches' worth of records there may be between the first that is not done and the last that is read.
const BATCHES: usize = 16;

type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One partition whose records are split among several handlers.
pub(super) struct ByKey<'a> {
    consume: &'a Consume,
    handlers: usize,
    held: &'a Held<'a>,
    shutdown: &'a Shutdown,
    window: Window,
    hasher: RandomState,
    /// By their numbers in the window.
    batches: BTreeMap<u64, Open>,
    tasks: FuturesUnordered<Task<'a, Came>>,
    standing: Standing,
    /// How far the batches are done that are not open any more.
    done: Option<Done>,
    proven: Option<Proven>,
    is_committing: bool,
    /// Nothing more is read: the end of a bounded run is, or what cannot be passed.
    is_read: bool,
    /// Why nothing more is begun; what is under way is waited for.
    end: Option<End>,
    /// Where a bounded run cannot get past a record, why.
    trouble: Option<anyhow::Error>,
}

/// A batch that is not done.
struct Open {
    load: Load,
    /// Those that stood alone and failed.
    bad: BTreeMap<usize, Letter>,
    is_putting_aside: bool,
    /// Whether the bad ones were judged once more, since they were too many.
    is_judged_again: bool,
}

/// What a task came to.
enum Came {
    Worked { share: Box<Share>, went: Result<(), End> },
    PutAside { batch: u64, went: Result<(), End> },
    Committed(Result<(Standing, Proven), End>),
}

impl<'a> ByKey<'a> {
    pub fn new((consume, handlers): (&'a Consume, usize), held: &'a Held<'a>, shutdown: &'a Shutdown) -> ByKey<'a> {
        ByKey {
            consume,
            handlers,
            held,
            shutdown,
            window: Window::default(),
            hasher: RandomState::new(),
            batches: BTreeMap::new(),
            tasks: FuturesUnordered::new(),
            standing: held.standing,
            done: None,
            proven: None,
            is_committing: false,
            is_read: false,
            end: None,
            trouble: None,
        }
    }

    /// Works until the partition is done, halted or lost, or what is under way is finished after a request to end. Where
    /// the partition stands then.
    pub async fn work(mut self, intake: &mut Intake<'_>) -> (Standing, End) {
        let mut permit: Option<Task<'a, SemaphorePermit<'a>>> = None;
        loop {
            self.close();
            self.commit(intake.fetched());
            if self.tasks.is_empty()
                && let Some(end) = self.ended()
            {
                return (self.standing, end);
            }
            let goes_on = self.end.is_none();
            if !(goes_on && self.window.is_ready()) {
                permit = None;
            } else if permit.is_none() {
                // Kept over the rounds, so that it keeps its place in the queue.
                permit = Some(Box::pin(self.held.during(Waiting::Slot, self.consume.permit())));
            }
            tokio::select! {
                biased;
                Some(came) = self.tasks.next() => if let Err(end) = self.take_in(came) {
                    return (self.standing, end);
                },
                why = self.held.lease.lost(), if goes_on => self.end = Some(End::Lost(why)),
                () = self.shutdown.requested(), if goes_on => self.end = Some(End::Shutdown),
                got = given(&mut permit) => {
                    permit = None;
                    self.give_out(got);
                }
                () = self.held.during(Waiting::Records, intake.ready()), if goes_on && self.has_room() => {
                    self.add(intake.take(Load::new(self.held.partition())));
                }
                end = self.held.topic_changed(), if goes_on => return (self.standing, end),
            }
        }
    }

    /// Why it ends, now that nothing is under way.
    fn ended(&mut self) -> Option<End> {
        if self.end.is_some() {
            return self.end.take();
        }
        if self.window.is_ready() {
            return None;
        }
        match self.trouble.take() {
            Some(trouble) => Some(End::Halted(trouble)),
            None => (self.held.until.is_some_and(|until| self.standing.offset >= until)).then_some(End::Done),
        }
    }

    fn has_room(&self) -> bool {
        let bytes: usize = self.batches.values().map(|open| open.load.bytes()).sum();
        let limits = self.consume.limits;
        !self.is_read
            && self.trouble.is_none()
            && bytes < limits.bytes
            && self.window.len() < limits.records.saturating_mul(BATCHES)
    }

    fn add(&mut self, load: Load) {
        let is_last = |until| load.batch.next() >= Some(until);
        self.is_read = load.stop.is_some() || self.held.until.is_some_and(is_last);
        // Of nothing but what nobody is given: many of them are to be no more than one.
        if load.is_empty()
            && let Some(mut last) = self.batches.last_entry()
        {
            last.get_mut().load.append(load);
            return;
        }
        let number = self.window.add(load.batch.keys(&self.hasher));
        let open = Open { load, bad: BTreeMap::new(), is_putting_aside: false, is_judged_again: false };
        self.batches.insert(number, open);
    }

    /// Fails with what has to end all at once.
    fn take_in(&mut self, came: Came) -> Result<(), End> {
        let went = match came {
            Came::Worked { share, went: Ok(()) } => {
                self.worked(share);
                Ok(())
            }
            Came::PutAside { batch, went: Ok(()) } => {
                let open = self.batches.get_mut(&batch).expect("it is open until all is put aside");
                for index in std::mem::take(&mut open.bad).into_keys() {
                    self.window.done(At { batch, index });
                }
                open.load.letters.clear();
                open.is_putting_aside = false;
                Ok(())
            }
            Came::Committed(went) => {
                self.is_committing = false;
                went.map(|(standing, proven)| (self.standing, self.proven) = (standing, Some(proven)))
            }
            Came::Worked { went, .. } | Came::PutAside { went, .. } => went,
        };
        match went {
            // All others will say so, too.
            Err(end @ (End::Lost(_) | End::Shutdown)) => {
                self.end.get_or_insert(end);
                Ok(())
            }
            went => went,
        }
    }

    /// Puts the bad ones of each batch aside that is gone through, and forgets the first ones that are done.
    fn close(&mut self) {
        let numbers: Vec<u64> = self.batches.keys().copied().collect();
        for number in numbers {
            let open = &self.batches[&number];
            let is_through = self.window.undone(number) == open.bad.len() && !open.is_putting_aside;
            if is_through && !(open.bad.is_empty() && open.load.letters.is_empty()) {
                self.judge(number);
            }
        }
        while let Some(first) = self.batches.first_entry()
            && self.window.undone(*first.key()) == 0
            && first.get().load.letters.is_empty()
        {
            let load = first.remove().load;
            self.window.pop();
            self.done = load.done().or(self.done.take());
            if let Some(stop) = &load.stop {
                self.end.get_or_insert(end_by(stop));
            }
        }
    }

    /// All of the batch are done but the bad ones.
    fn judge(&mut self, number: u64) {
        let rules = self.consume.rules;
        let open = self.batches.get_mut(&number).expect("it is open");
        let (bad, judged) = (open.bad.len(), open.load.batch.len());
        if !open.is_judged_again && rules.breaker.is_tripped(bad, judged) {
            // Too many, though not in any one share: the fault may not be theirs.
            open.is_judged_again = true;
            let records = std::mem::take(&mut open.bad).into_keys().map(|index| At { batch: number, index });
            let mut share = self.share(records.collect());
            share.turn.trial = Trial::of_the_bad(bad, judged - bad, rules);
            share.passed = (0..bad).collect();
            return self.go_on(share, Leave::default());
        }
        open.is_putting_aside = true;
        let mut letters = open.load.letters.clone();
        letters.extend(open.bad.values().cloned());
        letters.sort_by_key(Letter::offset);
        let (consume, held) = (self.consume, self.held);
        self.tasks.push(Box::pin(async move {
            Came::PutAside { batch: number, went: consume.put_aside(&letters, held).await }
        }));
    }

    /// Commits as far as all is done.
    fn commit(&mut self, fetched: Offset) {
        let first = self.batches.first_key_value();
        let part = first.and_then(|(number, open)| match self.window.first_undone(*number) {
            Some(index @ 1..) => open.load.done_before(index),
            _ => None,
        });
        let Some(done) = part.or(self.done) else { return };
        let is_lost = matches!(self.end, Some(End::Lost(_)));
        if self.is_committing || is_lost || done.offset <= self.standing.offset {
            return;
        }
        self.is_committing = true;
        let (consume, held, from) = (self.consume, self.held, self.standing);
        let proven = self.proven.filter(|proven| done.offset <= proven.before);
        self.tasks.push(Box::pin(async move {
            let committed = async {
                let proven = consume.prove(proven, fetched, held).await?;
                Ok((held.commit(from, proven.topic, done).await?, proven))
            };
            Came::Committed(committed.await)
        }));
    }
}

/// What was asked for; never, where nothing was.
async fn given<T>(asked: &mut Option<Task<'_, T>>) -> T {
    match asked {
        Some(asked) => asked.await,
        None => future::pending().await,
    }
}
