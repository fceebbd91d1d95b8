//! What a process survives: closed descriptors, a log without a reader.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::Command;

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Handler, Process, World};

const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");

/// A consumer that a shell starts with its descriptors so.
fn consume_with(world: &World, arguments: &str, descriptors: &str) -> Process {
    world.start(&world.script(&format!("exec {CONSUME} {arguments} {descriptors}")), "", &[])
}

fn does_five_records_and_ends(world: &World, products: &str, handler: &Handler, mut consumer: Process) {
    world.kafka.produce(products, ids(1..=5));
    let seat = world.seat(products, 0, "indexer");
    world.eventually("they are done", || seat.offset() == Some(5));
    consumer.signal(Signal::TERM);
    assert_eq!(consumer.wait(), End::Status(0));
    assert_eq!(handler.payloads(), (1..=5).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>());
}

#[test]
fn with_descriptors_0_to_2_closed_no_other_file_takes_their_numbers() {
    let world = World::new("closed");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consumer = consume_with(&world, &format!("-v -t {products} -n indexer -- {handler}"), "0<&- 1>&- 2>&-");
    let seat = world.seat(&products, 0, "indexer");
    world.eventually("it leads", || seat.offset() == Some(0));
    let open = |fd: i32| fs::read_link(format!("/proc/{}/fd/{fd}", consumer.pid)).unwrap().display().to_string();
    assert_eq!([0, 1, 2].map(open), ["/dev/null"; 3]);
    does_five_records_and_ends(&world, &products, &handler, consumer);
}

#[test]
fn a_log_that_cannot_be_written_or_that_nobody_reads_holds_up_no_work() {
    let world = World::new("no-log");
    for (name, log) in [("full", "/dev/full".to_owned()), ("unread", world.file("log").display().to_string())] {
        let products = world.topic(name, 1);
        let handler = world.handler("");
        if name == "unread" {
            assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
        }
        let consumer = consume_with(&world, &format!("-v -t {products} -n indexer -- {handler}"), &format!("2>{log}"));
        if name == "unread" {
            // As head -1 does it.
            let mut first = String::new();
            BufReader::new(File::open(&log).unwrap()).read_line(&mut first).unwrap();
            assert!(first.contains("ksync-consume"), "{first}");
        }
        does_five_records_and_ends(&world, &products, &handler, consumer);
    }
}
