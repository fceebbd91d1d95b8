//! Which records are a batch: where it is closed, that none is left out between two, and which of a key are given.

use std::iter::repeat_n;

use crate::messages::{at_a_fixed_time, line, line_of};
use crate::support::{End, Handler, Message, World, is_full, value};

#[test]
fn a_batch_is_closed_before_the_record_that_would_make_it_too_large() {
    let world = World::new("bytes");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, at_a_fixed_time(repeat_n(value("{}"), 7)));
    let size = line_of(&products, 0, "{}").len() + 1;
    for (name, bytes, counts) in [
        ("below", 3 * size - 1, vec![2, 2, 2, 1]),
        ("exact", 3 * size, vec![3, 3, 1]),
        ("above", 3 * size + 1, vec![3, 3, 1]),
        ("tiny", 1, vec![1; 7]),
    ] {
        let handler = world.handler("");
        let options = format!("-e --batch-wait 20s --batch-bytes {bytes}");
        let mut consumer = world.consume(&format!("-t {products} -n {name} {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{name}");
        let got: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((got, offsets(&handler)), (counts, (0..7).collect()), "{name}");
    }
}

/// The offsets of all lines that the handler got, in that order.
fn offsets(handler: &Handler) -> Vec<i64> {
    let offset = |line: &str| {
        let (_, rest) = line.split_once("\"offset\":").unwrap();
        rest.split_once(',').unwrap().0.parse().unwrap()
    };
    handler.runs().iter().flat_map(|run| &run.lines).map(|line| offset(line)).collect()
}

#[test]
fn batches_are_contiguous_at_their_edges() {
    let world = World::new("edges");
    for (count, counts) in [(99, vec![99]), (100, vec![100]), (101, vec![100, 1]), (200, vec![100, 100])] {
        let products = world.topic(&format!("products-{count}"), 1);
        world.kafka.produce(&products, repeat_n(value("{}"), count));
        let handler = world.handler("");
        let options = "-e --batch-size 100 --batch-wait 20s";
        let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0));
        let got: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((got, offsets(&handler)), (counts, (0..count as i64).collect()), "{count}");
        assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(count as i64));
    }
}

#[test]
fn many_tiny_records_arrive_once_and_in_their_order() {
    let world = World::new("tiny");
    let products = world.topic("products", 1);
    let count = if is_full() { 1_000_000 } else { 50_000 };
    world.kafka.produce(&products, repeat_n(value("1"), count));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --batch-size 9999 -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let offsets = offsets(&handler);
    let first_gap = (0..).zip(&offsets).find(|(expected, offset)| expected != *offset);
    assert_eq!((offsets.len(), first_gap), (count, None));
}

#[test]
fn of_records_with_the_same_key_only_the_last_is_given_where_that_is_wanted() {
    let world = World::new("coalesce");
    let products = world.topic("products", 1);
    let messages = [
        value("1").key("a"),
        value("[7]"),
        value("2").key("b"),
        value("3").key("a"),
        value("[8]"),
        value("[7]"),
        Message::default().key("b"),
        value("4").key("c"),
        value("5").key("c"),
    ];
    world.kafka.produce(&products, at_a_fixed_time(messages));
    let handler = world.handler("");
    let options = "-e --coalesce --batch-size 8 --batch-wait 20s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let keyed = |offset, key: &str, payload: &str| {
        line(&products, offset, &format!(r#""key":"{key}","headers":[],"payload":{payload}"#))
    };
    let batches: Vec<_> = runs.iter().map(|run| (run.count, run.first, run.last, run.lines.clone())).collect();
    let first = vec![
        keyed(3, "a", "3"),
        line_of(&products, 4, "[8]"),
        line_of(&products, 5, "[7]"),
        keyed(6, "b", "null"),
        keyed(7, "c", "4"),
    ];
    assert_eq!(batches, [(5, 3, 7, first), (1, 8, 8, vec![keyed(8, "c", "5")])]);
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(9));
}
