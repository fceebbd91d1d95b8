//! ZooKeeper goes on without the server that our leader is connected to, while that one answers pings and reads as before.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::election::assert_between;
use crate::support::{End, Handler, Quorum, Seat, World, is_full};

/// The session timeout.
const T: Duration = Duration::from_secs(20);

#[test]
fn a_leader_at_a_follower_that_is_cut_off_ends_its_handler_before_another_one_leads() {
    the_handler_of_a_leader_that_is_cut_off_ends_before_another_one_leads("cut-off-follower", 2);
}

#[test]
fn a_leader_at_the_leader_of_zookeeper_that_is_cut_off_ends_its_handler_before_another_one_leads() {
    the_handler_of_a_leader_that_is_cut_off_ends_before_another_one_leads("cut-off-leader", 3);
}

/// The first process is connected to the third server alone, and the second one to the first.
fn the_handler_of_a_leader_that_is_cut_off_ends_before_another_one_leads(test: &str, leader: usize) {
    let world = World::new(test);
    let quorum = Quorum::led_by(leader, &world);
    let products = world.topic("products", 2);
    let write = |ids: Range<u32>| {
        let messages = (0..2).flat_map(|p| self::ids(ids.clone()).map(move |message| message.to(p)));
        world.kafka.produce(&products, messages);
    };
    let (beats, begun, gate) = (world.file("beats"), world.file("begun"), world.gate());
    // One run goes on until it is killed; the other one comes to its end right behind the cut, and could be committed.
    let beat = format!("trap '' TERM; while :; do {}; sleep 0.02; done", note_time(&beats));
    let slow = world.handler(&format!("if [ $KSYNC_BATCH_PARTITION = 0 ]; then {beat}; fi; await {gate}"));
    let quick = world.handler(&note_time(&begun));
    let consume = |server: usize, handler: &Handler| {
        let zookeeper = format!("--zookeeper {}/{} --session-timeout 20s", quorum.addresses[server - 1], world.id);
        world.consume(&format!("-t {products} -n indexer {zookeeper} -j 2 -- {handler}"))
    };
    let seats_at = |server: usize| {
        let client = Seat::connect(&quorum.addresses[server - 1]);
        [0, 1].map(|p| Seat { client: client.clone(), ..world.seat(&products, p, "indexer") })
    };
    write(0..5);
    let first = consume(3, &slow);
    world.eventually("both of its handlers run", || slow.runs().len() == 2 && !times(&beats).is_empty());
    let second = consume(1, &quick);
    let stale = seats_at(3);
    world.eventually("two queue", || queues(&stale).iter().all(|queue| queue.len() == 2));
    let before = (queues(&stale), offsets(&stale), quorum.role(3));

    quorum.cut_off();
    let cut = now();
    gate.open();
    world.eventually("one run comes to its end", || slow.runs().iter().any(|run| run.done.is_some()));
    world.eventually("the other process is at work", || !times(&begun).is_empty());
    // The first one could find there that it still leads.
    assert_eq!((queues(&stale), offsets(&stale), quorum.role(3)), before);
    let last_beat = *times(&beats).last().unwrap();
    // Half of the session timeout, and what a busy machine takes; nobody else leads before seven tenths.
    let latest = if is_full() { T / 2 + Duration::from_millis(500) } else { T * 7 / 10 };
    let bounds = [T * 2 / 10, latest].map(|bound| bound.as_secs_f64());
    assert_between(last_beat - cut, bounds[0], bounds[1]);
    let first_run = times(&begun)[0];
    assert!(last_beat < first_run, "at work until {last_beat}, but another one has begun at {first_run}");

    // What was not committed may still arrive when the cut is healed: then it lies far back.
    write(5..10);
    let (seats, mut highest) = (seats_at(1), [Some(0); 2]);
    world.eventually("all is done", || {
        let reached = offsets(&seats);
        assert!((0..2).all(|p| highest[p] <= reached[p]), "{reached:?} after {highest:?}");
        highest = reached;
        reached == [Some(10); 2]
    });
    let (alone, committed) = (queues(&seats), versions(&seats));
    quorum.heal();
    world.eventually("the first one queues again, behind the other", || {
        let queues = queues(&seats);
        queues.iter().zip(&alone).all(|(queue, alone)| queue.len() == 2 && queue[0] == alone[0])
    });
    assert_eq!((offsets(&seats), versions(&seats)), ([Some(10); 2], committed));
    assert_eq!((slow.runs().len(), times(&beats).last()), (2, Some(&last_beat)));
    let mut done: Vec<_> = quick.runs().iter().flat_map(|run| run.offsets()).collect();
    done.sort_unstable();
    assert_eq!(done, (0..10).flat_map(|offset| [offset; 2]).collect::<Vec<_>>());
    let terms = |handler: &Handler| handler.runs().iter().map(|run| run.term).collect::<Vec<_>>();
    assert!(terms(&slow).iter().max() < terms(&quick).iter().min());
    assert!(first.says(&["no longer leading: "]) && !second.says(&["no longer leading"]), "{:?}", second.log());
    for mut consumer in [first, second] {
        assert!(consumer.is_running(), "{:?}", consumer.log());
        consumer.signal(Signal::TERM);
        assert_eq!(consumer.wait(), End::Status(0));
    }
}

fn queues(seats: &[Seat; 2]) -> [Vec<String>; 2] {
    seats.each_ref().map(Seat::candidates)
}

fn offsets(seats: &[Seat; 2]) -> [Option<i64>; 2] {
    seats.each_ref().map(Seat::offset)
}

/// How often each offset was written.
fn versions(seats: &[Seat; 2]) -> [i32; 2] {
    seats.each_ref().map(|seat| seat.node("offset").unwrap().1.version)
}

/// What a handler notes the time by: in seconds, on the clock of [`now`].
fn note_time(file: &Path) -> String {
    format!("read -r now idle < /proc/uptime; echo $now >> {}", file.display())
}

fn times(file: &Path) -> Vec<f64> {
    let noted = fs::read_to_string(file).unwrap_or_default();
    noted.lines().map(|time| time.parse().unwrap()).collect()
}

fn now() -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    uptime.split(' ').next().unwrap().parse().unwrap()
}
