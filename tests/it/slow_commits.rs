//! What ksync-delayer does while a commit is under way.

use std::time::Duration;

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
