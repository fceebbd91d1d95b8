//! ksync-consume killed while it isolates bad records: each of them is put aside, and none again without need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::processes::{SOON, runs};
use crate::support::{End, Handler, Process, World, is_full, value};

/// The bad records and the moments of the kills are always the same.
const SEED: u64 = 11;
const BATCH: i64 = 40;
/// In each batch, so that every run but its first is one of the isolation.
const BAD: usize = 2;
const KEYS: i64 = 8;

/// One lease, as its process told of it: with which term, and from which offset on.
#[derive(Clone, Copy, Debug)]
struct Reign {
    term: u64,
    from: i64,
}

impl Reign {
    fn all_of(consumer: &Process) -> Vec<Reign> {
        let of = |line: String| {
            let (from, term) = line.split_once("leading from offset ")?.1.split_once(", term ")?;
            Some(Reign { term: term.parse().unwrap(), from: from.parse().unwrap() })
        };
        consumer.log_of("info").into_iter().filter_map(of).collect()
    }
}

#[test]
fn ksync_killed_at_random_while_it_isolates_puts_each_bad_record_aside_and_none_that_was_passed() {
    let moments = if is_full() { 50 } else { 5 };
    let records = 4 * BATCH * moments;
    let mut rng = StdRng::seed_from_u64(SEED);
    let (world, bad) = (World::new("isolation-killed"), bad_offsets(records, &mut rng));
    let (products, dead) = (world.topic("products", 1), world.topic("dead", 1));
    let messages = (0..records).map(|offset| value(offset.to_string()).key((offset % KEYS).to_string()));
    world.kafka.produce(&products, messages);
    let (pids, handler) = handler(&world, &bad);
    let options = "--session-timeout 1s --isolate-after 2 --retry-pause 20ms";
    let command =
        format!("-t {products} -n indexer -e {options} --batch-size {BATCH} --dead-letter={dead} -- {handler}");

    let seat = world.seat(&products, 0, "indexer");
    let (mut reigns, mut left, mut committed): (Vec<Reign>, _, _) = (vec![], vec![], 0);
    for moment in 0..moments {
        let before = numbers(&pids).len();
        let mut consumer = world.consume(&command);
        if moment % 2 == 0 {
            // Two numbers for each run; a batch takes about 15 of them.
            let further = before + 2 * rng.random_range(2..=40);
            world.eventually("it isolates", || numbers(&pids).len() >= further);
        } else {
            world.spin("it puts a record aside", || consumer.says(&["warn: ", " goes to "]));
        }
        // Up to 40 ms; each second one below 10 ms, in which the letter is written and the offset after it.
        let end = Instant::now() + Duration::from_micros(rng.random_range(0..200_u64).pow(2));
        world.spin("its time is over", || Instant::now() >= end);
        consumer.signal(Signal::KILL);
        let is_left = || numbers(&pids)[before..].iter().any(|pid| runs(*pid));
        left.push(world.within(Duration::from_secs(5), "no handler is left", || !is_left()));
        assert_eq!(consumer.wait(), End::By(Signal::KILL));
        world.eventually("nothing at all is left", || world.processes() == 0);
        let of_this = Reign::all_of(&consumer);
        assert_eq!(of_this[0].from, committed);
        reigns.extend(of_this);
        // Then ZooKeeper has done all that the process had asked for.
        world.eventually("its session is over", || seat.candidates().is_empty());
        committed = seat.offset().unwrap();
    }
    let mut last = world.consume(&command);
    assert_eq!(last.wait(), End::Status(3));
    let of_this = Reign::all_of(&last);
    assert_eq!(of_this[0].from, committed);
    reigns.extend(of_this);

    assert_eq!(seat.offset(), Some(records));
    let (done, letters) = (first_successes(&handler), letters(&world, &dead));
    assert_eq!(BTreeSet::from_iter(letters.iter().map(|(offset, _)| *offset)), bad);
    assert_eq!(done.keys().copied().collect::<Vec<_>>(), Vec::from_iter((0..records).filter(|o| !bad.contains(o))));
    in_the_order_of_each_key(&done);
    nothing_was_passed_that_was_not_done(&reigns, &done, &letters);
    nothing_is_put_aside_again_that_was_passed(&reigns, &letters);
    // To look takes its time, too, the most of it while the machine has other things to do.
    left.sort_unstable();
    assert!(left[left.len() / 4] < SOON, "{left:?}");
}

fn bad_offsets(records: i64, rng: &mut StdRng) -> BTreeSet<i64> {
    let mut bad = BTreeSet::new();
    for first in (0..records).step_by(BATCH as usize) {
        let enough = bad.len() + BAD;
        while bad.len() < enough {
            bad.insert(rng.random_range(first..first + BATCH));
        }
    }
    bad
}

/// Fails where one of the bad records is in the batch, and says in which term, which a dead letter then tells. It leaves in
/// the file its own number and that of a process that has left its group.
fn handler(world: &World, bad: &BTreeSet<i64>) -> (PathBuf, Handler) {
    let (pids, list) = (world.file("pids"), world.file("bad"));
    fs::write(&list, bad.iter().map(|offset| format!("\"offset\":{offset},\n")).collect::<String>()).unwrap();
    let handler = world.handler(&format!(
        "setsid sleep 600 >/dev/null 2>&1 3>&- & echo \"$$ $!\" >> {}\n\
         if grep -qFf {} \"$run\"; then echo $KSYNC_BATCH_TERM >&2; exit 1; fi",
        pids.display(),
        list.display()
    ));
    (pids, handler)
}

fn numbers(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// By offset: the record's first successful run, by its place among all ends of runs, and the term of that.
fn first_successes(handler: &Handler) -> BTreeMap<i64, (usize, u64)> {
    let mut runs: Vec<_> = handler.runs().into_iter().filter_map(|run| Some((run.done?, run))).collect();
    runs.sort_by_key(|(done, _)| *done);
    let mut first = BTreeMap::new();
    for (done, run) in runs {
        for offset in run.offsets() {
            first.entry(offset).or_insert((done, run.term));
        }
    }
    first
}

/// The origin's offset of each dead letter, and the term of the process that wrote it.
fn letters(world: &World, dead: &str) -> Vec<(i64, u64)> {
    let number = |headers: &[(String, String)], name: &str| -> u64 {
        headers.iter().find(|(header, _)| header == name).unwrap().1.trim().parse().unwrap()
    };
    let records = world.kafka.records(dead);
    let of = |headers: &[_]| (number(headers, "ksync.offset") as i64, number(headers, "ksync.stderr"));
    records.iter().map(|letter| of(&letter.headers)).collect()
}

fn in_the_order_of_each_key(done: &BTreeMap<i64, (usize, u64)>) {
    for key in 0..KEYS {
        let of_key: Vec<_> =
            done.iter().filter(|(offset, _)| *offset % KEYS == key).map(|(_, (end, _))| *end).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
}

/// An earlier reign had done or put aside whatever lies before a later one's beginning.
fn nothing_was_passed_that_was_not_done(reigns: &[Reign], done: &BTreeMap<i64, (usize, u64)>, letters: &[(i64, u64)]) {
    for Reign { term, from } in reigns {
        let is_settled = |offset: &i64| {
            done.get(offset).is_some_and(|(_, by)| by < term)
                || letters.iter().any(|(put_aside, by)| put_aside == offset && by < term)
        };
        let missing: Vec<_> = (0..*from).filter(|offset| !is_settled(offset)).collect();
        assert!(
            missing.is_empty(),
            "term {term} began at {from}, but these were neither done nor put aside: {missing:?}"
        );
    }
}

/// A record has a second letter only by a later term, which began before it: the kill came after the first letter was sent
/// and before the offset past it was committed.
fn nothing_is_put_aside_again_that_was_passed(reigns: &[Reign], letters: &[(i64, u64)]) {
    let from: BTreeMap<u64, i64> = reigns.iter().map(|reign| (reign.term, reign.from)).collect();
    let passed: Vec<_> = letters.iter().filter(|(offset, term)| *offset < from[term]).collect();
    assert!(passed.is_empty(), "put aside (offset, term) by a reign that began after them: {passed:?} of {reigns:?}");
    assert_eq!(BTreeSet::from_iter(letters).len(), letters.len(), "twice by one reign: {letters:?}");
}
