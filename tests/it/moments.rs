//! Deaths and pauses at chosen moments: at any system call, on the way to leadership, right before a commit.

use std::fs;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{CALLS, Call, common_calls, kill_at_each, traced};
use crate::support::{End, Handler, Mode, Process, Proxy, World, all_reigns, block_on, is_full};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");
const RECORDS: u32 = 6;
const BATCH: u32 = 3;

/// By which a handler is begun.
const START: &str = "vfork,clone,clone3";

/// Where it dies within its two batches: strace comes while the handler of the batch with this first offset is held up,
/// and counts from then on. It does so for each call and each thread, and so a first one comes in each run, whoever
/// makes it; the later ones do, too, since there are more of them than threads that make them.
///
/// Where any call will do, the handler is held up for good.
const AIMED: [(u32, &str, usize); 13] = [
    (0, CALLS, 1),
    // The handler's end is heard of, and what is left of it is killed.
    (0, "sendto", 1),
    (0, "kill", 1),
    // The commit, beside which the next handler is begun; that one is given its batch, and ends.
    (0, "writev", 1),
    (0, START, 1),
    (0, "write", 2),
    (0, "write", 4),
    (0, "writev", 2),
    // The same of the second batch, after whose commit the seat is left.
    (BATCH, CALLS, 1),
    (BATCH, "sendto", 1),
    (BATCH, "kill", 1),
    (BATCH, "writev", 1),
    (BATCH, "writev", 2),
];

/// One that was killed, and what its handler had been given and had done by then.
struct Killed {
    moment: String,
    name: String,
    handler: Handler,
    begun: usize,
    done: Vec<String>,
}

impl Killed {
    fn new(moment: String, name: String, handler: Handler) -> Killed {
        let begun = handler.runs().last().map_or(0, |run| run.first as usize);
        Killed { moment, name, begun, done: handler.payloads(), handler }
    }

    /// The next one leads from an offset that passes nothing undone and all before the batch that was begun last, and
    /// does the rest in its order. Gives that offset, and how many records were done.
    fn is_followed_by(&self, world: &World, topic: &str, mut next: Process) -> (usize, usize) {
        assert_eq!(next.wait(), End::Status(0), "{}: {:?}", self.moment, next.log());
        let lines = next.log_of("info");
        let led =
            lines.iter().find_map(|line| line.split_once("leading from offset ")?.1.split(',').next()?.parse().ok());
        let from: usize = led.expect("it says from where it leads");
        let all: Vec<_> = (0..RECORDS).map(|id| format!("{{\"id\":{id}}}")).collect();
        assert!(from <= self.done.len(), "{}: at {from}, but done is {:?}", self.moment, self.done);
        assert!(from >= self.begun, "{}: at {from}, but {} was begun", self.moment, self.begun);
        assert_eq!(self.done, all[..self.done.len()], "{}", self.moment);
        assert_eq!(self.handler.payloads()[self.done.len()..], all[from..], "{}", self.moment);
        assert_eq!(world.seat(topic, 0, &self.name).offset(), Some(i64::from(RECORDS)), "{}", self.moment);
        (from, self.done.len())
    }
}

/// From where those lead that come after them, and how many records were done.
fn followed(world: &World, topic: &str, killed: &[Killed]) -> Vec<(usize, usize)> {
    let next = killed.iter().map(|Killed { name, handler, .. }| {
        world.consume(&format!("-t {topic} -n {name} -e --session-timeout 30s -- {handler}"))
    });
    let next: Vec<_> = next.collect();
    killed.iter().zip(next).map(|(killed, next)| killed.is_followed_by(world, topic, next)).collect()
}

/// Kills at [`AIMED`], all at the same time. Gives the names under which they led.
fn within_batches(world: &World, topic: &str) -> Vec<String> {
    // So none ends on a busy machine, and hardly any sends what keeps it alive where its commit is looked for.
    let options = format!("-t {topic} -e --session-timeout 30s --batch-size {BATCH}");
    let start = |(index, (first, ..)): (usize, &(u32, &str, usize))| {
        let (name, gate) = (format!("aimed-{index}"), world.gate());
        let handler = world.handler(&format!("[ $KSYNC_BATCH_FIRST_OFFSET -ne {first} ] || await {gate}"));
        (world.consume(&format!("{options} -n {name} -- {handler}")), name, handler, gate)
    };
    let mut victims: Vec<_> = AIMED.iter().enumerate().map(start).collect();
    let mut traces = vec![];
    for ((victim, _, handler, gate), (first, calls, number)) in victims.iter().zip(AIMED) {
        world.eventually("it is at the batch", || handler.runs().iter().any(|run| run.first == i64::from(first)));
        let inject = format!("-e inject={calls}:signal=KILL:when={number}");
        let options = format!("-f -b execve -o /dev/null -e trace={calls} -e signal=none {inject}");
        let trace = world.start("strace", &format!("{options} -p {}", victim.pid), &[]);
        world.eventually("strace follows it", || trace.says(&[&format!("Process {} attached", victim.pid)]));
        if calls != CALLS {
            gate.open();
        }
        traces.push(trace);
    }
    for ((victim, ..), moment) in victims.iter_mut().zip(AIMED) {
        assert_eq!(victim.wait(), End::By(Signal::KILL), "{moment:?}: {:?}", victim.log());
    }
    world.eventually("no process is left", || world.processes() == 0);
    let mut killed = vec![];
    for ((_, name, handler, gate), moment) in victims.into_iter().zip(AIMED) {
        gate.open();
        // Nobody has to wait for the end of the session.
        let seat = world.seat(topic, 0, &name);
        seat.candidates().iter().for_each(|candidate| seat.delete(&format!("leader/{candidate}")));
        killed.push(Killed::new(format!("{moment:?}"), name, handler));
    }
    let stages = followed(world, topic, &killed);
    let (batch, all) = (BATCH as usize, RECORDS as usize);
    for stage in [(0, 0), (0, batch), (batch, batch), (batch, all)] {
        assert!(stages.contains(&stage), "none died at {stage:?}: {stages:?}");
    }
    killed.into_iter().map(|killed| killed.name).collect()
}

fn consume_traced(world: &World, options: &str, (topic, name, handler): (&str, &str, &Handler)) -> Process {
    let consume = format!("{CONSUME} -t {topic} -n {name} -e --session-timeout 1s --batch-size {BATCH} -- {handler}");
    traced(world, options, &consume)
}

/// The calls that runs have in common which nothing disturbs.
fn calls(world: &World, topic: &str) -> Vec<Call> {
    let files = ["whole-1", "whole-2", "whole-3"].map(|name| {
        let (file, handler) = (world.file("calls"), world.handler(""));
        let mut whole = consume_traced(world, &format!("-o {}", file.display()), (topic, name, &handler));
        assert_eq!(whole.wait(), End::Status(0), "{:?}", whole.log());
        file
    });
    common_calls(&files)
}

/// Kills at each call of a whole run, its start and its end among them. Gives the names under which they led.
fn anywhere(world: &World, topic: &str) -> Vec<String> {
    let (calls, mut names) = (calls(world, topic), vec![]);
    assert!(calls.len() > 50, "{calls:?}");
    kill_at_each(calls, |calls| {
        let (mut killed, mut missed) = (vec![], vec![]);
        for (call, number) in calls {
            let (name, handler) = (format!("at-{}", names.len()), world.handler("sleep 0.05"));
            let inject = format!("-o /dev/null -e inject={call}:signal=KILL:when={number}");
            let mut first = consume_traced(world, &inject, (topic, &name, &handler));
            let end = first.wait();
            if end != End::By(Signal::KILL) {
                assert_eq!(end, End::Status(0), "{:?}", first.log());
                missed.push((call.clone(), *number));
            }
            world.eventually("no process is left", || world.processes() == 0);
            names.push(name.clone());
            killed.push(Killed::new(format!("{call} {number}"), name, handler));
        }
        followed(world, topic, &killed);
        missed
    });
    names
}

#[test]
fn a_sigkill_at_any_system_call_of_a_batch_loses_nothing_and_leaves_no_handler() {
    let (world, since) = (World::new("calls"), SystemTime::now());
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..RECORDS));
    let mut names = within_batches(&world, &products);
    if is_full() {
        names.extend(anywhere(&world, &products));
    }
    // Each commit was the leader's of its moment, and none goes back.
    let seats: Vec<_> = names.iter().map(|name| world.seat(&products, 0, name)).collect();
    for reigns in all_reigns(&world.services, since, &seats) {
        assert_eq!(reigns.last().and_then(|reign| reign.offsets.last().copied()), Some(i64::from(RECORDS)));
    }
}

/// Long enough that no candidate goes before all are there.
const SESSION: Duration = Duration::from_secs(10);
/// How many requests come after the one that makes the candidate, until a process leads: it looks at the queue, watches its
/// own node, reads what is stored, and takes over.
const ALONE: usize = 5;
/// The same until one waits for the one ahead: it looks at the queue, then at that node, which it watches then.
const BEHIND: usize = 3;

#[test]
fn a_sigkill_on_the_way_to_leadership_holds_up_nobody_for_longer_than_the_session() {
    let world = World::new("candidates");
    let cases: Vec<usize> = (0..=ALONE).chain(0..=BEHIND).collect();
    let products = world.topic("products", cases.len() as i32);
    world.kafka.produce(&products, (0..cases.len() as i32).flat_map(|p| ids(0..1).map(move |message| message.to(p))));
    let seats: Vec<_> = (0..cases.len() as i32).map(|p| world.seat(&products, p, "indexer")).collect();
    // Then the candidate's making succeeds at once.
    seats.iter().for_each(|seat| seat.write("offset", "0"));
    let (held_up, quick) = (world.handler(&format!("await {}", world.gate())), world.handler(""));
    let options = format!("-t {products} -n indexer --session-timeout {}s -j 16", SESSION.as_secs());
    let behind = (ALONE + 1..cases.len()).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    let mut ahead = world.consume(&format!("{options} -p {behind} -- {held_up}"));
    world.eventually("one leads where the others come to be behind it", || held_up.runs().len() == BEHIND + 1);

    let proxies: Vec<_> = cases.iter().map(|_| block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")))).collect();
    let mut victims = vec![];
    for (partition, (further, proxy)) in cases.iter().zip(&proxies).enumerate() {
        proxy.set(Mode::DeafAfter("/leader/", *further));
        let way = format!("--zookeeper {}/{}", proxy.address, world.id);
        victims.push(world.consume(&format!("{options} {way} -p {partition} -- {held_up}")));
    }
    let queues = |more: usize| {
        let lengths = seats.iter().map(|seat| seat.candidates().len()).collect::<Vec<_>>();
        lengths.iter().enumerate().all(|(p, length)| *length == usize::from(p > ALONE) + more)
    };
    world.eventually("all hear nothing any more", || proxies.iter().all(|proxy| proxy.is(Mode::Deaf)) && queues(1));
    let next = world.consume(&format!("{options} -- {quick}"));
    world.eventually("the next one queues behind all", || queues(2));
    victims.iter_mut().for_each(Process::kill);
    ahead.kill();
    let limit = SESSION + Duration::from_secs(if is_full() { 2 } else { 8 });
    world.within(limit, "the next one leads all", || {
        (0..cases.len()).all(|p| next.says(&[&format!("{products}/{p} as indexer: leading from offset 0")]))
    });
    world.eventually("all is done", || seats.iter().all(|seat| seat.offset() == Some(1)));
    assert_eq!(held_up.runs().len(), BEHIND + 1, "no victim has led");
}

/// Whether a process stands still.
fn is_stopped(process: &Process) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('T')
}

#[test]
fn a_leader_stopped_between_the_end_of_its_handler_and_its_commit_commits_nothing_when_it_wakes() {
    let world = World::new("before-commit");
    // Of the first two the session ends meanwhile; the others keep it, and lose their candidate alone.
    let sessions = ["10s", "10s", "30s", "30s"];
    let products = world.topic("products", sessions.len() as i32);
    let produce = |ids: std::ops::Range<u32>| {
        let partitions = 0..sessions.len() as i32;
        world
            .kafka
            .produce(&products, partitions.flat_map(|p| self::ids(ids.clone()).map(move |message| message.to(p))));
    };
    produce(0..5);
    let (gate, quick) = (world.gate(), world.handler(""));
    // The last that it does, once it has ended well.
    let stopping = world.handler(&format!("trap 'kill -STOP $PPID' EXIT; await {gate}"));
    let start = |p: usize, session: &str| {
        world.consume(&format!("-t {products} -p {p} -n indexer --session-timeout {session} -- {stopping}"))
    };
    let mut first: Vec<_> = sessions.iter().enumerate().map(|(p, session)| start(p, session)).collect();
    let seats: Vec<_> = (0..sessions.len() as i32).map(|p| world.seat(&products, p, "indexer")).collect();
    world.eventually("all are at work", || stopping.runs().len() == sessions.len());
    let second = world.consume(&format!("-t {products} -n indexer --session-timeout 10s -- {quick}"));
    world.eventually("the other one queues everywhere", || seats.iter().all(|seat| seat.candidates().len() == 2));
    let candidates: Vec<_> = seats.iter().map(|seat| seat.candidates().remove(0)).collect();

    gate.open();
    world.eventually("all stand still, their handlers have ended well", || first.iter().all(is_stopped));
    assert_eq!(stopping.payloads().len(), 5 * sessions.len());
    for (seat, candidate) in seats.iter().zip(&candidates).skip(2) {
        seat.delete(&format!("leader/{candidate}"));
    }
    produce(5..10);
    world.within(Duration::from_secs(20), "the other one has done all, within two session timeouts", || {
        seats.iter().all(|seat| seat.offset() == Some(10))
    });
    let versions = || seats.iter().map(|seat| seat.node("offset").unwrap().1.version).collect::<Vec<_>>();
    let before = versions();
    first.iter().for_each(|process| process.signal(Signal::CONT));
    world.eventually("they queue again", || seats.iter().all(|seat| seat.candidates().len() == 2));
    world.eventually("it is told", || first.iter().all(|process| process.says(&["no longer leading: "])));
    assert_eq!((versions(), stopping.runs().len()), (before, sessions.len()), "nothing was committed, nothing begun");
    for mut process in first.drain(..).chain([second]) {
        process.signal(Signal::TERM);
        assert_eq!(process.wait(), End::Status(0));
    }
}

#[test]
fn a_commit_that_was_on_its_way_while_another_one_came_to_lead_is_refused() {
    let world = World::new("held-up");
    let products = world.topic("products", 1);
    let (first_handler, second_handler) = (world.handler(""), world.handler(""));
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    // Its session lives on, so that nothing but the fence refuses what comes late.
    let way = format!("--zookeeper {}/{} --session-timeout 30s", proxy.address, world.id);
    let first =
        world.consume(&format!("-t {products} -n indexer {way} --batch-size 5 --batch-wait 10s -- {first_handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let second = world.consume(&format!("-t {products} -n indexer -- {second_handler}"));
    world.eventually("the other one queues", || seat.candidates().len() == 2);
    proxy.set(Mode::FrozenAt("\"offset\":5,"));
    world.kafka.produce(&products, ids(0..5));
    world.eventually("its commit is on its way", || proxy.is(Mode::Frozen));
    assert_eq!((first_handler.payloads().len(), seat.offset()), (5, Some(0)));
    seat.delete(&format!("leader/{}", seat.candidates()[0]));
    world.kafka.produce(&products, ids(5..10));
    world.eventually("the other one has done all", || seat.offset() == Some(10));
    let before = seat.node("offset").unwrap().1.version;
    proxy.set(Mode::Open);
    world.eventually("it is refused", || first.says(&["no longer leading: "]));
    assert_eq!((seat.offset(), seat.node("offset").unwrap().1.version), (Some(10), before));
    world.eventually("it queues again", || seat.candidates().len() == 2);
    assert_eq!((first_handler.runs().len(), second_handler.payloads().len()), (1, 10));
    drop(second);
}
