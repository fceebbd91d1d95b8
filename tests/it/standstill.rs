//! A process that stands still for less than its session, a machine that does so as a whole, or hardly goes on.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{Freezer, Process, World, is_full, reigns, value};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

#[test]
fn a_leader_frozen_with_its_handlers_for_longer_than_its_session_commits_nothing_and_ends_them_when_it_thaws() {
    let (world, since) = (World::new("frozen"), SystemTime::now());
    let products = world.topic("products", 2);
    world.kafka.produce(&products, (0..2).flat_map(|p| ids(0..5).map(move |message| message.to(p))));
    let (gate, pids) = (world.gate(), world.file("pids"));
    // One ends well as soon as it thaws, the other goes on for ever.
    let slow = world.handler(&format!(
        "echo $$ >> {}; [ $KSYNC_BATCH_PARTITION = 0 ] || await {gate}.never; await {gate}",
        pids.display()
    ));
    let quick = world.handler("");
    let options = format!("-t {products} -n indexer --session-timeout 10s -j 2");
    let freezer = Freezer::new(&world.id);
    let script = world.script(&format!("{}\nexec {CONSUME} {options} -- {slow}", freezer.enter()));
    let first = world.start(&script, "", &[]);
    // It goes before the process: what is frozen does not die.
    let freezer = freezer;
    world.eventually("its handlers run", || slow.runs().len() == 2);
    let second = world.consume(&format!("{options} -- {quick}"));
    let seats = [0, 1].map(|p| world.seat(&products, p, "indexer"));
    world.eventually("two queue", || seats.iter().all(|seat| seat.candidates().len() == 2));

    freezer.freeze(first.pid);
    world.eventually("the standby has done the batches", || seats.iter().all(|seat| seat.offset() == Some(5)));
    let versions = || seats.iter().map(|seat| seat.node("offset").unwrap().1.version).collect::<Vec<_>>();
    let committed = versions();
    gate.open();
    freezer.thaw(first.pid);
    let pids = std::fs::read_to_string(&pids).unwrap();
    world.eventually("its handlers are gone", || pids.lines().all(|pid| !crate::processes::runs(pid.parse().unwrap())));
    world.eventually("it queues again, behind the other", || seats.iter().all(|seat| seat.candidates().len() == 2));
    world.eventually("it says so", || first.says(&["no longer leading: "]));
    assert_eq!((versions(), slow.runs().len(), quick.runs().len()), (committed, 2, 2));
    for seat in &seats {
        assert_eq!(reigns(&world.services, since, seat).len(), 2);
    }
    drop(second);
}

#[test]
fn a_process_that_hardly_gets_a_processor_keeps_its_lease_and_goes_on() {
    const BATCH: usize = 10;
    let cores = std::thread::available_parallelism().unwrap().get();
    // At most a fifth of what other tests have at hand, but not in the long form.
    let (time, nice, loops, most) = if is_full() { (60, 0, (2 * cores).max(20), 1) } else { (15, 10, 2 * cores, 0) };
    let world = World::new("starved");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let options = format!("-t {products} -n indexer --session-timeout 10s --batch-size {BATCH}");
    let command = format!("-n 19 {CONSUME} {options} -- {handler}");
    let consumers = [0, 1].map(|_| world.start("nice", &command, &[]));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("one leads, the other stands by", || seat.candidates().len() == 2 && seat.offset() == Some(0));
    let candidates = seat.candidates();
    let changes = || consumers.iter().flat_map(Process::log).filter(|line| line.contains("no longer leading")).count();
    let busy = |_| world.start("nice", &format!("-n {nice} sh -c 'while :; do :; done'"), &[]);
    let busy: Vec<_> = (0..loops).map(busy).collect();
    let time = Duration::from_secs(time);
    let records = (0..10 * time.as_secs()).map(|id| value(id.to_string())).collect::<Vec<_>>();
    let count = records.len();
    let flow = world.kafka.flow(&products, records, time);
    world.for_a_while(time, "the leader stays, and so does the standby", || {
        changes() <= most && (most > 0 || seat.candidates() == candidates)
    });
    flow.join().unwrap();
    drop(busy);
    world.within(Duration::from_secs(60), "all is done", || seat.offset() == Some(count as i64));
    let done = handler.payloads();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), count);
    assert!(changes() <= most, "{} changes in {time:?}", changes());
    // With each of them a batch may be done that was not committed.
    assert!(done.len() <= count + BATCH * changes(), "{} were done, {} changes", done.len(), changes());
}

/// Whether it leads, by what it has said last.
fn leads(process: &Process) -> bool {
    let log = process.log();
    let change = |line: &&String| line.contains("leading from offset") || line.contains("no longer leading");
    log.iter().rfind(change).is_some_and(|line| line.contains("leading from offset"))
}

#[test]
fn leaders_that_stand_still_for_less_than_their_session_lose_nothing_and_only_the_leader_commits() {
    const BATCH: usize = 10;
    const PACE: Duration = Duration::from_secs(2);
    let (world, since) = (World::new("short-stops"), SystemTime::now());
    let products = world.topic("products", 1);
    let handler = world.handler("sleep 0.02");
    let options = format!("-n indexer --session-timeout 2s --batch-size {BATCH}");
    let consumers = [0, 1].map(|_| world.consume(&format!("-t {products} {options} -- {handler}")));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("one leads, the other stands by", || seat.candidates().len() == 2 && seat.offset() == Some(0));
    let stops = if is_full() { 50 } else { 3 };
    let records = 100 * stops;
    let flow = world.kafka.flow(&products, ids(0..records).collect(), PACE * stops);
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..stops {
        let before = seat.offset();
        world.eventually("it is at work", || seat.offset() > before || seat.offset() == Some(records.into()));
        world.eventually("one leads", || consumers.iter().any(leads));
        let Some(leader) = consumers.iter().find(|consumer| leads(consumer)) else { continue };
        leader.signal(Signal::STOP);
        world.for_a_while(Duration::from_millis(rng.random_range(1000..1900)), "it stands still", || true);
        leader.signal(Signal::CONT);
    }
    flow.join().unwrap();
    world.eventually("all is done", || seat.offset() == Some(records.into()));
    let done = handler.payloads();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), records as usize);
    // Each time that one stops leading, a batch may be done that was not committed.
    let lost = || consumers.iter().flat_map(Process::log).filter(|line| line.contains("no longer leading")).count();
    // Who was stopped last may tell it a moment later.
    world.eventually("no more is done twice", || done.len() <= records as usize + BATCH * lost());
    let reigns = reigns(&world.services, since, &seat);
    assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), Some(i64::from(records)));
}
