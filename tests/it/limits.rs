//! A process that the machine denies something: descriptors, processes, a host name, a home.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::consume::ids;
use crate::support::{End, Process, World};

const MANY: u64 = 4096;

/// How many descriptors it has open.
fn open(process: &Process) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().count() as u64
}

fn allow(process: &Process, descriptors: u64) {
    let limits = Rlimit { current: Some(descriptors), maximum: Some(MANY) };
    prlimit(Pid::from_raw(process.pid), Resource::Nofile, limits).unwrap();
}

#[test]
fn without_descriptors_for_a_handler_the_batch_waits_and_the_lease_stays() {
    let world = World::new("descriptors");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let dead = world.topic("dead", 1);
    let options = "--retry-pause 50ms --retry-pause-max 200ms --isolate-after 1";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} --dead-letter={dead} -- {handler}"));
    let seat = world.seat(&products, 0, "indexer");
    world.kafka.produce(&products, ids(0..1));
    world.eventually("it works", || seat.offset() == Some(1));
    let candidates = seat.candidates();
    // Those that are open stay open.
    allow(&consumer, open(&consumer));
    world.kafka.produce(&products, ids(1..4));
    world.eventually("it is tried again and again", || {
        consumer.log_of("warn").iter().filter(|line| line.contains("Too many open files")).count() > 3
    });
    assert_eq!((seat.offset(), seat.candidates()), (Some(1), candidates.clone()));
    assert!(!consumer.says(&["; next are"]), "it is cut in halves");
    allow(&consumer, MANY);
    world.eventually("it is done", || seat.offset() == Some(4));
    assert_eq!(seat.candidates(), candidates);
    assert_eq!(handler.payloads().len(), 4);
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(world.kafka.count(&dead), 0, "no record is to blame");
}

#[test]
fn without_descriptors_for_its_action_a_stream_ends_to_be_run_again() {
    let world = World::new("stream-descriptors");
    let products = world.topic_with_delay("products", 1);
    let mut stream = world.stream(&format!("-t {products} - --chunk-size 1 -- sh -c 'cat >/dev/null'"));
    stream.tell("{\"id\":1}\n");
    world.eventually("the first chunk is announced", || world.kafka.count(&products) == 1);
    allow(&stream, open(&stream));
    stream.tell("{\"id\":2}\n");
    assert_eq!(stream.wait(), End::Status(75));
    assert!(stream.says(&["error: ", "Too many open files"]));
    let counts = [products.clone(), format!("{products}-delay")].map(|topic| world.kafka.count(&topic));
    assert_eq!(counts, [1, 2], "the delay message of the second is sent, and no more");
}
