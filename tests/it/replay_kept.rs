//! Failed batches that are kept, for a handler to be tried out on.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::consume::ids;
use crate::replay::{fails_at, run, sh};
use crate::support::{End, World};

#[test]
fn the_last_batch_that_failed_is_kept_and_fails_again_by_the_command_that_was_logged() {
    let world = World::new("keep");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(1..=10));
    let kept = world.file("it's kept");
    fs::create_dir(&kept).unwrap();
    let handler = world.handler(&format!("[ \"$1\" = \"it's a  b\" ] || exit 78\n{}", fails_at(&[6], 3)));
    let options = format!("-e --retry-pause 10ms --timeout 1m --keep-failed \"{}\"", kept.display());
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler} \"it's a  b\""));
    assert_eq!(consumer.wait(), End::Status(1));

    let file = kept.join(format!("{products}-0-indexer.jsonl"));
    let last = handler.runs().into_iter().rev().find(|run| run.done.is_none()).unwrap();
    assert_eq!((last.offsets(), fs::read_to_string(&file).unwrap()), (vec![6], last.lines.join("\n") + "\n"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);

    let told = consumer.log_of("info");
    let prefix = format!("{products}/0 as indexer: the batch is kept; try the handler on it by: ");
    let commands: Vec<_> = told.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
    let [command] = commands[..] else { panic!("told {} times: {told:?}", commands.len()) };
    let runs = handler.runs().len();
    let tried = sh(&world, command, "");
    let failed = run(1, &format!("{products}/0 offset 6 (1 record)"), "exit status 3; would wait ..");
    assert_eq!((tried.printed.first(), tried.status), (Some(&failed), Some(1)), "{command}: {}", tried.said);
    let again = &handler.runs()[runs];
    assert_eq!((&again.lines, &again.name, again.first), (&last.lines, &last.name, 6));
}

#[test]
fn what_cannot_be_kept_is_told_once_and_holds_nothing_up_and_good_batches_are_not_kept() {
    let world = World::new("keep-none");
    let products = world.topic("products", 1);
    let kept = world.file("kept");
    let (gate, failures) = (world.gate(), world.file("failures"));
    let fails = format!("await {gate}; echo x >> {0}; [ $(wc -l < {0}) -gt 4 ] || exit 1", failures.display());
    let handler = world.handler(&format!("if [ -e {} ]; then {fails}; fi", failures.display()));
    let command = format!(
        "-t {products} -n indexer -e --retry-pause 10ms --isolate-after 9 --keep-failed {} -- {handler}",
        kept.display()
    );
    let mut missing = world.consume(&command);
    assert_eq!(missing.wait(), End::Status(78));
    let why = "No such file or directory (os error 2); make that folder";
    assert_eq!(missing.log_of("error"), [format!("cannot keep failed batches in {}: {why}", kept.display())]);

    fs::create_dir(&kept).unwrap();
    world.kafka.produce(&products, ids(1..=1));
    assert_eq!(world.consume(&command).wait(), End::Status(0));
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);

    fs::write(&failures, "").unwrap();
    world.kafka.produce(&products, ids(2..=2));
    let mut consumer = world.consume(&command);
    world.eventually("the handler runs", || handler.runs().len() == 2);
    fs::remove_dir(&kept).unwrap();
    gate.open();
    assert_eq!(consumer.wait(), End::Status(0));
    let warned =
        consumer.log_of("warn").into_iter().filter(|line| line.contains("cannot keep the failed batch")).count();
    assert_eq!((warned, consumer.says(&["the batch is kept"])), (1, false));
}
