//! Rights to nodes of ZooKeeper that are taken away while a process leads, and given back.

use rustix::process::Signal;
use zookeeper::{Acl, AuthId, Permission};

use crate::consume::ids;
use crate::support::{End, Seat, World, block_on};

/// From now on anyone may do this with a node, and change that again.
fn allow(seat: &Seat, node: &str, permission: Permission) {
    let acl = [Acl::new(permission | Permission::ADMIN, AuthId::anyone())];
    block_on(seat.client.set_acl(&seat.path(node), &acl, None)).unwrap();
}

#[test]
fn without_the_right_to_the_offset_nothing_is_committed_and_the_batch_comes_again_once_it_is_back() {
    let world = World::new("offset-right");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let consume = || world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let mut consumer = consume();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the handler runs", || handler.runs().len() == 1);
    let before = seat.node("offset").unwrap().1.version;
    allow(&seat, "offset", Permission::READ);
    gate.open();
    assert_eq!(consumer.wait(), End::Status(78));
    let told = ["warn: ", "no longer leading: ZooKeeper refuses the write: ", "/offset: not authorized"];
    assert!(consumer.says(&told), "{:?}", consumer.log());
    let errors = consumer.log_of("error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with(&format!("cannot queue for {products}/0 as indexer: ")), "{errors:?}");
    assert!(errors[0].contains("not authorized"), "{errors:?}");
    let after = (seat.node("offset").unwrap().1.version, seat.candidates(), handler.payloads().len());
    assert_eq!(after, (before, vec![], 2));
    assert_eq!(consume().wait(), End::Status(78));
    assert_eq!(handler.payloads().len(), 2);

    allow(&seat, "offset", Permission::ALL);
    let _next = consume();
    world.eventually("all is done", || seat.offset() == Some(2));
    assert_eq!(handler.payloads(), [r#"{"id":1}"#, r#"{"id":2}"#].repeat(2));
}

#[test]
fn without_the_right_to_its_candidate_a_leader_ends_its_handler_and_leads_by_another_one() {
    let world = World::new("candidate-right");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=1));
    let gate = world.gate();
    // The first run is held up, the next one is not.
    let handler = world.handler(&format!(r#"[ "$(grep -c ^begun "$runs/journal")" -gt 1 ] || await {gate}"#));
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the handler runs", || handler.runs().len() == 1);
    let candidate = seat.candidates().remove(0);
    let before = seat.node("offset").unwrap().1.version;
    allow(&seat, &format!("leader/{candidate}"), Permission::READ);
    world.eventually("another run has done it", || seat.offset() == Some(1));
    let node = format!("/leader/{candidate}: not authorized");
    let told = ["warn: ", "no longer leading: ZooKeeper refuses the write: ", &node];
    world.eventually("it is told", || consumer.says(&told));
    assert_eq!((handler.runs().len(), seat.candidates().len()), (2, 1));
    assert_ne!(seat.candidates(), [candidate]);
    // The take-over and one commit.
    assert_eq!(seat.node("offset").unwrap().1.version, before + 2);
    world.eventually("only ksync is left", || world.processes() == 1);
}

#[test]
fn without_the_right_to_the_queue_the_leader_goes_on_and_others_are_told() {
    let world = World::new("queue-right");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consume = || world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let mut leader = consume();
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let candidate = seat.candidates().remove(0);
    allow(&seat, "leader", Permission::READ);
    world.kafka.produce(&products, ids(1..=2));
    world.eventually("it goes on", || seat.offset() == Some(2));
    let mut other = consume();
    assert_eq!(other.wait(), End::Status(78));
    let told = format!("cannot queue for {products}/0 as indexer: ZooKeeper refuses it: not authorized");
    assert_eq!(other.log_of("error"), [told]);
    assert_eq!(leader.log_of("warn"), Vec::<String>::new());

    leader.signal(Signal::TERM);
    assert_eq!((leader.wait(), seat.candidates()), (End::Status(0), vec![]));
    let why = format!("/leader/{candidate}: not authorized");
    assert!(leader.says(&["warn: ", "cannot delete /", &why]), "{:?}", leader.log());
    allow(&seat, "leader", Permission::ALL);
    let _next = consume();
    world.kafka.produce(&products, ids(3..=3));
    world.eventually("the next one leads", || seat.offset() == Some(3));
    assert_eq!(handler.payloads(), [1, 2, 3].map(|id| format!("{{\"id\":{id}}}")));
}
