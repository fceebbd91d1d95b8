//! Brokers that refuse, hold back or take away: transactions, too few replicas, messages that became too large.

use std::time::Duration;

use crate::support::{End, World, value};

#[test]
fn records_of_an_aborted_transaction_are_not_given_and_the_offset_passes_its_marker() {
    let world = World::new("aborted");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    world.kafka.transaction(&products, [value("1"), value("2")]).abort();
    world.kafka.transaction(&products, [value("3"), value("4")]).commit();
    world.kafka.produce(&products, [value("5")]);
    world.kafka.transaction(&products, [value("6")]).abort();
    let seat = world.seat(&products, 0, "indexer");
    for _ in 0..2 {
        // Six records and three markers; the second time there is nothing to do.
        assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
        assert_eq!((seat.offset(), handler.payloads()), (Some(9), ["3", "4", "5"].map(str::to_owned).to_vec()));
    }
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.kafka.transaction(&products, [value("7")]).abort();
    world.eventually("nothing is left to be read", || seat.offset() == Some(11));
    world.kafka.produce(&products, [value("8")]);
    world.eventually("the next one is done", || seat.offset() == Some(12));
    assert_eq!((handler.payloads().last().unwrap().as_str(), consumer.log_of("warn")), ("8", vec![]));
}

#[test]
fn an_open_transaction_holds_back_what_follows_it_and_nothing_is_skipped() {
    let world = World::new("open");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    world.kafka.produce(&products, [value("1")]);
    let open = world.kafka.transaction(&products, [value("2"), value("3")]);
    world.kafka.produce(&products, [value("4")]);
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("the first is done", || seat.offset() == Some(1));
    world.for_a_while(Duration::from_secs(1), "nothing more is given", || handler.payloads() == ["1"]);
    open.commit();
    // The marker too.
    world.eventually("all are done", || seat.offset() == Some(5));
    assert_eq!(
        (handler.payloads(), consumer.log_of("warn")),
        (["1", "2", "3", "4"].map(str::to_owned).to_vec(), vec![])
    );
}

#[test]
fn a_marker_that_a_later_leader_has_written_is_no_sign_of_a_log_that_was_cut_off() {
    let world = World::alone("marker");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let open = world.kafka.transaction(&products, [value("1"), value("2")]);
    world.services.stop("kafka");
    world.services.start_again("kafka");
    open.commit();
    let seat = world.seat(&products, 0, "indexer");
    for _ in 0..2 {
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!((consumer.wait(), consumer.log_of("warn")), (End::Status(0), vec![]));
        assert_eq!((seat.offset(), handler.payloads()), (Some(3), ["1", "2"].map(str::to_owned).to_vec()));
    }
    world.kafka.produce(&products, [value("3")]);
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    assert_eq!(handler.payloads(), ["1", "2", "3"]);
}
