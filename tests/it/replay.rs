//! A handler that is tried out on a file of records: what would be run, committed, put aside and halted at.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{End, World};

/// How a command of a shell has ended, and what it has written.
pub struct Tried {
    pub status: Option<i32>,
    pub printed: Vec<String>,
    pub said: String,
}

/// Runs a line of sh that names our programs, and tells them of no server. Pauses are random, so only that there is one stays.
pub fn sh(world: &World, line: &str, stdin: &str) -> Tried {
    let bin = Path::new(env!("CARGO_BIN_EXE_ksync-consume")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("timeout");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KSYNC_")) {
        command.env_remove(name);
    }
    command.args(["120", "sh", "-c", line]).current_dir(&world.dir).env("PATH", path).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let wait = "; would wait ";
    let without_pause = |line: &str| line.split_once(wait).map_or(line.to_owned(), |(run, _)| format!("{run}{wait}.."));
    Tried {
        status: output.status.code(),
        printed: printed.lines().map(without_pause).collect(),
        said: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn line(topic: &str, partition: i32, offset: i64) -> String {
    format!(
        "{{\"topic\":\"{topic}\",\"partition\":{partition},\"offset\":{offset},\"ts\":1700000000000,\"key\":\"k{offset}\",\
         \"headers\":[],\"payload\":{{\"id\":{offset}}}}}\n"
    )
}

pub fn lines(topic: &str, partition: i32, offsets: impl IntoIterator<Item = i64>) -> String {
    offsets.into_iter().map(|offset| line(topic, partition, offset)).collect()
}

/// What a handler does that fails at one of these offsets.
pub fn fails_at(offsets: &[i64], status: i32) -> String {
    let bad: String = offsets.iter().map(|offset| format!("-e '\"offset\":{offset},' ")).collect();
    format!("if grep -qF {bad} \"$run\"; then exit {status}; fi")
}

/// Eight records of products/0 in batches of four, and one of orders/2 after the first of these.
fn two_topics() -> String {
    lines("products", 0, 0..4) + &lines("orders", 2, 5..6) + &lines("products", 0, 4..8)
}

/// What is printed of [`two_topics`], with which exit status.
fn tried(world: &World, options: &str, body: &str) -> (Vec<String>, Option<i32>) {
    let handler = world.handler(body);
    let tried = sh(world, &format!("ksync-consume --replay - --batch-size 4 {options} -- {handler}"), &two_topics());
    (tried.printed, tried.status)
}

pub fn run(number: u32, of: &str, then: &str) -> String {
    format!("run {number}: {of}: {then}")
}

/// The other topic's batch, with nothing of products/0 after it.
fn others(number: u32) -> [String; 2] {
    [run(number, "orders/2 offset 5 (1 record)", "done"), "would commit orders/2 at offset 6".to_owned()]
}

fn rest(number: u32) -> [String; 2] {
    [run(number, "products/0 offsets 4 to 7 (4 records)", "done"), "would commit products/0 at offset 8".to_owned()]
}

const FIRST: &str = "products/0 offsets 0 to 3 (4 records)";
const NOT_FURTHER: &str = "would not go on in products/0: 4 records after that";

/// Until the bad record with offset 1 stands alone and the others are done.
fn halves() -> Vec<String> {
    let failed = "exit status 1; next would be";
    vec![
        run(1, FIRST, "exit status 1; would wait .."),
        run(2, FIRST, "exit status 1; would wait .."),
        run(3, FIRST, &format!("{failed} 2 records from offset 0")),
        run(4, "products/0 offsets 0 to 1 (2 records)", &format!("{failed} 1 record from offset 0")),
        run(5, "products/0 offset 0 (1 record)", "done; next would be 1 record from offset 1"),
        run(6, "products/0 offset 1 (1 record)", &format!("{failed} 2 records from offset 2")),
    ]
}

#[test]
fn without_a_dead_letter_topic_its_partition_would_halt_at_a_bad_record_and_the_others_go_on() {
    let world = World::new("replay-halt");
    let halt = "would halt at products/0@1: the handler cannot work on the record at offset 1: exit status 1; mend it, or let \
                --dead-letter put such records aside, or pass this one by --skip products/0@1";
    let then = [
        &run(7, "products/0 offsets 2 to 3 (2 records)", "done"),
        "would commit products/0 at offset 1",
        halt,
        NOT_FURTHER,
    ];
    let expected = [halves(), then.map(str::to_owned).to_vec(), others(8).to_vec()].concat();
    assert_eq!(tried(&world, "", &fails_at(&[1], 1)), (expected, Some(1)));

    let passes =
        [run(1, "products/0 offsets 0 to 4 (4 records)", "done"), "would commit products/0 at offset 5".to_owned()];
    let last =
        [run(3, "products/0 offsets 5 to 7 (3 records)", "done"), "would commit products/0 at offset 8".to_owned()];
    let expected = [passes, others(2), last].concat();
    assert_eq!(tried(&world, "--skip products/0@1", &fails_at(&[1], 1)), (expected, Some(0)));
}

#[test]
fn with_a_dead_letter_topic_a_bad_record_would_be_put_aside() {
    let world = World::new("replay-aside");
    let then = [
        &run(7, "products/0 offsets 2 to 3 (2 records)", "done"),
        "would put products/0@1 aside: exit status 1",
        "would commit products/0 at offset 4",
    ];
    let expected = [halves(), then.map(str::to_owned).to_vec(), others(8).to_vec(), rest(9).to_vec()].concat();
    assert_eq!(tried(&world, "--dead-letter", &fails_at(&[1], 1)), (expected, Some(3)));

    let said = "{\"offset\":2,\"status\":\"fail\",\"permanent\":true,\"error\":\"no such category\"}";
    let names = format!("if [ \"$KSYNC_BATCH_FIRST_OFFSET\" -eq 0 ]; then echo '{said}' >&3; fi");
    let then = [
        &run(1, FIRST, "the handler named 1 failed records"),
        "would put products/0@2 aside: no such category",
        "would commit products/0 at offset 4",
    ];
    let expected = [then.map(str::to_owned).to_vec(), others(2).to_vec(), rest(3).to_vec()].concat();
    assert_eq!(tried(&world, "--dead-letter", &names), (expected, Some(3)));
}

#[test]
fn a_record_that_failed_alone_waits_for_what_shows_that_the_handler_works() {
    let world = World::new("replay-proof");
    let handler = world.handler(&fails_at(&[0], 1));
    let command = format!("ksync-consume --replay - --dead-letter --isolate-after 1 --batch-size 1 -- {handler}");
    let alone = |number, then: &str| run(number, "products/0 offset 0 (1 record)", &format!("exit status 1{then}"));
    for (file, between) in [
        (lines("products", 0, 0..2), "products/0 offset 1 (1 record)"),
        (lines("products", 0, 0..1) + &lines("orders", 2, 5..6), "orders/2 offset 5 (1 record)"),
    ] {
        let tried = sh(&world, &command, &file);
        assert_eq!(tried.status, Some(3), "{:?}", tried.printed);
        let runs: Vec<_> = tried.printed.iter().filter(|line| line.starts_with("run ")).collect();
        assert!(runs[0].starts_with(&alone(1, "")) && runs[1].starts_with(&run(2, between, "done")), "{runs:?}");
        assert_eq!((runs[2], runs.len()), (&alone(3, ""), 3));
        assert!(tried.printed.contains(&"would put products/0@0 aside: exit status 1".to_owned()));
    }
    let tried = sh(&world, &command, &lines("products", 0, 0..1));
    let mut printed: Vec<_> = (1..4).map(|number| alone(number, "; would wait ..")).collect();
    let why = "only once the handler was done with another record would it put this one aside";
    printed.extend([alone(4, ""), format!("would try products/0 offset 0 again for ever: {why}")]);
    assert_eq!((tried.printed, tried.status), (printed, Some(1)));
}

#[test]
fn what_would_be_tried_for_ever_ends_after_some_runs_and_says_so() {
    let world = World::new("replay-forever");
    let mut expected: Vec<_> = (1..6).map(|number| run(number, FIRST, "exit status 75; would wait ..")).collect();
    expected.push(run(6, FIRST, "exit status 75"));
    expected.extend(["would try products/0 offsets 0 to 3 again for ever", NOT_FURTHER].map(str::to_owned));
    expected.extend(others(7));
    assert_eq!(tried(&world, "--dead-letter", &fails_at(&[1], 75)), (expected, Some(1)));

    let all = "--dead-letter --isolate-after 1 --breaker-failures 2";
    let (printed, status) = tried(&world, all, &fails_at(&[0, 1, 3], 1));
    let breaker = "would halt at products/0@0: so many records fail that the fault may not be theirs: none is put aside until \
                   this one works";
    let expected =
        [run(6, "products/0 offset 1 (1 record)", "exit status 1"), breaker.to_owned(), NOT_FURTHER.to_owned()];
    assert_eq!((printed[5..].to_vec(), status), ([&expected[..], &others(7)].concat(), Some(1)));
}

#[test]
fn a_handler_is_held_to_its_time_and_to_its_results() {
    let world = World::new("replay-terms");
    for (options, body, why) in [
        ("--timeout 200ms", "sleep 60", "no end after 200ms (--timeout)"),
        ("--require-result", "", "exit status 0, but nothing was said of 4 records (--require-result)"),
    ] {
        let (printed, status) = tried(&world, &format!("{options} --isolate-after 1"), body);
        let first = run(1, FIRST, &format!("{why}; next would be 2 records from offset 0"));
        assert_eq!((&printed[0], status), (&first, Some(1)));
    }
    let tried = sh(&world, "ksync-consume --replay - -- sh -c 'cat >/dev/null; exit 78'", &two_topics());
    let why = "the handler failed before it ever succeeded: exit status 78";
    assert_eq!((tried.printed, tried.status, tried.said.contains(why)), (vec![], Some(78), true), "{}", tried.said);
}

#[test]
fn workers_are_tried_out_too() {
    let world = World::new("replay-worker");
    let worker = world.script(
        r#"while IFS= read -r line; do case "$line" in
           *'"type":"hello"'*) echo '{"type":"ready"}';;
           *'"type":"end"'*) id=${line#*'"id":"'}
             echo '{"type":"done","id":"'"${id%%'"'*}"'","failed":['"$failed"']}'
             failed=;;
           *'"offset":2,'*) failed='{"offset":2,"error":"no such category","permanent":true}';;
           esac; done"#,
    );
    let command = format!("ksync-consume --replay - --batch-size 4 --dead-letter --worker -- {worker}");
    let tried = sh(&world, &command, &two_topics());
    let then = [
        &run(1, FIRST, "the handler named 1 failed records"),
        "would put products/0@2 aside: no such category",
        "would commit products/0 at offset 4",
    ];
    let expected = [then.map(str::to_owned).to_vec(), others(2).to_vec(), rest(3).to_vec()].concat();
    assert_eq!((tried.printed, tried.status), (expected, Some(3)), "{}", tried.said);
}

#[test]
fn sigterm_ends_it_with_its_handler() {
    let world = World::new("replay-term");
    let file = world.file("records");
    fs::write(&file, lines("products", 0, 0..3)).unwrap();
    let handler = world.handler(&format!("await {}", world.gate()));
    let mut replay = world.consume(&format!("--replay {} -- {handler}", file.display()));
    world.eventually("the handler runs", || handler.runs().len() == 1);
    replay.signal(Signal::TERM);
    assert_eq!(replay.wait(), End::Status(75));
    world.eventually("nothing is left", || world.processes() == 0);
}
