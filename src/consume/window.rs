//! Several batches of a partition under way at once: which of their records may be given to a handler now, so that those
//! of a key are done in their order, whatever the others wait for. It is pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// A record: the number of its batch, counted from the beginning, and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub batch: u64,
    pub index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay,
    /// Under way, and to come again after that: a record before it was done late.
    Again,
    /// Under way, but those after it need not wait for it.
    Passed,
    Done,
}

/// The records of one batch.
#[derive(Debug)]
struct Part {
    keys: Vec<u64>,
    states: Vec<State>,
    undone: usize,
}

/// The records that are to be done in their order.
#[derive(Debug, Default)]
struct Key {
    waiting: BTreeSet<At>,
    /// How many are under way: nothing that waits may be begun before they are done.
    under_way: usize,
}

impl Key {
    fn wait(&mut self, at: At) {
        self.waiting.insert(at);
    }
}

/// The records of the batches that are not done, or come after one that is not.
#[derive(Debug, Default)]
pub struct Window {
    /// The number of the first part.
    first: u64,
    parts: VecDeque<Part>,
    keys: HashMap<u64, Key>,
    /// The keys that can be begun, by the first record of each that waits.
    ready: BTreeMap<At, u64>,
    waiting: usize,
}

impl Window {
    /// Adds a batch by the keys of its records, and gives its number. What is alike in a key is done in its order; two keys
    /// that share a number are taken for one.
    pub fn add(&mut self, keys: Vec<u64>) -> u64 {
        let batch = self.first + self.parts.len() as u64;
        self.waiting += keys.len();
        for (index, key) in keys.iter().enumerate() {
            self.change(*key, |of| of.wait(At { batch, index }));
        }
        self.parts.push_back(Part { states: vec![State::Waiting; keys.len()], undone: keys.len(), keys });
        batch
    }

    /// Whether there is anything that can be begun.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives some records to be done, in their order: of the first keys that can be begun as many as are a fair share for
    /// one of so many handlers, at most `limit`, and at least one.
    ///
    /// The less is left the smaller are the shares, so that all handlers come to the end at about the same time.
    pub fn take(&mut self, handlers: usize, limit: usize) -> Vec<At> {
        let share = self.waiting.div_ceil(2 * handlers.min(self.ready.len()).max(1)).min(limit);
        let mut taken = vec![];
        while taken.len() < share
            && let Some((_, key)) = self.ready.first_key_value()
        {
            let key = *key;
            let room = share - taken.len();
            self.change(key, |of| {
                let records = std::iter::from_fn(|| of.waiting.pop_first());
                let before = taken.len();
                taken.extend(records.take(room));
                of.under_way += taken.len() - before;
            });
        }
        taken.sort_unstable();
        self.waiting -= taken.len();
        for at in &taken {
            *self.state(*at) = State::UnderWay;
        }
        taken
    }

    /// A record that was under way is done, or is nobody's work any more.
    pub fn done(&mut self, at: At) {
        let key = self.key(at);
        match std::mem::replace(self.state(at), State::Done) {
            State::UnderWay => {
                self.part(at.batch).undone -= 1;
                self.change(key, |of| of.under_way -= 1);
            }
            State::Again => {
                *self.state(at) = State::Waiting;
                self.waiting += 1;
                self.change(key, |of| {
                    of.under_way -= 1;
                    of.wait(at);
                });
            }
            State::Passed => self.part(at.batch).undone -= 1,
            State::Waiting | State::Done => unreachable!("only what is under way can be done"),
        }
    }

    /// A record that had failed and let others pass is done at last: they come again.
    pub fn done_late(&mut self, at: At) {
        self.done(at);
        self.later_of_its_key(at).into_iter().for_each(|later| self.again(later));
    }

    /// A record that is under way does not hold those after it any more: it failed, and waits until others succeed.
    pub fn let_pass(&mut self, at: At) {
        if *self.state(at) == State::UnderWay {
            *self.state(at) = State::Passed;
            self.change(self.key(at), |of| of.under_way -= 1);
        }
    }

    fn later_of_its_key(&self, at: At) -> Vec<At> {
        let key = self.key(at);
        let all = (at.batch..).zip(self.parts.iter().skip(self.place(at.batch)));
        let all = all.flat_map(|(batch, part)| (0..).zip(&part.keys).map(move |(index, of)| (At { batch, index }, of)));
        all.filter(|(later, of)| *later > at && **of == key).map(|(later, _)| later).collect()
    }

    fn again(&mut self, at: At) {
        match *self.state(at) {
            State::UnderWay => *self.state(at) = State::Again,
            State::Done => {
                *self.state(at) = State::Waiting;
                self.part(at.batch).undone += 1;
                self.waiting += 1;
                self.change(self.key(at), |of| of.wait(at));
            }
            State::Waiting | State::Again | State::Passed => {}
        }
    }

    /// How many records there are, done or not.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.keys.len()).sum()
    }

    /// How many records of the batch are not done.
    pub fn undone(&self, batch: u64) -> usize {
        self.parts[self.place(batch)].undone
    }

    /// The first record of the batch that is not done.
    pub fn first_undone(&self, batch: u64) -> Option<usize> {
        self.parts[self.place(batch)].states.iter().position(|state| *state != State::Done)
    }

    /// Forgets the first batch, which has to be done.
    pub fn pop(&mut self) {
        let part = self.parts.pop_front();
        debug_assert!(part.is_some_and(|part| part.undone == 0));
        self.first += 1;
    }

    /// What the record has in common with those that are to be done in their order.
    pub fn key(&self, at: At) -> u64 {
        self.parts[self.place(at.batch)].keys[at.index]
    }

    fn state(&mut self, at: At) -> &mut State {
        &mut self.part(at.batch).states[at.index]
    }

    fn part(&mut self, batch: u64) -> &mut Part {
        let place = self.place(batch);
        &mut self.parts[place]
    }

    fn place(&self, batch: u64) -> usize {
        usize::try_from(batch - self.first).expect("there are fewer batches than memory")
    }

    /// Changes what is known of a key, and whether it can be begun.
    fn change(&mut self, key: u64, change: impl FnOnce(&mut Key)) {
        let of = self.keys.entry(key).or_default();
        let begins = |of: &Key| of.waiting.first().copied().filter(|_| of.under_way == 0);
        let before = begins(of);
        change(of);
        let after = begins(of);
        let is_gone = of.under_way == 0 && of.waiting.is_empty();
        if before != after {
            before.map(|at| self.ready.remove(&at));
            after.map(|at| self.ready.insert(at, key));
        }
        if is_gone {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn at(batch: u64, index: usize) -> At {
        At { batch, index }
    }

    #[test]
    fn one_slow_key_holds_no_other() {
        let mut window = Window::default();
        window.add(vec![7, 8, 7]);
        window.add(vec![7, 9]);
        assert_eq!(window.take(2, 1), [at(0, 0)]);
        // 7 is slow.
        assert_eq!(window.take(2, 1), [at(0, 1)]);
        assert_eq!(window.take(2, 1), [at(1, 1)]);
        assert!(!window.is_ready());
        window.done(at(1, 1));
        window.done(at(0, 1));
        assert_eq!((window.first_undone(0), window.undone(1)), (Some(0), 1));
        window.done(at(0, 0));
        assert_eq!((window.first_undone(0), window.take(1, 10)), (Some(2), vec![at(0, 2)]));
        window.done(at(0, 2));
        window.pop();
        assert_eq!((window.take(1, 10), window.is_ready()), (vec![at(1, 0)], false));
    }

    #[test]
    fn shares_are_fair_and_become_smaller_towards_the_end() {
        let mut window = Window::default();
        window.add((0..1000).collect());
        let mut shares = vec![];
        while window.is_ready() {
            shares.push(window.take(4, 1000).len());
        }
        assert!(shares[0] == 125 && shares.is_sorted_by(|a, b| a >= b) && shares.last() == Some(&1), "{shares:?}");
        // One key alone is nobody else's work.
        window.add(vec![1001; 1000]);
        assert_eq!(window.take(4, 1000).len(), 500);
    }

    #[test]
    fn what_passed_a_record_that_is_done_late_comes_again() {
        let mut window = Window::default();
        window.add(vec![7, 7, 8, 7]);
        window.add(vec![7]);
        assert_eq!(window.take(1, 1), [at(0, 0)]);
        window.let_pass(at(0, 0));
        assert_eq!(window.take(1, 1), [at(0, 1)]);
        window.done(at(0, 1));
        assert_eq!(window.take(1, 1), [at(0, 2)]);
        assert_eq!(window.take(1, 1), [at(0, 3)]);
        window.done_late(at(0, 0));
        assert!(!window.is_ready());
        window.done(at(0, 3));
        assert_eq!(window.take(1, 10), [at(0, 1), at(0, 3)]);
        window.done(at(0, 1));
        window.done(at(0, 3));
        window.done(at(0, 2));
        assert_eq!((window.undone(0), window.take(1, 10)), (0, vec![at(1, 0)]));
    }

    #[test]
    fn the_records_of_a_key_are_begun_in_their_order_each_after_the_one_before_is_done() {
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut window = Window::default();
            let (mut done, mut under_way, mut keys_of) = (HashMap::<u64, At>::new(), Vec::<Vec<At>>::new(), vec![]);
            for _ in 0..2000 {
                match random.random_range(0..3) {
                    0 if keys_of.len() < 20 => {
                        let keys: Vec<u64> = (0..50).map(|_| random.random_range(0..30)).collect();
                        assert_eq!(window.add(keys.clone()), keys_of.len() as u64);
                        keys_of.push(keys);
                    }
                    1 if window.is_ready() => under_way.push(window.take(4, 20)),
                    _ if !under_way.is_empty() => {
                        for at in under_way.swap_remove(random.random_range(0..under_way.len())) {
                            let key = keys_of[usize::try_from(at.batch).unwrap()][at.index];
                            assert!(done.insert(key, at) < Some(at));
                            window.done(at);
                        }
                    }
                    _ => {}
                }
                let held = |at: &At| keys_of[usize::try_from(at.batch).unwrap()][at.index];
                let mut keys: Vec<_> = under_way.iter().map(|run| BTreeSet::from_iter(run.iter().map(held))).collect();
                let all: usize = keys.iter().map(BTreeSet::len).sum();
                let first = keys.pop().unwrap_or_default();
                assert_eq!(keys.iter().fold(first, |a, b| &a | b).len(), all, "a key is in two runs");
            }
        }
    }
}
