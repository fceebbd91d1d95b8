//! What ksync-stream shows of a run while it is under way: on a terminal, where it asks and has a bar, and in a log.

use std::fs;
use std::path::PathBuf;

use crate::plan::{changed, products_of};
use crate::support::{Client, End, Process, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

/// What clears the line on which the bar is.
const CLEARED: &str = "\r\u{1b}[2K";

/// Sends off what was typed of a line, and where there is nothing of it ends the input.
const CONTROL_D: &str = "\u{4}";

/// ksync-stream on a terminal, which shows in a file what it does.
fn on_a_terminal(world: &World, arguments: &str) -> (Process, PathBuf) {
    let seen = world.file("terminal");
    let command = format!("stty rows 40 cols 120; exec {STREAM} {arguments}");
    // There is no bar on one that is not known, or too simple.
    let process = world.start("script", &format!("-qfec \"{command}\" {}", seen.display()), &[("TERM", "xterm")]);
    (process, seen)
}

#[test]
fn on_a_terminal_an_action_is_asked_for_and_begins_only_with_yes() {
    let world = World::new("asked");
    let [primary, ..] = block_on(primaries("plan_asked"));
    products_of(&primary, 25);
    let topic = world.topic_with_delay("products", 1);
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let action = format!("{source} --sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'");
    for (answer, status, rows) in [("n\n", 1, 0), ("\n", 1, 0), (CONTROL_D, 1, 0), ("yes\n", 0, 25)] {
        let (mut stream, seen) = on_a_terminal(&world, &action);
        let shown = || fs::read_to_string(&seen).unwrap_or_default();
        world.eventually("it asks", || shown().contains("begin? [y/N]"));
        assert!(shown().contains("for each chunk:"), "{}", shown());
        assert_eq!(changed(&primary), 0);
        stream.tell(answer);
        assert_eq!((stream.wait(), changed(&primary)), (End::Status(status), rows), "{answer:?}: {}", shown());
    }
    // Nobody is asked about a re-index, nor with --yes.
    for options in [&source, &format!("{action} --yes")] {
        let (mut stream, seen) = on_a_terminal(&world, options);
        assert_eq!(stream.wait(), End::Status(0), "{options}");
        assert!(!fs::read_to_string(seen).unwrap().contains("begin?"));
    }
}

#[test]
fn nobody_is_asked_who_would_not_see_it_nor_where_nothing_is_to_be_done() {
    let world = World::new("not-asked");
    let [primary, ..] = block_on(primaries("plan_not_asked"));
    products_of(&primary, 25);
    let topic = world.topic_with_delay("products", 1);
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let action = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
    let (log, checkpoint) = (world.file("log"), world.file("checkpoint"));
    let kept = format!("{source} --checkpoint {} {action}", checkpoint.display());
    for (command, rows, told) in [
        (format!("{source} {action} 2> {}", log.display()), 25, ""),
        (format!("{kept} --yes"), 25, ""),
        (kept, 0, "says that this job was finished at "),
        (format!("{source} --where 'id > 99' {action}"), 0, "table products has no rows left: nothing would be done"),
    ] {
        block_on(primary.execute("UPDATE products SET price = 0"));
        let (mut stream, seen) = on_a_terminal(&world, &command);
        let end = stream.wait();
        let shown = fs::read_to_string(seen).unwrap();
        assert_eq!((end, changed(&primary)), (End::Status(0), rows), "{command}: {shown}");
        assert!(shown.contains(told) && !shown.contains("begin?"), "{command}: {shown}");
    }
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("25 rows in ") && !log.contains("begin?"), "{log}");
}

#[test]
fn a_bar_tells_how_far_a_run_is_how_long_it_will_take_and_what_holds_it_up() {
    let world = World::new("bar");
    let [.., sqlite] = block_on(primaries("bar"));
    products_of(&sqlite, 25);
    let topic = world.topic("products", 1);
    let source = format!("-t {topic} --database {} --chunk-size 10", sqlite.url);
    let held = |rows: &str| {
        let path = world.file("control");
        let throttled = format!("--rate 0.001/s --control unix:{}", path.display());
        let (stream, seen) = on_a_terminal(&world, &format!("{source} {throttled} {rows}"));
        (stream, seen, Client::to(&world, &path))
    };
    let shown = |seen: &PathBuf| fs::read_to_string(seen).unwrap_or_default();
    let bars = |seen: &PathBuf| shown(seen).split(CLEARED).map(|bar| bar.trim_end().to_owned()).collect::<Vec<_>>();
    // The rate of the run so far, and what is left by it.
    let (done, rest) = (" 10/25 rows, paused: the rate is 0.001/s, ", "/s, ");
    let is_held = |bar: &String| {
        bar.split_once(done).is_some_and(|(_, figures)| figures.contains(rest) && figures.ends_with(" left"))
    };
    let (mut stream, seen, mut client) = held("--table products --count");
    world.eventually("it tells what holds it up", || bars(&seen).iter().any(is_held));
    assert_eq!(client.ask("rate off"), "the rate is off");
    assert_eq!(stream.wait(), End::Status(0), "{}", shown(&seen));
    let is_done = |bar: &String| bar.contains(" 25/25 rows, ") && !bar.contains("paused");
    assert!(bars(&seen).iter().any(is_done), "{}", shown(&seen));
    // It is gone before the last line.
    let shown_at_end = shown(&seen);
    let (before, _) = shown_at_end.split_once("25 rows in ").unwrap();
    assert!(before.rsplit_once(" left").unwrap().1.contains(CLEARED), "{shown_at_end}");

    // How many a query has nobody knows.
    let (_stream, seen, _client) = held("--query 'SELECT id FROM products' --key id");
    let held_up = " 10 rows, paused: the rate is 0.001/s, ";
    world.eventually("it tells what holds it up", || bars(&seen).iter().any(|bar| bar.contains(held_up)));
    assert!(!shown(&seen).contains(" left"), "{}", shown(&seen));

    for quiet in ["--progress none", "-q"] {
        let (mut stream, seen) = on_a_terminal(&world, &format!("{source} --table products --count {quiet}"));
        assert_eq!(stream.wait(), End::Status(0), "{quiet}");
        let shown = shown(&seen);
        assert!(["/25", " left", "25 rows"].iter().all(|bar| !shown.contains(*bar)), "{quiet}: {shown}");
    }
}

#[test]
fn lines_that_are_typed_are_sent_as_they_come_and_end_with_control_d() {
    let world = World::new("typed");
    let topic = world.topic("products", 1);
    let (mut stream, _) = on_a_terminal(&world, &format!("- -t {topic}"));
    stream.tell("{\"id\":1}\n");
    world.eventually("the line is sent", || world.kafka.count(&topic) == 1);
    assert!(stream.is_running());
    stream.tell(CONTROL_D);
    world.eventually("it has ended", || !stream.is_running());
    assert_eq!(stream.wait(), End::Status(0));

    // The first one sends off what was typed of a line.
    let (mut stream, seen) = on_a_terminal(&world, &format!("- -t {topic}"));
    stream.tell(format!("{{\"id\":{CONTROL_D}{CONTROL_D}"));
    world.eventually("it has ended", || !stream.is_running());
    let shown = || fs::read_to_string(&seen).unwrap();
    assert_eq!(stream.wait(), End::Status(1), "{}", shown());
    assert!(shown().contains("line 1 of stdin is not JSON"), "{}", shown());

    // Nothing else of the process is taken for what is closed.
    let mut closed = world.start(&world.script(&format!("exec {STREAM} - -t {topic} 0<&-")), "", &[]);
    assert_eq!(closed.wait(), End::Status(0), "{:?}", closed.log());
    assert!(closed.says(&["warn: there was no line on stdin"]), "{:?}", closed.log());
    assert_eq!(world.kafka.count(&topic), 1);
}

#[test]
fn in_a_log_a_line_comes_after_10_s_and_then_every_minute() {
    let world = World::new("lines");
    let (topic, clock) = (world.topic("products", 1), world.clock());
    let mut stream = world.start(STREAM, &format!("- -t {topic} --chunk-size 1"), &clock.environment());
    for (id, seconds_before) in [(1, 0.0), (2, 11.0), (3, 30.0), (4, 31.0)] {
        clock.pass(seconds_before);
        stream.tell(format!("{{\"id\":{id}}}\n"));
        world.eventually("it is counted", || {
            stream.ask();
            stream.says(&[&format!("{id} rows in {id} chunks, ")])
        });
        // What is on its way would run out of time with the clock.
        world.eventually("it is acknowledged", || world.kafka.count(&topic) == id);
    }
    assert_eq!(stream.wait(), End::Status(0));
    let told: Vec<_> = stream.log_of("info").into_iter().filter(|line| line.contains(" rows so far")).collect();
    assert_eq!(told, ["2 rows so far, 0 a second", "4 rows so far, 0 a second"]);

    let [.., sqlite] = block_on(primaries("bar_lines"));
    products_of(&sqlite, 25);
    let rows = format!("--database {} --table products --chunk-size 5 --rate 0.001/s", sqlite.url);
    let stream = world.start(STREAM, &format!("-t {topic} {rows}"), &clock.environment());
    world.eventually("it is held up", || {
        stream.ask();
        stream.says(&["5 rows in 1 chunks, ", "; paused since "])
    });
    clock.pass(11.0);
    let line = "info: 5 of about 25 rows so far, 0 a second; paused: the rate is 0.001/s";
    world.eventually("it tells", || stream.says(&[line]));
}
