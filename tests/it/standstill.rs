//! A machine that stands still as a whole, or hardly goes on.

use std::time::{Duration, SystemTime};

use crate::consume::ids;
use crate::support::{Freezer, World, is_full, reigns, value};

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
    let options = format!("-t {products} -n indexer --session-timeout 2s -j 2");
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
    world.within(Duration::from_secs(3), "its handlers are gone", || {
        pids.lines().all(|pid| !crate::processes::runs(pid.parse().unwrap()))
    });
    world.eventually("it queues again, behind the other", || seats.iter().all(|seat| seat.candidates().len() == 2));
    assert!(first.says(&["no longer leading: "]));
    assert_eq!((versions(), slow.runs().len(), quick.runs().len()), (committed, 2, 2));
    for seat in &seats {
        assert_eq!(reigns(&world.services, since, seat).len(), 2);
    }
    drop(second);
}

#[test]
fn a_process_that_hardly_gets_a_processor_keeps_its_lease_and_goes_on() {
    // At most a fifth of what other tests have at hand.
    let (time, loops, nice) = if is_full() { (60, 10, 15) } else { (15, 2, 10) };
    let world = World::new("starved");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let command =
        format!("-n 19 {CONSUME} -t {products} -n indexer --session-timeout 10s --batch-size 10 -- {handler}");
    let consumers = [0, 1].map(|_| world.start("nice", &command, &[]));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("one leads, the other stands by", || seat.candidates().len() == 2 && seat.offset() == Some(0));
    let candidates = seat.candidates();
    let busy = |_| world.start("nice", &format!("-n {nice} sh -c 'while :; do :; done'"), &[]);
    let cores = std::thread::available_parallelism().unwrap().get();
    let busy: Vec<_> = (0..loops * cores).map(busy).collect();
    let time = Duration::from_secs(time);
    let records = (0..10 * time.as_secs()).map(|id| value(id.to_string())).collect::<Vec<_>>();
    let count = records.len();
    let flow = world.kafka.flow(&products, records, time);
    world.for_a_while(time, "the leader stays, and so does the standby", || seat.candidates() == candidates);
    flow.join().unwrap();
    world.within(Duration::from_secs(60), "all is done", || seat.offset() == Some(count as i64));
    drop(busy);
    assert_eq!(handler.payloads().len(), count);
    assert!(consumers.iter().all(|consumer| !consumer.says(&["no longer leading"])));
}
