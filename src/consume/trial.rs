//! A batch on trial: which of its records are done, which one stands in the way, what is to be run next.
//!
//! As long as the handler fails, the batch is run again. After some failures it is cut in halves until the bad record
//! stands alone, and the records after it go on. Each bad one among n costs log2 n runs to find it, one of what comes after it,
//! and one of it alone where none was yet: that a half failed proves nothing, it may just have been too large. It is pure: who
//! calls it runs the handler and looks at the clock.

use std::collections::BTreeMap;
use std::time::Instant;

/// When records are judged, and what is done with those that are bad.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// After so many failures the batch is cut in halves.
    pub isolate_after: u32,
    pub breaker: Breaker,
    /// Whether bad records are put aside; else the partition stays before the first of them.
    pub puts_aside: bool,
}

/// Opens when so many fail that the fault is not theirs.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    pub failures: usize,
    /// Of the judged records, between 0 and 1.
    pub share: f64,
}

impl Breaker {
    /// Whether so many bad ones of so many that were judged are too many.
    pub fn is_tripped(&self, bad: usize, judged: usize) -> bool {
        bad >= self.failures && bad as f64 > self.share * judged as f64
    }
}

/// How a run of the handler ended for its records, which are named by their index in the batch.
#[derive(Clone, Debug)]
pub enum Ran {
    /// All are done but these.
    Done { failed: Vec<Named> },
    /// None is done but `ok`.
    Failed { blame: Blame, ok: Vec<usize>, failed: Vec<Named> },
}

/// Whose fault a failed run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// That of a record, perhaps.
    Records,
    /// That of a record, and it will never work.
    RecordsForEver,
    /// Not that of any record: the store is down, or the handler cannot be started.
    Circumstances,
}

/// A record that the handler itself calls failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub index: usize,
    /// It will never work.
    pub is_permanent: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Run {
        records: Vec<usize>,
        /// Whether to wait before, longer each time.
        pauses: bool,
    },
    /// All are done, but these that are to be put aside.
    Finished { bad: Vec<usize> },
}

/// A record that stood alone when it failed.
#[derive(Debug)]
struct Bad {
    /// It will never work, says the handler.
    is_permanent: bool,
    /// Whether the store was seen working between its first failure and its last: so the fault is its own.
    is_proven: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Done,
    Bad,
}

#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    states: Vec<State>,
    /// Of each record, how many runs have had it.
    runs: Vec<u32>,
    /// What the handler has said of a record.
    named: BTreeMap<usize, u32>,
    bad: BTreeMap<usize, Bad>,
    /// Failed runs of the whole.
    failures: u32,
    is_isolating: bool,
    /// Among so many of the first open ones is a bad one.
    suspects: Option<usize>,
    pauses: bool,
    is_breaker_open: bool,
    first_failure: Option<Instant>,
    /// How many more were judged with these, elsewhere.
    others: usize,
}

impl Trial {
    pub fn new(records: usize, rules: Rules) -> Trial {
        Trial {
            rules,
            states: vec![State::Open; records],
            runs: vec![0; records],
            named: BTreeMap::new(),
            bad: BTreeMap::new(),
            failures: 0,
            is_isolating: false,
            suspects: None,
            pauses: false,
            is_breaker_open: false,
            first_failure: None,
            others: 0,
        }
    }

    /// Records that were judged bad together with so many others, in several trials, and are too many: with an open breaker.
    pub fn of_the_bad(records: usize, others: usize, rules: Rules) -> Trial {
        let bad = |index| (index, Bad { is_permanent: false, is_proven: true });
        Trial {
            states: vec![State::Bad; records],
            bad: (0..records).map(bad).collect(),
            is_isolating: true,
            is_breaker_open: true,
            others,
            ..Trial::new(records, rules)
        }
    }

    /// What to do next. `worked` is when the handler last succeeded with any record, of this batch or another.
    pub fn next(&self, worked: Option<Instant>) -> Step {
        let alone = |index: usize, pauses| Step::Run { records: vec![index], pauses };
        if let (true, Some(first)) = (self.is_breaker_open, self.first_bad()) {
            return alone(first, true);
        }
        let mut open = self.indices(State::Open);
        if !open.is_empty() {
            open.truncate(self.share(open.len()));
            return Step::Run { records: open, pauses: self.pauses };
        }
        match self.first_bad() {
            Some(first) if !self.rules.puts_aside => alone(first, true),
            _ => match self.bad.iter().find(|(_, bad)| !bad.is_permanent && !bad.is_proven) {
                Some((unproven, _)) => alone(*unproven, self.pauses || worked < self.first_failure),
                None => Step::Finished { bad: self.indices(State::Bad) },
            },
        }
    }

    /// How many of the open ones to run.
    fn share(&self, open: usize) -> usize {
        match self.suspects {
            Some(suspects) => suspects.div_ceil(2).min(suspects - 1).max(1),
            None => open,
        }
    }

    /// Takes in how the run of these records ended. `worked` is when the handler last succeeded before that;
    /// `later` tells which later records have the same key as one.
    pub fn ended(
        &mut self,
        records: &[usize],
        ran: &Ran,
        (now, worked): (Instant, Option<Instant>),
        later: impl Fn(usize) -> Vec<usize>,
    ) {
        for index in records {
            self.runs[*index] += 1;
        }
        self.pauses = false;
        match ran {
            Ran::Done { failed } => {
                self.done(records.iter().filter(|index| failed.iter().all(|named| named.index != **index)), &later);
                self.suspects = self.suspects.and_then(|suspects| suspects.checked_sub(records.len()));
                self.suspects = self.suspects.filter(|suspects| *suspects > 0 && failed.is_empty());
                if !failed.is_empty() {
                    self.first_failure.get_or_insert(now);
                    self.named(failed, records.len() == 1, worked, &later);
                    self.pauses = true;
                }
            }
            Ran::Failed { blame: Blame::Circumstances, ok, .. } => {
                self.done(ok.iter(), &later);
                self.suspects = if ok.is_empty() { self.suspects } else { None };
                self.pauses = true;
            }
            Ran::Failed { blame, ok, failed } => {
                self.first_failure.get_or_insert(now);
                self.done(ok.iter(), &later);
                let permanent: Vec<_> = failed.iter().copied().filter(|named| named.is_permanent).collect();
                self.named(&permanent, false, worked, &later);
                let is_left = |index: &usize| {
                    self.states[*index] != State::Done && permanent.iter().all(|named| named.index != *index)
                };
                let left: Vec<_> = records.iter().copied().filter(is_left).collect();
                self.failed(&left, *blame, worked);
            }
        }
    }

    /// These were run, and something among them is bad.
    fn failed(&mut self, records: &[usize], blame: Blame, worked: Option<Instant>) {
        let is_permanent = blame == Blame::RecordsForEver;
        if let [alone] = records
            && (self.is_isolating || is_permanent || self.failures + 1 >= self.rules.isolate_after)
        {
            self.is_isolating = true;
            return self.judge(*alone, is_permanent, worked);
        }
        if !self.is_isolating {
            self.failures += 1;
            self.is_isolating = is_permanent || self.failures >= self.rules.isolate_after;
            self.pauses = !self.is_isolating;
        }
        self.suspects = (self.is_isolating && !records.is_empty()).then_some(records.len());
    }

    fn named(
        &mut self,
        failed: &[Named],
        stood_alone: bool,
        worked: Option<Instant>,
        later: &impl Fn(usize) -> Vec<usize>,
    ) {
        for Named { index, is_permanent } in failed {
            let times = self.named.entry(*index).or_default();
            *times += 1;
            if *is_permanent || *times >= self.rules.isolate_after || (stood_alone && self.is_isolating) {
                self.judge(*index, *is_permanent, worked);
            } else {
                self.reopen(later(*index));
            }
        }
    }

    fn judge(&mut self, index: usize, is_permanent: bool, worked: Option<Instant>) {
        // Equal where the run that failed had successes, too.
        let is_proven = worked >= self.first_failure;
        let bad = self.bad.entry(index).or_insert(Bad { is_permanent, is_proven });
        bad.is_permanent |= is_permanent;
        bad.is_proven |= is_proven;
        self.states[index] = State::Bad;
        self.suspects = None;
        let judged = self.states.iter().filter(|state| **state != State::Open).count();
        self.is_breaker_open |= self.rules.breaker.is_tripped(self.bad.len(), self.others + judged);
    }

    fn done<'i>(&mut self, records: impl Iterator<Item = &'i usize>, later: &impl Fn(usize) -> Vec<usize>) {
        for index in records {
            self.states[*index] = State::Done;
            if self.bad.remove(index).is_none() {
                continue;
            }
            // It comes late: those of its key that were done meanwhile come again after it.
            self.reopen(later(*index));
            if self.is_breaker_open {
                // The fault was not theirs, so all are judged anew.
                self.is_breaker_open = false;
                let bad: Vec<_> = std::mem::take(&mut self.bad).into_keys().collect();
                bad.into_iter().for_each(|index| self.states[index] = State::Open);
            }
        }
    }

    fn reopen(&mut self, records: Vec<usize>) {
        for index in records {
            if self.states[index] == State::Done {
                self.states[index] = State::Open;
                self.suspects = None;
            }
        }
    }

    /// More records belong to the batch now.
    pub fn extend(&mut self, records: usize) {
        self.states.resize(self.states.len() + records, State::Open);
        self.runs.resize(self.states.len(), 0);
    }

    /// Whether nothing is left but bad records that wait for a sign that the store works.
    pub fn waits_for_proof(&self) -> bool {
        self.rules.puts_aside && !self.is_breaker_open && !self.bad.is_empty() && !self.states.contains(&State::Open)
    }

    /// Where the partition stays for now, though everything after it was run: the first of the bad ones.
    pub fn stays_before(&self) -> Option<usize> {
        let is_stuck = self.is_breaker_open || (!self.rules.puts_aside && !self.states.contains(&State::Open));
        self.first_bad().filter(|_| is_stuck)
    }

    pub fn is_done(&self, index: usize) -> bool {
        self.states[index] == State::Done
    }

    /// The first record that is not done: up to there the partition is.
    pub fn first_not_done(&self) -> Option<usize> {
        self.states.iter().position(|state| *state != State::Done)
    }

    /// Those that stood alone and failed.
    pub fn bad(&self) -> impl Iterator<Item = usize> {
        self.bad.keys().copied()
    }

    pub fn is_breaker_open(&self) -> bool {
        self.is_breaker_open
    }

    /// How many runs have had the record.
    pub fn runs(&self, index: usize) -> u32 {
        self.runs[index]
    }

    fn first_bad(&self) -> Option<usize> {
        self.bad.first_key_value().map(|(index, _)| *index)
    }

    fn indices(&self, state: State) -> Vec<usize> {
        (0..self.states.len()).filter(|index| self.states[*index] == state).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const RULES: Rules = Rules { isolate_after: 3, breaker: Breaker { failures: 20, share: 0.25 }, puts_aside: true };

    /// A handler that fails where one of the bad records is in the run, and what it saw.
    struct World {
        trial: Trial,
        bad: BTreeSet<usize>,
        /// The store works, seen from outside of the records.
        works: bool,
        clock: Instant,
        worked: Option<Instant>,
        runs: Vec<Vec<usize>>,
        done: Vec<usize>,
    }

    impl World {
        fn new(records: usize, bad: impl IntoIterator<Item = usize>, rules: Rules) -> World {
            let (trial, bad) = (Trial::new(records, rules), bad.into_iter().collect());
            let clock = Instant::now();
            World { trial, bad, works: true, clock, worked: None, runs: vec![], done: vec![] }
        }

        /// Runs what is to be run; those that it was.
        fn turn(&mut self) -> Result<Vec<usize>, Vec<usize>> {
            let records = match self.trial.next(self.worked) {
                Step::Run { records, .. } => records,
                Step::Finished { bad } => return Err(bad),
            };
            let fails = !self.works || records.iter().any(|index| self.bad.contains(index));
            let ran = match fails {
                true => Ran::Failed { blame: Blame::Records, ok: vec![], failed: vec![] },
                false => Ran::Done { failed: vec![] },
            };
            self.ended(&records, &ran);
            Ok(records)
        }

        fn ended(&mut self, records: &[usize], ran: &Ran) {
            self.clock += Duration::from_millis(1);
            // Two keys: the even ones and the odd ones.
            let last = self.trial.states.len();
            let later = |index: usize| (index + 2..last).step_by(2).collect();
            self.trial.ended(records, ran, (self.clock, self.worked), later);
            if let Ran::Done { failed } = ran {
                self.worked = Some(self.clock);
                self.done.extend(records.iter().filter(|index| failed.iter().all(|named| named.index != **index)));
            }
            self.runs.push(records.to_vec());
        }

        fn run_to_end(&mut self) -> Vec<usize> {
            for _ in 0..100_000 {
                if let Err(bad) = self.turn() {
                    return bad;
                }
            }
            panic!("no end: {:?}", self.trial);
        }
    }

    #[test]
    fn exactly_the_bad_ones_are_found_and_the_others_are_done_once_and_in_order() {
        let mut random = StdRng::seed_from_u64(4);
        for (records, count) in [(1, 1), (2, 1), (7, 1), (1000, 1), (1000, 3), (1000, 17), (64, 15), (1000, 0)] {
            for _ in 0..50 {
                let mut bad = BTreeSet::new();
                while bad.len() < count {
                    bad.insert(random.random_range(0..records));
                }
                let mut world = World::new(records, bad.clone(), RULES);
                // Another batch has shown that the store works; else a lone record would wait for that.
                world.turn().unwrap();
                world.worked = Some(world.clock + Duration::from_micros(1));
                assert_eq!(world.run_to_end(), Vec::from_iter(bad.iter().copied()));
                let good: Vec<_> = (0..records).filter(|index| !bad.contains(index)).collect();
                assert_eq!(world.done, good);
                let depth = f64::from(u32::try_from(records).unwrap()).log2().ceil() as usize;
                let more = world.runs.len() - usize::min(3, world.runs.len());
                assert!(more <= count * (2 + depth), "{more} runs for {count} of {records}");
            }
        }
    }

    #[test]
    fn so_many_bad_ones_that_the_breaker_opens_are_not_put_aside() {
        let mut world = World::new(1000, (0..1000).filter(|index| index % 2 == 1), RULES);
        while !world.trial.is_breaker_open() {
            world.turn().unwrap();
        }
        assert_eq!((world.trial.bad.len(), world.trial.stays_before()), (20, Some(1)));
        for _ in 0..100 {
            assert_eq!(world.turn(), Ok(vec![1]));
        }
    }

    #[test]
    fn a_record_that_comes_again_is_not_passed_because_a_later_one_opens_the_breaker() {
        let mut world = World::new(40, [], RULES);
        let named = |index| Named { index, is_permanent: index >= 10 };
        let failed = [5].into_iter().chain(10..30).map(named).collect();
        world.ended(&Vec::from_iter(0..40), &Ran::Done { failed });
        assert_eq!((world.trial.stays_before(), world.trial.first_not_done()), (Some(10), Some(5)));
    }

    #[test]
    fn a_store_that_was_down_leaves_no_bad_record_however_long_that_took() {
        for (records, runs_down) in (1..40).flat_map(|records| (0..200).map(move |runs| (records, runs))) {
            let mut world = World::new(records, [], RULES);
            world.works = false;
            for _ in 0..runs_down {
                world.turn().unwrap();
            }
            world.works = true;
            assert_eq!(world.run_to_end(), Vec::<usize>::new(), "{records} records, down for {runs_down} runs");
        }
    }

    #[test]
    fn a_lone_bad_record_waits_until_the_store_is_seen_working_and_stands_alone_once_more_then() {
        let mut world = World::new(1, [0], RULES);
        for _ in 0..10 {
            world.turn().unwrap();
        }
        assert!(world.trial.waits_for_proof());
        assert_eq!(world.trial.next(world.worked), Step::Run { records: vec![0], pauses: true });
        world.trial.extend(1);
        assert_eq!(world.turn(), Ok(vec![1]));
        assert_eq!(world.turn(), Ok(vec![0]));
        assert_eq!(world.turn(), Err(vec![0]));
    }

    #[test]
    fn without_a_place_for_it_the_partition_stays_before_the_bad_record_and_its_key_comes_again_after_it() {
        let mut world = World::new(6, [2], Rules { puts_aside: false, ..RULES });
        while world.trial.stays_before().is_none() {
            world.turn().unwrap();
        }
        assert_eq!((world.trial.stays_before(), &world.done[..]), (Some(2), &[0, 1, 3, 4, 5][..]));
        for _ in 0..5 {
            assert_eq!(world.turn(), Ok(vec![2]));
        }
        world.bad.clear();
        assert_eq!(world.turn(), Ok(vec![2]));
        assert_eq!(world.turn(), Ok(vec![4]));
        assert_eq!(world.turn(), Err(vec![]));
    }

    #[test]
    fn what_will_never_work_is_isolated_at_once_and_needs_no_proof() {
        let mut world = World::new(4, [], RULES);
        let permanent = Ran::Failed { blame: Blame::RecordsForEver, ok: vec![], failed: vec![] };
        world.ended(&[0, 1, 2, 3], &permanent);
        assert_eq!(world.trial.next(None), Step::Run { records: vec![0, 1], pauses: false });
        world.ended(&[0, 1], &permanent);
        world.ended(&[0], &permanent);
        world.turn().unwrap();
        assert_eq!(world.turn(), Err(vec![0]));
    }

    #[test]
    fn circumstances_count_against_no_record() {
        let mut world = World::new(4, [], RULES);
        for _ in 0..100 {
            let step = Step::Run { records: vec![0, 1, 2, 3], pauses: !world.runs.is_empty() };
            assert_eq!(world.trial.next(None), step);
            world.ended(&[0, 1, 2, 3], &Ran::Failed { blame: Blame::Circumstances, ok: vec![], failed: vec![] });
        }
    }

    #[test]
    fn a_record_that_the_handler_names_comes_again_with_the_later_ones_of_its_key_and_no_halving() {
        let mut world = World::new(6, [], RULES);
        let named = |is_permanent| Ran::Done { failed: vec![Named { index: 1, is_permanent }] };
        world.ended(&[0, 1, 2, 3, 4, 5], &named(false));
        for _ in 0..2 {
            assert_eq!(world.trial.next(world.worked), Step::Run { records: vec![1, 3, 5], pauses: true });
            world.ended(&[1, 3, 5], &named(false));
        }
        assert_eq!((world.run_to_end(), world.runs.len()), (vec![1], 3));

        let mut world = World::new(6, [], RULES);
        world.ended(&[0, 1, 2, 3, 4, 5], &named(true));
        assert_eq!(world.turn(), Err(vec![1]));
    }

    #[test]
    fn what_a_failed_run_reports_as_done_is_done() {
        let mut world = World::new(6, [3], RULES);
        world.ended(&[0, 1, 2, 3, 4, 5], &Ran::Failed { blame: Blame::Records, ok: vec![0, 1, 2], failed: vec![] });
        assert_eq!(world.turn(), Ok(vec![3, 4, 5]));
    }
}
