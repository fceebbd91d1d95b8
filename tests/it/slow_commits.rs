//! What ksync-delayer does while a commit is under way, and once its lease is over.

use std::time::Duration;

use rustix::process::Signal;

use crate::delayer::{delay_message, now};
use crate::support::{Mode, Process, Proxy, World, block_on};

/// A delayer of a new topic that leads, whose first commit is on its way for as long as the proxy to ZooKeeper is not opened; the
/// topic.
fn held_up(world: &World, delay: &str) -> (Process, Proxy, String) {
    let products = world.topic_with_delay("products", 1);
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let way = format!("--zookeeper {}/{} --session-timeout 10s", proxy.address, world.id);
    let delayer = world.delayer(&format!("-t {products} --delay {delay} {way}"));
    world.eventually("it leads", || delayer.says(&["leading from offset 0"]));
    proxy.set(Mode::FrozenAt("\"offset\":"));
    (delayer, proxy, products)
}

#[test]
fn a_commit_that_takes_long_makes_no_message_late() {
    let world = World::new("slow-commit");
    let (_delayer, proxy, products) = held_up(&world, "2s");
    let delay_topic = format!("{products}-delay");
    world.kafka.produce(&delay_topic, [delay_message("1", now())]);
    // So long that the first one's commit is under way when this one is due, and its lease still lasts for 3 s.
    world.for_a_while(Duration::from_millis(400), "time passes", || true);
    world.kafka.produce(&delay_topic, [delay_message("2", now())]);
    world.eventually("its commit is on its way", || proxy.is(Mode::Frozen));
    world.eventually("the next one is sent on all the same", || world.kafka.count(&products) == 2);
    let seat = world.seat(&delay_topic, 0, "delayer");
    assert_eq!(seat.offset(), Some(0));
    proxy.set(Mode::Open);
    world.eventually("both are committed", || seat.offset() == Some(2));
    assert_eq!(world.kafka.count(&products), 2);
}

#[test]
fn what_is_sent_on_while_a_commit_takes_long_is_bounded() {
    const MESSAGES: i64 = 150_000;
    let world = World::new("held-commit");
    let (delayer, proxy, products) = held_up(&world, "1s");
    let delay_topic = format!("{products}-delay");
    world.kafka.produce(&delay_topic, [delay_message("0", now())]);
    world.for_a_while(Duration::from_millis(400), "time passes", || true);
    world.kafka.produce(&delay_topic, (1..MESSAGES).map(|id| delay_message(&id.to_string(), now())));
    world.eventually("its lease is over", || delayer.says(&["no longer leading: "]));
    // The first one, and those that the next leader may send again.
    let sent = world.kafka.count(&products);
    assert!((1..=1 + (1 << 16)).contains(&sent), "{sent} were sent on");
    proxy.set(Mode::Open);
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("all are sent on", || seat.offset() == Some(MESSAGES));
}

#[test]
fn a_delayer_that_may_not_lead_any_more_sends_on_nothing_that_becomes_due() {
    const MESSAGES: i64 = 100;
    let world = World::new("lease-over");
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let topics = ["silent", "stopped"].map(|name| world.topic_with_delay(name, 1));
    let [of_silent, of_stopped] = topics.each_ref().map(|topic| world.seat(&format!("{topic}-delay"), 0, "delayer"));
    let start = |topic: &str, way: &str| world.delayer(&format!("-t {topic} --delay 20s --session-timeout 10s {way}"));
    let silent = start(&topics[0], &format!("--zookeeper {}/{}", proxy.address, world.id));
    let stopped = start(&topics[1], "");
    let both = [&silent, &stopped];
    world.eventually("both lead", || both.iter().all(|delayer| delayer.says(&["leading from offset 0"])));
    let _next = start(&topics[1], "");
    world.eventually("another one queues", || of_stopped.candidates().len() == 2);
    for topic in &topics {
        let messages = (0..MESSAGES).map(|id| delay_message(&id.to_string(), now()));
        world.kafka.produce(&format!("{topic}-delay"), messages);
    }
    world.eventually("both hold them back", || {
        both.iter().all(|delayer| {
            delayer.ask();
            delayer.says(&["the message at offset 0 is due in "])
        })
    });
    proxy.set(Mode::Frozen);
    stopped.signal(Signal::STOP);
    world.eventually("the lease of one is over", || silent.says(&["no longer leading: "]));
    // Those of the other topic, too, have become due by then.
    world.eventually("all are sent on in the place of the other", || of_stopped.offset() == Some(MESSAGES));
    stopped.signal(Signal::CONT);
    world.eventually("that one queues again", || {
        stopped.says(&["no longer leading: "]) && of_stopped.candidates().len() == 2
    });
    world.for_a_while(Duration::from_secs(2), "nothing is sent on", || world.kafka.count(&topics[0]) == 0);
    proxy.set(Mode::Open);
    world.eventually("then they are sent on", || of_silent.offset() == Some(MESSAGES));
    for topic in &topics {
        let sent: Vec<_> = world.kafka.records(topic).into_iter().filter_map(|record| record.value).collect();
        assert_eq!(sent, (0..MESSAGES).map(|id| id.to_string()).collect::<Vec<_>>(), "{topic}");
    }
}
