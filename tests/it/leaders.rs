//! Leaders of Kafka's partitions that end, die, stand still or are moved while messages flow.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Flow, MISSED, STALL, World, is_full};

#[test]
fn leaders_that_move_while_messages_flow_lose_none_and_send_none_twice() {
    let world = World::alone_with("moving", 3);
    let flow = Flow::start(&world, &[&[1, 2, 3], &[2, 3, 1]]);
    let first = world.services.pid("kafka-1");
    flow.goes_on();
    // Its leaders are handed over first.
    world.end_broker(first, Signal::TERM);
    flow.goes_on();
    let mut again = None;
    if is_full() {
        again = Some(world.start_broker("kafka-1", ""));
        let [products, delay_topic] = &flow.topics;
        world.leads(delay_topic, 1, (2, &[1, 2, 3]));
        // The preferred leader of the first partitions is back, and they are moved to it.
        let server = world.services.get("KSYNC_BOOTSTRAP_SERVER");
        let tool = format!("kafka-leader-election.sh --bootstrap-server {server}");
        world.shell(&format!("{tool} --election-type preferred --all-topic-partitions"));
        world.leads(products, 0, (1, &[1, 2, 3]));
        flow.goes_on();
    }
    flow.end(STALL);
    drop(again);
}

#[test]
fn leaders_that_are_killed_one_after_the_other_while_messages_flow_lose_none_and_send_none_twice() {
    let world = World::alone_with("killed", 3);
    let flow = Flow::start(&world, &[&[1, 2, 3], &[2, 3, 1]]);
    let mut pids = [1, 2, 3].map(|broker| world.services.pid(&format!("kafka-{broker}")));
    let (mut again, mut leaderless, rounds) = (vec![], Duration::ZERO, if is_full() { 5 } else { 1 });
    flow.goes_on();
    for round in 1..=rounds {
        let leader = world.kafka.leader(&flow.topics[1], 0).0;
        world.end_broker(pids[leader as usize - 1], Signal::KILL);
        // Kafka's own part: the controller, which may be killed with it, has to be another one, and to miss the leader.
        let is_led = |topic: &String, partition| {
            let next = world.kafka.leader(topic, partition).0;
            next > 0 && next != leader
        };
        let time = world.within(Duration::from_secs(60), "others lead", || {
            flow.topics.iter().all(|topic| is_led(topic, 0) && is_led(topic, 1))
        });
        leaderless = leaderless.max(time);
        flow.goes_on();
        if round == rounds {
            break;
        }
        let broker = world.start_broker(&format!("kafka-{leader}"), "");
        pids[leader as usize - 1] = Pid::from_raw(broker.pid).unwrap();
        again.push(broker);
        for (topic, partition) in flow.topics.iter().flat_map(|topic| [(topic, 0), (topic, 1)]) {
            world.eventually("all are in sync", || world.kafka.leader(topic, partition).1.len() == 3);
        }
    }
    flow.end(leaderless + STALL);
}

#[test]
fn a_leader_that_stands_still_while_messages_flow_loses_none_and_has_none_sent_twice() {
    // Without an answer it is asked who leads each half a minute (`topic.metadata.refresh.interval.ms`), if not sooner.
    let (time, stall) = match is_full() {
        true => (Duration::from_secs(60), MISSED + Duration::from_secs(30) + STALL),
        // It is not missed.
        false => (Duration::from_secs(3), STALL),
    };
    let world = World::alone_with("still", 3);
    let flow = Flow::start(&world, &[&[1, 2, 3], &[2, 3, 1]]);
    let first = world.services.pid("kafka-1");
    flow.goes_on();
    kill_process(first, Signal::STOP).unwrap();
    let begun = Instant::now();
    if is_full() {
        flow.goes_on();
    }
    world.for_a_while(time.saturating_sub(begun.elapsed()), "it stands still", || true);
    kill_process(first, Signal::CONT).unwrap();
    flow.goes_on();
    flow.end(stall);
}

#[test]
fn partitions_that_are_moved_to_other_brokers_while_messages_flow_lose_none_and_send_none_twice() {
    let world = World::alone_with("reassigned", 3);
    let flow = Flow::start(&world, &[&[1, 2], &[2, 3]]);
    flow.goes_on();
    let moves: [[&[i32]; 2]; 3] = [[&[2, 3], &[3, 1]], [&[3, 1], &[1, 2]], [&[1, 2], &[2, 3]]];
    for brokers in moves.iter().take(if is_full() { 3 } else { 1 }) {
        // Each leader is left without its partition.
        flow.move_to(brokers);
        flow.goes_on();
    }
    flow.end(STALL);
}
