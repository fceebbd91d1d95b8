//! Consumers that are killed, stopped and woken: every record is handled, and only the leader of the moment commits.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, test_kill_process};

use crate::consume::ids;
use crate::support::{
    End, Handler, Mode, Process, Proxy, STALL, Seat, World, block_on, is_full, payload, reigns, value,
};

const PARTITIONS: i32 = 4;
/// The sequence of faults is always the same.
const SEED: u64 = 7;

/// A consumer, and what its candidates' names begin with.
struct Member {
    process: Process,
    prefix: String,
}

impl Member {
    fn start(world: &World, topic: &str, handler: &Handler, batch: u32) -> Member {
        let prefixes = || -> BTreeSet<String> {
            let names = world.seat(topic, 0, "indexer").candidates();
            names.iter().map(|name| name.split_once('_').unwrap().0.to_owned()).collect()
        };
        let before = prefixes();
        let options = format!("-t {topic} -n indexer --session-timeout 2s --batch-size {batch}");
        let process = world.consume(&format!("{options} -- {handler}"));
        let mut prefix = None;
        world.eventually("a new consumer queues", || {
            prefix = prefixes().difference(&before).next().cloned();
            prefix.is_some()
        });
        Member { process, prefix: prefix.unwrap() }
    }
}

#[test]
fn consumers_killed_and_stopped_at_random_lose_nothing_and_only_the_leader_commits() {
    let (faults, records, batch) = if is_full() { (30, 100_000, 500) } else { (6, 10_000, 50) };
    let flowing = Duration::from_secs(faults * 4);
    let (world, since) = (World::alone("chaos"), SystemTime::now());
    let products = world.topic("products", PARTITIONS);
    let handler = world.handler("");
    let offsets = || -> Vec<Option<i64>> {
        (0..PARTITIONS).map(|partition| world.seat(&products, partition, "indexer").offset()).collect()
    };
    let ends = vec![Some(i64::from(records) / i64::from(PARTITIONS)); PARTITIONS as usize];
    let mut members: Vec<Member> = (0..3).map(|_| Member::start(&world, &products, &handler, batch)).collect();
    let messages = ids(0..records).zip((0..PARTITIONS).cycle()).map(|(message, partition)| message.to(partition));
    let flow = world.kafka.flow(&products, messages.collect(), flowing);

    let mut rng = StdRng::seed_from_u64(SEED);
    for _ in 0..faults {
        let partition = rng.random_range(0..PARTITIONS);
        let seat = world.seat(&products, partition, "indexer");
        let first = seat.candidates().first().cloned().unwrap_or_default();
        let leader = members.iter().position(|member| first.starts_with(&member.prefix));
        // Three of four hit the leader of some partition.
        let anyone = rng.random_range(0..members.len());
        let hit = leader.filter(|_| rng.random_ratio(3, 4)).unwrap_or(anyone);
        if rng.random_bool(0.5) {
            members[hit].process.kill();
            members[hit] = Member::start(&world, &products, &handler, batch);
        } else {
            // From much shorter than the session timeout to twice as long.
            let time = Duration::from_millis(rng.random_range(200..4000));
            members[hit].process.signal(Signal::STOP);
            world.for_a_while(time, "it stands still", || true);
            members[hit].process.signal(Signal::CONT);
        }
        let before = offsets()[partition as usize];
        world.eventually("the partition goes on", || {
            let now = offsets()[partition as usize];
            now > before || now == ends[0]
        });
    }
    flow.join().unwrap();
    world.within(Duration::from_secs(60), "all offsets are at the end", || offsets() == ends);

    every_record_was_handled_before_the_offset_passed_it(&handler, records);
    let mut leaders = 0;
    for partition in 0..PARTITIONS {
        let reigns = reigns(&world.services, since, &world.seat(&products, partition, "indexer"));
        assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), ends[0]);
        leaders += reigns.len();
    }
    assert!(leaders > PARTITIONS as usize, "no fault has changed a leader");
    for mut member in members {
        member.process.signal(Signal::TERM);
        assert_eq!(member.process.wait(), End::Status(0));
    }
}

/// By the journal: when a run began, all records before its first were done.
fn every_record_was_handled_before_the_offset_passed_it(handler: &Handler, records: u32) {
    let runs = handler.runs();
    for partition in 0..PARTITIONS {
        let runs: Vec<_> = runs.iter().filter(|run| run.partition == partition).collect();
        let mut done: Vec<_> = runs.iter().filter_map(|run| Some((run.done?, run.first, run.last))).collect();
        done.sort_unstable();
        for run in runs {
            let mut passed = 0;
            for (_, first, last) in done.iter().filter(|(number, ..)| *number < run.begun) {
                if *first <= passed {
                    passed = passed.max(last + 1);
                }
            }
            assert!(run.first <= passed, "only {passed} was reached when this began: {run:?}");
        }
    }
    let handled: BTreeSet<String> = handler.payloads().into_iter().collect();
    let missing: Vec<u32> = (0..records).filter(|id| !handled.contains(&format!("{{\"id\":{id}}}"))).collect();
    assert!(missing.is_empty(), "never handled: {missing:?}");
}

#[test]
fn a_stopped_leader_that_wakes_cannot_commit_and_ends_its_handler() {
    let (world, since) = (World::new("zombie"), SystemTime::now());
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let pid = world.file("pid");
    let slow = world.handler(&format!("echo $$ > {0}.part; mv {0}.part {0}; await {1}", pid.display(), world.gate()));
    let quick = world.handler("");
    let options = format!("-t {products} -n indexer --session-timeout 10s");
    let first = world.consume(&format!("{options} -- {slow}"));
    world.eventually("its handler runs", || pid.exists());
    let second = world.consume(&format!("{options} -- {quick}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("two queue", || seat.candidates().len() == 2);

    first.signal(Signal::STOP);
    world.eventually("the standby has done the batch", || seat.offset() == Some(5));
    let (_, committed) = seat.node("offset").unwrap();
    first.signal(Signal::CONT);
    let pid = Pid::from_raw(std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap()).unwrap();
    world.within(Duration::from_secs(20), "its handler is gone", || test_kill_process(pid).is_err());
    world.eventually("it queues again, behind the other", || seat.candidates().len() == 2);
    world.eventually("it is told", || first.says(&["no longer leading: "]));
    assert_eq!(seat.node("offset").unwrap().1.version, committed.version);
    assert_eq!(slow.payloads(), Vec::<String>::new());
    let (of_first, of_second) = (slow.runs(), quick.runs());
    assert_eq!((of_first.len(), of_second.len()), (1, 1));
    assert!(of_first[0].term < of_second[0].term);
    assert_eq!(reigns(&world.services, since, &seat).len(), 2);
    assert!(second.says(&["leading from offset 0"]));
}

#[test]
fn a_leader_killed_in_a_batch_is_followed_within_the_session_timeout_and_two_seconds() {
    let world = World::new("killed-leader");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let (slow, quick) = (world.handler(&format!("await {}", world.gate())), world.handler(""));
    let mut first = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {slow}"));
    world.eventually("its handler runs", || slow.runs().len() == 1);
    let second = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {quick}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("two queue", || seat.candidates().len() == 2);
    // As far as ZooKeeper knows; what takes time then on a busy machine is Kafka's and the handler's.
    let version = || seat.node("offset").unwrap().1.version;
    let (before, limit) = (version(), Duration::from_secs(if is_full() { 12 } else { 15 }));
    let died = Instant::now();
    first.kill();
    let gone = world.within(limit, "its session is over", || seat.candidates().len() == 1);
    let left = if is_full() { limit - gone } else { Duration::from_secs(8) };
    world.within(left, "the standby leads", || version() > before);
    world.eventually("the standby works", || !quick.runs().is_empty());
    assert!(!is_full() || died.elapsed() <= limit, "the standby works {:?} after the death", died.elapsed());
    world.eventually("the batch is done", || seat.offset() == Some(5));
    let lines = &quick.runs()[0].lines;
    let payloads: Vec<_> = lines.iter().map(|line| payload(line)).collect();
    assert_eq!(payloads, (1..=5).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>());
    drop(second);
}

#[test]
fn a_leader_whose_candidate_is_deleted_ends_its_handler_and_queues_again() {
    let world = World::new("deleted");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, [value("1")]);
    let gate = world.gate();
    // The first run is held up, the next one is not.
    let handler = world.handler(&format!(r#"[ "$(grep -c ^begun "$runs/journal")" -gt 1 ] || await {gate}"#));
    let consumer = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the handler runs", || handler.runs().len() == 1);
    let candidate = seat.candidates().remove(0);
    seat.delete(&format!("leader/{candidate}"));
    world.within(Duration::from_secs(8), "it leads again, and has handled the batch", || seat.offset() == Some(1));
    let gone = "no longer leading: deposed: the own candidate is gone; queueing again";
    world.eventually("it is told", || consumer.says(&[gone]));
    assert_ne!(seat.candidates(), [candidate]);
    world.eventually("only ksync is left", || world.processes() == 1);
}

#[test]
fn a_session_that_is_ended_by_force_ends_the_handler_and_its_batch_comes_again() {
    let world = World::new("forced");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let (pid, gate) = (world.file("pid"), world.gate());
    let handler = world.handler(&format!("echo $$ > {0}.part; mv {0}.part {0}; await {gate}", pid.display()));
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let zookeeper = format!("--zookeeper {}/{}", proxy.address, world.id);
    let consumer = world.consume(&format!("-t {products} -n indexer {zookeeper} --session-timeout 10s -- {handler}"));
    world.eventually("its handler runs", || pid.exists());
    let (seat, first) = (world.seat(&products, 0, "indexer"), std::fs::read_to_string(&pid).unwrap());
    let candidate = seat.candidates();
    let (_, version) = seat.node("offset").unwrap();
    block_on(proxy.end_session());
    let first = Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    // Its beat comes each second; the session would have lasted longer.
    world.within(Duration::from_secs(8), "its handler is gone", || test_kill_process(first).is_err());
    assert_eq!(seat.node("offset").unwrap().1.version, version.version, "nothing of it is committed");
    gate.open();
    world.eventually("another run has done it", || seat.offset() == Some(2));
    assert_ne!(seat.candidates(), candidate);
    world.eventually("it is told", || consumer.says(&["warn: ", "no longer leading: "]));
    // By its beat, which comes each second: without an answer it would have waited longer.
    assert!(!consumer.says(&["ZooKeeper has answered no write for"]), "{:?}", consumer.log());
    assert_eq!(handler.payloads(), [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[test]
fn a_handler_that_runs_longer_than_the_session_leaves_the_lease_alone() {
    let world = World::new("long-run");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let handler = world.handler("sleep 12");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --session-timeout 10s -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!((handler.runs().len(), consumer.log_of("warn")), (1, vec![]));
}

#[test]
fn all_candidates_killed_at_once_go_on_where_the_offset_stands() {
    let world = World::new("all-killed");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=5));
    let (handler, gate) = (world.handler(""), world.gate());
    let held_up = world.handler(&format!("await {gate}"));
    let command = format!("-t {products} -n indexer --session-timeout 10s");
    let mut consumers: Vec<_> = (0..2).map(|_| world.consume(&format!("{command} -- {handler}"))).collect();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the first are done", || seat.offset() == Some(5));
    for consumer in &mut consumers {
        consumer.kill();
    }
    world.kafka.produce(&products, ids(6..=10));
    let mut killed = world.consume(&format!("{command} -- {held_up}"));
    world.eventually("another one is at work", || held_up.runs().len() == 1);
    killed.kill();
    let mut last = world.consume(&format!("{command} -e -- {handler}"));
    assert_eq!(last.wait(), End::Status(0));
    assert_eq!(seat.offset(), Some(10));
    let offsets: Vec<_> = handler.runs().iter().flat_map(|run| run.offsets()).collect();
    assert_eq!(offsets, (0..10).collect::<Vec<_>>());
}

#[test]
fn an_outage_of_zookeeper_ends_the_work_until_it_is_back() {
    let world = World::alone("outage");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consumer = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(1..=5));
    world.eventually("the first are done", || seat.offset() == Some(5));
    world.services.stop("zookeeper");
    world.eventually("it no longer leads", || consumer.says(&["no longer leading: "]));
    world.kafka.produce(&products, ids(6..=10));
    world.for_a_while(Duration::from_secs(3), "no handler runs", || handler.payloads().len() == 5);
    world.services.start_again("zookeeper");
    world.eventually("all is done", || handler.payloads().len() == 10);
    // The session of this test may have ended with the server.
    let seat = Seat { client: Seat::connect(world.services.get("KSYNC_ZOOKEEPER")), ..seat };
    world.eventually("all is committed", || seat.offset() == Some(10));
}

#[test]
fn a_leader_that_hears_nothing_of_zookeeper_begins_nothing_more_though_kafka_has_records_for_it() {
    const RECORDS: u32 = 2000;
    /// A leader of a topic of its own that is full of records.
    struct Cut {
        proxy: Proxy,
        handler: Handler,
        consumer: Process,
        seat: Seat,
    }
    let world = World::new("split");
    let cut = ["frozen", "deaf"].map(|name| {
        let products = world.topic(name, 1);
        world.kafka.produce(&products, ids(0..RECORDS));
        let handler = world.handler("sleep 0.02");
        let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
        let way = format!("--zookeeper {}/{} --session-timeout 10s", proxy.address, world.id);
        let consumer = world.consume(&format!("-t {products} -n indexer {way} --batch-size 1 -- {handler}"));
        Cut { proxy, handler, consumer, seat: world.seat(&products, 0, "indexer") }
    });
    world.eventually("both are at work", || cut.iter().all(|cut| cut.seat.offset() > Some(5)));
    for (cut, mode) in cut.iter().zip([Mode::Frozen, Mode::Deaf]) {
        cut.proxy.set(mode);
    }
    // 0.4 of the session timeout, and what a busy machine takes.
    world.within(Duration::from_secs(if is_full() { 6 } else { 10 }), "both stop", || {
        cut.iter().all(|cut| cut.consumer.says(&["no longer leading: ZooKeeper has answered no write for"]))
    });
    let runs = || cut.each_ref().map(|cut| cut.handler.runs().len());
    let stopped = runs();
    for (cut, runs) in cut.iter().zip(stopped) {
        let offset = cut.seat.offset().unwrap() as usize;
        // The one whose commit was not answered, whether it was carried out or not.
        assert!((offset..=offset + 1).contains(&runs), "{runs} runs up to {offset}");
        assert!(runs < RECORDS as usize / 2, "{runs} runs: there are hardly any records left");
    }
    let time = Duration::from_secs(if is_full() { 12 } else { 3 });
    world.for_a_while(time, "no handler runs", || runs() == stopped);
}

#[test]
fn an_outage_of_kafka_ends_no_process_and_loses_nothing() {
    let world = World::alone("broker-outage");
    let products = world.topic_with_delay("products", 1);
    let handler = world.handler("");
    let patient = "--session-timeout 10s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {patient} -- {handler}"));
    let mut delayer = world.delayer(&format!("-t {products} --delay 500ms {patient}"));
    let announced = |range: std::ops::RangeInclusive<u32>| {
        let lines: String = range.map(|id| format!("{{\"id\":{id}}}\n")).collect();
        assert_eq!(world.stream_lines(&format!("- -t {products} --only delay"), lines).wait(), End::Status(0));
    };
    announced(1..=5);
    world.eventually("the first are done", || handler.payloads().len() == 5);
    world.services.stop("kafka");
    world.eventually("it is told", || consumer.says(&["cannot reach Kafka at "]));
    // At its next look, within 5 s, each asks the broker once more that answered last: without any pause, for half a second.
    world.for_a_while(Duration::from_secs(6), "both live", || consumer.is_running() && delayer.is_running());
    let (used, outage) = ([consumer.cpu(), delayer.cpu()], Duration::from_secs(if is_full() { 300 } else { 12 }));
    world.for_a_while(outage, "both live", || consumer.is_running() && delayer.is_running());
    let used = [consumer.cpu() - used[0], delayer.cpu() - used[1]];
    assert!(used.iter().all(|used| *used < outage / 20), "{used:?} of a processor in {outage:?}");
    world.services.start_again("kafka");
    let begun = Instant::now();
    announced(6..=10);
    // On a busy machine as long as ksync-stream has taken for its part, too.
    let limit = if is_full() { STALL.saturating_sub(begun.elapsed()) } else { STALL + begun.elapsed() };
    world.within(limit, "all is done", || handler.payloads().len() == 10);
    assert!(consumer.is_running() && delayer.is_running());
    // Nobody else has led meanwhile.
    assert!(!consumer.says(&["no longer leading"]) && !delayer.says(&["no longer leading"]));
}
