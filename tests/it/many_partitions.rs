//! Many partitions: how they are spread over the processes of a name, and commits that are grouped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Process, Seat, World, is_full, value};

/// Partitions are spread once nobody has come or gone for six of them. Long enough that no session ends while the machine is busy.
const T: &str = "--session-timeout 10s";
const QUIET: Duration = Duration::from_secs(60);

/// How often each process has begun to lead each partition.
fn beginnings(processes: &[&Process]) -> BTreeMap<String, usize> {
    let mut beginnings = BTreeMap::new();
    for line in processes.iter().flat_map(|process| process.log_of("info")) {
        if let Some((seat, _)) = line.split_once(": leading from offset ") {
            *beginnings.entry(seat.to_owned()).or_default() += 1;
        }
    }
    beginnings
}

fn first_candidates(world: &World, topic: &str, partitions: i32) -> Vec<Option<String>> {
    let first = |partition| world.seat(topic, partition, "indexer").candidates().into_iter().next();
    (0..partitions).map(first).collect()
}

/// Which process a candidate belongs to.
fn process_of(candidate: &str) -> &str {
    candidate.split_once('_').unwrap().0
}

/// Of each process that queues, how many partitions it leads.
fn led(world: &World, topic: &str, partitions: i32) -> BTreeMap<String, usize> {
    let mut led: BTreeMap<String, usize> = BTreeMap::new();
    for partition in 0..partitions {
        let queue = world.seat(topic, partition, "indexer").candidates();
        for (place, candidate) in queue.iter().enumerate() {
            *led.entry(process_of(candidate).to_owned()).or_default() += usize::from(place == 0);
        }
    }
    led
}

fn leaders(world: &World, topic: &str, partitions: i32) -> Vec<usize> {
    led(world, topic, partitions).into_values().collect()
}

#[test]
fn partitions_are_spread_once_it_is_quiet_and_none_moves_more_than_twice_nor_is_a_record_done_twice() {
    let world = World::new("spread");
    let partitions = if is_full() { 64 } else { 9 };
    let share = (partitions as usize).div_ceil(3);
    let products = world.topic("products", partitions);
    let handler = world.handler("");
    let start = || world.consume(&format!("-t {products} -n indexer {T} --batch-wait 1ms -- {handler}"));
    let mut produced = 0;
    let mut flow = || {
        let records = (0..partitions).map(|partition| value(format!("{{\"id\":{produced}}}")).to(partition));
        world.kafka.produce(&products, records);
        produced += 1;
    };
    let first = start();
    world.eventually("the first leads all", || leaders(&world, &products, partitions) == [partitions as usize]);
    let (second, third) = (start(), start());
    world.eventually("three queue", || leaders(&world, &products, partitions).len() == 3);
    world.for_a_while(QUIET * 2 / 3, "nothing moves before it is quiet", || {
        flow();
        leaders(&world, &products, partitions).iter().max() == Some(&(partitions as usize))
    });
    let took = world.within(Duration::from_secs(600), "nobody leads more than its share", || {
        flow();
        let led = leaders(&world, &products, partitions);
        led.iter().sum::<usize>() == partitions as usize && led.iter().all(|led| *led <= share)
    });
    // The first one hands over one in each session timeout.
    let least = 10 * (partitions as usize - share - 1);
    assert!(took.as_secs() as usize >= least, "{took:?} and not {least} s");
    let candidates = first_candidates(&world, &products, partitions);
    world.for_a_while(QUIET, "then nothing moves", || {
        flow();
        first_candidates(&world, &products, partitions) == candidates
    });
    let begun = beginnings(&[&first, &second, &third]);
    assert!(begun.values().all(|times| *times <= 3), "one moved more than twice: {begun:?}");

    // A rolling restart, after which nothing moves either until it is quiet again.
    let mut members = [first, second, third];
    for member in &mut members {
        restart(&world, (&products, partitions), member, start);
    }
    let candidates = first_candidates(&world, &products, partitions);
    world.for_a_while(QUIET * 2 / 3, "nothing is moved about after the restarts", || {
        flow();
        first_candidates(&world, &products, partitions) == candidates
    });
    let ends = i64::from(produced);
    world.eventually("all is done", || {
        (0..partitions).all(|partition| world.seat(&products, partition, "indexer").offset() == Some(ends))
    });
    let mut done: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for run in handler.runs() {
        done.entry(run.partition).or_default().extend(run.offsets());
    }
    assert_eq!(done, (0..partitions).map(|partition| (partition, Vec::from_iter(0..ends))).collect());
}

/// Restarts one of three processes: what it has led others lead then, and nothing else moves.
fn restart(world: &World, (topic, partitions): (&str, i32), process: &mut Process, start: impl Fn() -> Process) {
    let (before, queued) = (first_candidates(world, topic, partitions), led(world, topic, partitions));
    process.signal(Signal::TERM);
    assert_eq!(process.wait(), End::Status(0));
    *process = start();
    let mut queue = BTreeMap::new();
    world.eventually("three queue again", || {
        queue = led(world, topic, partitions);
        queue.len() == 3 && queue.keys().ne(queued.keys())
    });
    let after = first_candidates(world, topic, partitions);
    let gone: Vec<_> = queued.into_keys().filter(|process| !queue.contains_key(process)).collect();
    assert_eq!(gone.len(), 1, "{gone:?}");
    for (then, now) in before.iter().zip(&after).filter(|(then, now)| then != now) {
        let then = then.as_deref().expect("all are led");
        assert_eq!(process_of(then), gone[0], "{then} -> {now:?}: its leader is still there");
    }
}

/// How many connections the process has.
fn connections(process: &Process) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap();
    // Some are closed meanwhile.
    let targets = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

#[test]
fn a_process_that_leads_64_partitions_of_several_topics_has_one_session_and_as_many_connections_as_for_one_partition() {
    let world = World::new("one-session");
    let (one, topics) =
        (world.topic("one", 1), [40, 20, 4].map(|count| (world.topic(&format!("of-{count}"), count), count)));
    let handler = world.handler("");
    let start = |options: &str| world.consume(&format!("{options} -n indexer --mirror-group off -j 4 -- {handler}"));
    let of_one = start(&format!("-t {one}"));
    let named = topics.each_ref().map(|(topic, _)| format!("-t {topic}")).join(" ");
    let of_many = start(&named);
    world.kafka.produce(&one, [value("1")]);
    for (topic, count) in &topics {
        world.kafka.produce(topic, (0..*count).map(|partition| value("1").to(partition)));
    }
    let seats =
        || topics.iter().flat_map(|(topic, count)| (0..*count).map(|number| world.seat(topic, number, "indexer")));
    let seats: Vec<_> = seats().chain([world.seat(&one, 0, "indexer")]).collect();
    world.eventually("all is done", || seats.iter().all(|seat| seat.offset() == Some(1)));
    let owner = |seat: &Seat| {
        let [candidate] = &seat.candidates()[..] else { panic!("{:?}", seat.candidates()) };
        seat.node(&format!("leader/{candidate}")).unwrap().1.ephemeral_owner
    };
    let sessions: BTreeSet<_> = seats[..64].iter().map(owner).collect();
    assert_eq!((sessions.len(), sessions.contains(&owner(&seats[64]))), (1, false));
    world.eventually("as many connections", || connections(&of_many) == connections(&of_one));
}

#[test]
fn nothing_is_handed_over_where_that_is_not_wanted() {
    let world = World::new("no-spread");
    let products = world.topic("products", 2);
    let start = |name: &str, options: &str| world.consume(&format!("-t {products} -n {name} {T} {options} -- cat"));
    // Others beside them show when it is time.
    let [first, other] = [start("indexer", "--no-spread"), start("spread", "")];
    world.eventually("both lead both", || [&first, &other].iter().all(|one| beginnings(&[*one]).len() == 2));
    let [_second, next] = [start("indexer", "--no-spread"), start("spread", "")];
    world.eventually("two queue", || leaders(&world, &products, 2).len() == 2);
    world.within(QUIET * 2, "the other one hands one over", || !beginnings(&[&next]).is_empty());
    // Each looks once in 10 s, at times of its own.
    world.for_a_while(Duration::from_secs(12), "the first leads both", || {
        beginnings(&[&first]).len() == 2 && leaders(&world, &products, 2).contains(&2)
    });
}

#[test]
fn grouped_commits_are_written_in_time_and_at_the_end() {
    let world = World::new("grouped");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..100));
    let handler = world.handler("");
    let options = format!("-t {products} -n indexer --session-timeout 10s --batch-size 10");
    let start = |more: &str| world.consume(&format!("{options} --commit-interval {more} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    let mut consumer = start("1h");
    world.eventually("all is done", || handler.payloads().len() == 100);
    let writes = seat.node("offset").unwrap().1.version;
    assert!(writes <= 2, "{writes} writes for 10 batches");
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(seat.offset(), Some(100));

    world.kafka.produce(&products, ids(100..110));
    let mut killed = start("500ms");
    world.eventually("it is written without an end", || seat.offset() == Some(110));
    killed.kill();
    assert_eq!(start("500ms -e").wait(), End::Status(0));
    assert_eq!(handler.payloads().len(), 110, "what was committed came again");
}

#[test]
fn with_little_memory_partitions_are_read_in_turns_and_one_that_is_halted_keeps_none_waiting() {
    let world = World::new("turns");
    let (partitions, records) = (16, 500);
    let products = world.topic("products", partitions);
    for partition in 0..partitions {
        let text = "x".repeat(200);
        let record = |number| value(format!("{{\"of\":{partition},\"number\":{number},\"text\":\"{text}\"}}"));
        world.kafka.produce(&products, (0..records).map(|number| record(number).to(partition)));
    }
    // Memory for two at once. Two halt at their first record, and each batch takes a while.
    let fails = "case $KSYNC_BATCH_PARTITION in 3|7) exit 1;; esac; sleep 0.1";
    let handler = world.handler(fails);
    let options = format!(
        "-v -t {products} -n indexer --session-timeout 10s --memory 1MiB -j 16 --isolate-after 1 --retry-pause-max 1s"
    );
    let mut consumer = world.consume(&format!("{options} -- {handler}"));
    let is_done = |partition| world.seat(&products, partition, "indexer").offset() == Some(records);
    world.within(Duration::from_secs(240), "all are done but the halted ones", || {
        (0..partitions).all(|partition| [3, 7].contains(&partition) || is_done(partition))
    });
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    let mut done: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for payload in handler.payloads() {
        let payload: serde_json::Value = serde_json::from_str(&payload).unwrap();
        done.entry(payload["of"].as_u64().unwrap()).or_default().push(payload["number"].as_u64().unwrap());
    }
    let all: Vec<u64> = (0..500).collect();
    assert!(done.len() == 14 && done.values().all(|numbers| *numbers == all), "once each, in their order");
    let turns = consumer.log_of("debug").iter().filter(|line| line.contains(": others are read instead")).count();
    assert!(turns >= 10, "{turns} turns");
}

#[test]
fn a_steady_flow_through_many_partitions_needs_no_turns_however_little_memory_there_is() {
    let world = World::new("steady");
    let partitions = 16;
    let products = world.topic("products", partitions);
    let flow = |number| {
        let record = |partition| value(format!("{{\"id\":{number}}}")).to(partition);
        world.kafka.produce(&products, (0..partitions).map(record));
    };
    let options = format!("-v -t {products} -n indexer --memory 1MiB --batch-wait 1ms --worker");
    let handler = world.worker("");
    let consumer = world.consume(&format!("{options} -- {handler}"));
    let all_at =
        |offset| (0..partitions).all(|partition| world.seat(&products, partition, "indexer").offset() == Some(offset));
    flow(0);
    world.eventually("all are read to their end", || all_at(1));
    let turns = || consumer.log_of("debug").iter().filter(|line| line.contains(": others are read instead")).count();
    let before = turns();
    (1..30).for_each(flow);
    world.eventually("all is done", || all_at(30));
    assert_eq!(turns(), before);
}
