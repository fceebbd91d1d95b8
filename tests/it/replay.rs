//! A handler that is tried out on a file of records, and failed batches that are kept for that.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Message, World, value};

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

fn line(topic: &str, partition: i32, offset: i64) -> String {
    format!(
        "{{\"topic\":\"{topic}\",\"partition\":{partition},\"offset\":{offset},\"ts\":1700000000000,\"key\":\"k{offset}\",\
         \"headers\":[],\"payload\":{{\"id\":{offset}}}}}\n"
    )
}

fn lines(topic: &str, partition: i32, offsets: impl IntoIterator<Item = i64>) -> String {
    offsets.into_iter().map(|offset| line(topic, partition, offset)).collect()
}

/// What a handler does that fails at one of these offsets.
fn fails_at(offsets: &[i64], status: i32) -> String {
    let bad: String = offsets.iter().map(|offset| format!("-e '\"offset\":{offset},' ")).collect();
    format!("if grep -qF {bad} \"$run\"; then exit {status}; fi")
}

#[test]
fn our_own_lines_reach_the_handler_byte_for_byte_as_batches_of_each_partition_in_the_order_of_their_first_lines() {
    let world = World::new("replay");
    let by_hand =
        "{ \"topic\" : \"orders\",\"partition\":1, \"offset\":7,\"payload\":{\"id\": 18446744073709551616} }\n";
    let raw = "{\"topic\":\"products\",\"partition\":0,\"offset\":44,\"ts\":null,\"key_b64\":\"/wA=\",\
               \"headers\":[[\"a\",null],[\"b\",{\"b64\":\"/w==\"}]],\"payload_b64\":\"e30ge30=\"}\n";
    let [first, second] = [lines("products", 0, [41, 42]), lines("products", 0, [45])];
    let file = [&first, by_hand, raw, "\n", second.trim_end()].concat();
    let handler = world.handler("echo 'it is said' >&2");
    let tried = sh(&world, &format!("ksync-consume --replay - --batch-size 3 -n indexer -- {handler}"), &file);
    let printed = [
        "run 1: products/0 offsets 41 to 44 (3 records): done",
        "would commit products/0 at offset 45",
        "run 2: orders/1 offset 7 (1 record): done",
        "would commit orders/1 at offset 8",
        "run 3: products/0 offset 45 (1 record): done",
        "would commit products/0 at offset 46",
    ];
    assert_eq!((tried.printed, tried.status), (printed.map(str::to_owned).to_vec(), Some(0)));
    assert!(tried.said.contains("products/0: it is said"), "{}", tried.said);
    let given: Vec<_> =
        handler.runs().into_iter().map(|run| (run.lines.join("\n") + "\n", run.name, run.term)).collect();
    let expected = [format!("{first}{raw}"), by_hand.to_owned(), second];
    assert_eq!(given, expected.map(|lines| (lines, "indexer".to_owned(), 0)));
    assert!(handler.runs().iter().all(|run| run.done.is_some() && run.attempt == 1));

    let bytes = first.len() + 10; // The raw one would make it larger.
    let cut = sh(&world, &format!("ksync-consume --replay - --batch-bytes {bytes} -- {handler}"), &file);
    let runs: Vec<_> = handler.runs()[3..].iter().map(|run| (run.first, run.count, run.name.clone())).collect();
    let run = |first, count| (first, count, "replay".to_owned());
    assert_eq!((runs, cut.status), (vec![run(41, 2), run(7, 1), run(44, 1), run(45, 1)], Some(0)));
}

#[test]
fn lines_of_kcat_reach_the_handler_as_the_records_themselves_do() {
    let world = World::new("replay-kcat");
    let products = world.topic("products", 1);
    let none = Message::default();
    world.kafka.produce(
        &products,
        [
            value("{\"id\":\n 18446744073709551616,\"é\":\"\u{2028}\\ud800 \\\"\"}")
                .key("7")
                .header("k", "v")
                .header("k", "w"),
            Message { headers: vec![("none".to_owned(), None)], ..none.clone() }.key("8"),
            value("{\"id\":10}").key(""),
            value("{\"id\":11}"),
            value("null").key(b"\xff\x00k\"").header("b", b"\xff").header("", ""),
            value("no JSON"),
            value(b"\xfe\x01\"\\/\n").key("9"),
            value(""),
            none,
        ],
    );
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n replay -e --on-invalid raw -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let bootstrap = world.services.get("KSYNC_BOOTSTRAP_SERVER");
    let kcat = format!("kcat -C -J -e -q -o beginning -b {bootstrap} -t {products}");
    let tried = sh(&world, &format!("{kcat} | ksync-consume --replay - --on-invalid raw -- {handler}"), "");
    assert_eq!(tried.status, Some(0), "{}", tried.said);
    let lines = |count| handler.runs().into_iter().skip(count).flat_map(|run| run.lines).collect::<Vec<_>>();
    let runs = handler.runs().len() - 1;
    assert_eq!((lines(runs).len(), lines(runs)), (9, lines(0)[..9].to_vec()));

    let why = "it is not JSON: expected ident at line 1 column 2";
    let halts = sh(&world, &format!("{kcat} | ksync-consume --replay - -- {handler}"), "");
    let printed = [
        format!("run 1: {products}/0 offsets 0 to 4 (5 records): done"),
        format!("would commit {products}/0 at offset 5"),
        format!(
            "would halt at {products}/0: line 6: the value at offset 5 cannot be given to the handler: {why}; mend its writer \
             and let --on-invalid dead-letter put it aside"
        ),
    ];
    assert_eq!((&halts.printed[..], halts.status), (&printed[..], Some(1)));
    let aside = sh(&world, &format!("{kcat} | ksync-consume --replay - --on-invalid dead-letter -- {handler}"), "");
    let aside_at = |offset: i64, why: &str| format!("would put {products}/0@{offset} aside: {why}");
    let printed = [
        format!("run 1: {products}/0 offsets 0 to 8 (6 records): done"),
        aside_at(5, why),
        aside_at(6, "it is not JSON: expected value at line 1 column 1"),
        aside_at(7, "it is empty"),
        format!("would commit {products}/0 at offset 9"),
    ];
    assert_eq!((&aside.printed[..], aside.status), (&printed[..], Some(3)));
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

fn run(number: u32, of: &str, then: &str) -> String {
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
fn a_line_that_is_no_record_or_out_of_order_is_told_by_its_number_and_nothing_is_run() {
    let world = World::new("replay-lines");
    let handler = world.handler("");
    let good = lines("products", 0, 0..3);
    let kcat = "{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"tstype\":\"create\",\"payload\":{}}\n";
    let neither = "it is no record's line, neither of ksync nor of kcat -J";
    for (bad, options, why) in [
        ("{\"id\":7}\n", "", format!("line 4: {neither}: missing field `topic` at line 1 column 8")),
        ("hello\n", "", format!("line 4: {neither}: expected value at line 1 column 1")),
        (kcat, "", format!("line 4: {neither}: invalid type: map, expected a text at line 1 column 66")),
        (&line("products", 0, 2), "", "line 4: offset 2 of products/0 does not come after 2".to_owned()),
        ("", "--memory 200", "line 2: the records up to here take more than 200 bytes (--memory)".to_owned()),
    ] {
        let tried = sh(&world, &format!("ksync-consume --replay - {options} -- {handler}"), &format!("{good}{bad}"));
        assert_eq!((tried.printed, tried.status), (vec![], Some(1)), "{bad}");
        assert!(tried.said.contains(&format!("error: cannot read stdin: {why}\n")), "{}", tried.said);
    }
    let missing = sh(&world, &format!("ksync-consume --replay missing.jsonl -- {handler}"), "");
    assert_eq!((missing.status, handler.runs()), (Some(1), vec![]));
    assert!(missing.said.contains("cannot read missing.jsonl: No such file or directory"), "{}", missing.said);
    let empty = sh(&world, &format!("ksync-consume --replay - -- {handler}"), "");
    assert_eq!((empty.status, empty.said.contains("warn: - has no records")), (Some(0), true), "{}", empty.said);
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
