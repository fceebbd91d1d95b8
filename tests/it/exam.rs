//! Workers that are put through the protocol by --check-worker: which rules they keep, and which they break.

use std::time::Instant;

use rustix::process::Signal;

use crate::examples::{WORKERS, example};
use crate::replay::{Tried, sh};
use crate::support::{End, World};

/// A worker with one fault.
const WORKER: &str = r#"#!/usr/bin/env python3
import json, os, sys, time

fault = sys.argv[1]
def answer(**message):
    print(json.dumps(message), flush=True)

batch, failed = None, []
for line in sys.stdin:
    message = json.loads(line)
    kind = message.get("type")
    if kind == "hello":
        if fault == "never ready": continue
        if fault == "not set up": sys.exit(78)
        answer(type="ready")
    elif kind == "batch":
        batch, failed = message, []
        if fault == "hasty": answer(type="done", id=batch["id"])
    elif kind == "cancel" and batch:
        if fault == "answers what was cancelled": answer(type="done", id=batch["id"])
        batch = None
    elif kind == "end" and batch:
        if fault == "silent": continue
        if fault == "names a stranger": failed.append({"offset": 99})
        if fault == "names one twice": failed += [{"offset": 0}, {"offset": 0}]
        if fault == "forgets the id": answer(type="done")
        elif fault == "wants rest": answer(type="backoff", id=batch["id"], ms=1500)
        elif fault == "talks": print("done: 3 records", flush=True); answer(type="done", id=batch["id"])
        elif fault == "answers twice": print(2 * (json.dumps({"type": "done", "id": batch["id"]}) + "\n"), end="", flush=True)
        else: answer(type="done", id=batch["id"], failed=failed)
        if fault == "ends between batches": os._exit(0)
        batch = None
    elif kind == "shutdown":
        if fault == "stays": time.sleep(60)
        sys.exit(4 if fault == "ends badly" else 0)
    elif kind is None and batch:
        if fault == "dies of a record" and message["payload"] == {}: sys.exit(3)
        if message["payload"] == {}: failed.append({"offset": message["offset"], "error": "no id"})
    elif fault == "knows all types" and kind != "cancel":
        raise ValueError(kind)
"#;

fn examine(world: &World, fault: &str) -> Tried {
    let worker = world.script_of(WORKER);
    sh(world, &format!("ksync-consume --check-worker --timeout 10s --start-timeout 20s -- {worker} '{fault}'"), "")
}

/// `ended after 0.1 s` -> `ended`
fn without_time(line: &str) -> &str {
    match line.rsplit_once(" after ") {
        Some((step, time)) if time.ends_with(" s") => step,
        _ => line,
    }
}

#[test]
fn each_example_worker_keeps_all_rules() {
    let world = World::new("exam-examples");
    for language in WORKERS {
        let worker = example("ids_worker", language);
        let tried = sh(&world, &format!("ksync-consume --check-worker -t shops -- {}", worker.display()), "");
        let steps: Vec<_> = tried.printed.iter().map(|line| without_time(line).to_owned()).collect();
        let expected = [
            "ok      ready:",
            "ok      a batch with a deletion: done",
            "ok      a record without an id: named as failed, offset 1: no id",
            "ok      cancel before the end of a batch: forgotten, and the next batch answered",
            "ok      cancel after the end of a batch: answered once",
            "ok      a message of an unknown type: passed over",
            "ok      shutdown: ended",
        ];
        assert_eq!((steps, tried.status), (expected.map(str::to_owned).to_vec(), Some(0)), "{}", tried.said);
        // Ids below 0 are those of no row.
        assert!(tried.said.contains("shops/0: shops/0: -1 -2 -3\n"), "{}", tried.said);
    }
}

#[test]
fn each_fault_is_told_at_the_step_where_it_shows_and_the_others_go_on() {
    let world = World::new("exam-faults");
    let broke = "the worker broke the protocol";
    for (fault, step, how) in [
        ("dies of a record", "a record without an id", "exit status 3".to_owned()),
        (
            "answers what was cancelled",
            "cancel before the end of a batch",
            format!("{broke}: it answered for batch b3 while it had batch b4"),
        ),
        ("knows all types", "a message of an unknown type", "exit status 1".to_owned()),
        ("stays", "shutdown", format!("{broke}: it had not ended 5 s later")),
    ] {
        let tried = examine(&world, fault);
        let broken: Vec<_> = tried.printed.iter().filter(|line| !line.starts_with("ok ")).collect();
        assert_eq!(
            (broken, tried.status),
            (vec![&format!("broken  {step}: {how}")], Some(1)),
            "{fault}: {}",
            tried.said
        );
        let kept = tried.printed.iter().filter(|line| line.starts_with("ok ") && !line.contains("ready: "));
        assert_eq!(kept.count(), 5, "{fault}: {:?}", tried.printed);
    }
}

#[test]
fn a_fault_in_each_batch_is_told_in_the_words_of_the_daemon() {
    let world = World::new("exam-words");
    for (fault, how) in [
        ("hasty", "the worker broke the protocol: it answered for batch b1 before it was given its end"),
        ("silent", "no answer within 10s (--timeout); does the worker flush its stdout after each line?"),
        ("names a stranger", "the worker broke the protocol: it named offset 99, which is not in the batch"),
        ("names one twice", "the worker broke the protocol: it named offset 0 twice"),
        (
            "forgets the id",
            "the worker broke the protocol: cannot read its answer '{\"type\": \"done\"}': missing field `id`",
        ),
        ("answers twice", "the worker broke the protocol: it answered for batch b1, which it did not have any more"),
        ("ends between batches", "the worker ended, or closed its stdout, without an answer"),
    ] {
        let expected = format!("broken  a batch with a deletion: {how}");
        let mut tried = examine(&world, fault);
        // The exam looks for 0.3 s, which a worker on a busy machine may miss, but not each time.
        for _ in 0..4 {
            if tried.printed.get(1) == Some(&expected) {
                break;
            }
            tried = examine(&world, fault);
        }
        assert_eq!((tried.printed.get(1), tried.status), (Some(&expected), Some(1)), "{fault}");
    }
}

#[test]
fn a_worker_that_is_never_ready_is_asked_nothing_more() {
    let world = World::new("exam-ready");
    for (fault, how) in [
        ("never ready", "no answer within 20s (--start-timeout); does the worker flush its stdout after each line?"),
        ("not set up", "exit status 78"),
    ] {
        let tried = examine(&world, fault);
        let expected = format!("broken  ready: the worker was not ready: {how}");
        assert_eq!((tried.printed, tried.status), (vec![expected], Some(1)), "{}", tried.said);
    }
    let missing = sh(&world, "ksync-consume --check-worker -- ./missing", "");
    assert_eq!((missing.printed, missing.status), (vec![], Some(78)), "{}", missing.said);
}

#[test]
fn what_a_worker_may_do_is_no_fault() {
    let world = World::new("exam-free");
    for (fault, line) in [
        ("wants rest", "ok      a batch with a deletion: the worker wants 1s 500ms of rest"),
        ("talks", "ok      a record without an id: taken for done"),
    ] {
        let tried = examine(&world, fault);
        assert!(tried.printed.iter().any(|printed| printed == line), "{fault}: {:?}", tried.printed);
        assert_eq!(tried.status, Some(0), "{fault}: {}", tried.said);
    }
    let tried = examine(&world, "ends badly");
    assert!(tried.printed[6].ends_with(" with exit status 4"), "{:?}", tried.printed);
    assert_eq!(tried.status, Some(0));
}

#[test]
fn sigterm_ends_the_exam_and_its_worker() {
    let world = World::new("exam-term");
    let worker = world.script_of(WORKER);
    let mut exam = world.consume(&format!("--check-worker -- {worker} silent"));
    world.eventually("the worker runs", || world.processes() >= 3);
    let begun = Instant::now();
    exam.signal(Signal::TERM);
    assert_eq!(exam.wait(), End::Status(75));
    assert!(begun.elapsed().as_secs() < 20, "it waits for the answer");
    world.eventually("nothing is left", || world.processes() == 0);
}
