//! ksync-stream that ends before its work is done: what it tells of that, and what it has taken by then.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{End, Primary, Process, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

fn products_of(primary: &Primary, rows: usize) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    let rows: Vec<_> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

fn lines(count: usize) -> String {
    (1..=count).map(|id| format!("{{\"id\":{id}}}\n")).collect()
}

#[test]
fn without_delay_messages_nobody_is_told_that_they_cover_a_change() {
    let world = World::new("instant-only");
    let [.., sqlite] = block_on(primaries("ends_instant"));
    products_of(&sqlite, 2);
    let topic = format!("products-{}", world.id);
    // None is taken.
    world.kafka.create(&topic, 1, &[("max.message.bytes", "20")]);
    let source = format!("--database {} --table products --chunk-size 1", sqlite.url);
    let (done, fails) = (world.script("cat > /dev/null"), world.script("cat > /dev/null; exit 3"));
    let named = |id| format!(" (the first has the key {id}, the last one {id})");
    let lost = |id| {
        format!(
            "cannot send the instant messages; what was changed is announced to nobody: announce the rows of this chunk{} \
             again",
            named(id)
        )
    };
    let failed = format!(
        "the action failed: exit status 3; what it may have changed is announced to nobody: announce the rows of this chunk{} \
         again",
        named(1)
    );
    let outlook = "; without a --checkpoint the next run begins with the first row; what it does not find any more it does not \
                   announce";
    for (source, action, told, outlook) in [
        ("-", &done, vec![lost(1)], ""),
        // The second chunk is done when it shows that nothing has come of the first.
        (&source, &done, vec![lost(1), lost(2)], outlook),
        ("-", &fails, vec![failed.clone()], ""),
        (&source, &fails, vec![failed], outlook),
    ] {
        let mut stream = world.stream_lines(&format!("-t {topic} --only instant {source} -- {action}"), lines(1));
        assert_eq!(stream.wait(), End::Status(1), "{source} {action}");
        let errors = stream.log_of("error");
        let are_told =
            errors.len() == told.len() && errors.iter().zip(&told).all(|(error, told)| error.starts_with(told));
        assert!(are_told, "{source} {action}: {errors:?}");
        assert!(!stream.says(&["delay messages"]), "{:?}", stream.log());
        let told = format!("failed after 0 rows{outlook}");
        assert_eq!(stream.log_of("info").last(), Some(&told), "{source} {action}");
    }
    assert_eq!(world.kafka.count(&topic), 0);
}

#[test]
fn of_a_re_index_that_fails_it_is_told_how_many_rows_are_done_at_most() {
    let world = World::new("at-most");
    let [.., sqlite] = block_on(primaries("ends_at_most"));
    products_of(&sqlite, 2);
    let topic = format!("products-{}", world.id);
    // None is taken.
    world.kafka.create(&topic, 1, &[("max.message.bytes", "20")]);
    let source = format!("-t {topic} --database {} --table products", sqlite.url);
    let keep = format!("--checkpoint {}", world.file("checkpoint").display());
    for (options, told) in [
        ("", "at most 2 rows; without a --checkpoint the next run begins with the first row"),
        (&keep, "0 rows; run it again to go on"),
    ] {
        let mut stream = world.stream(&format!("{source} {options}"));
        assert_eq!((stream.wait(), world.kafka.count(&topic)), (End::Status(1), 0), "{options}");
        assert_eq!(stream.log_of("info").last(), Some(&format!("failed after {told}")), "{options}");
    }
    // Nor is it told of lines how many of them have arrived.
    let mut of_lines = world.stream_lines(&format!("- -t {topic}"), lines(2));
    assert_eq!(of_lines.wait(), End::Status(1));
    assert_eq!(of_lines.log_of("info").last(), Some(&"failed after at most 2 rows".to_owned()));
    assert!(!of_lines.says(&["go on behind line"]), "{:?}", of_lines.log());
}

#[test]
fn a_run_of_lines_that_ends_early_tells_with_quiet_too_behind_which_line_the_next_one_is_to_go_on() {
    let world = World::new("behind-line");
    let [.., sqlite] = block_on(primaries("ends_behind_line"));
    products_of(&sqlite, 30);
    let named = format!("--database {} --table products", sqlite.url);
    let sql = "--sql 'UPDATE products SET price = price + 1 WHERE id IN (:keys)'";
    let action = world.script("cat > /dev/null");
    for options in [String::new(), format!("-- {action}"), format!("{named} {sql}")] {
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let text = format!("\n{}", lines(30));
        let mut stream = world.stream_lines(&format!("- -t {topic} -q --chunk-size 10 --pause 1h {options}"), text);
        world.eventually("a chunk is sent", || world.kafka.count(&topic) == 10);
        stream.signal(Signal::TERM);
        assert_eq!(stream.wait(), End::Status(75), "{options}");
        let told = "warn: the next run has to go on behind line 10 of stdin, blank ones not counted";
        assert!(stream.says(&[told]), "{options}: {:?}", stream.log());
    }
    assert_eq!(block_on(sqlite.texts("SELECT id FROM products WHERE price = 1")).len(), 10);
}

#[test]
fn a_run_that_fails_behind_a_commit_does_not_tell_a_key_that_its_table_has_left_behind() {
    let world = World::new("behind-commit");
    let [.., sqlite] = block_on(primaries("ends_commit"));
    block_on(sqlite.execute("CREATE TABLE products (id VARCHAR(999) PRIMARY KEY, price INTEGER)"));
    let large = "b".repeat(500);
    block_on(sqlite.execute(&format!("INSERT INTO products VALUES ('a', 0), ('{large}', 0), ('c', 0)")));
    let topic = format!("products-{}", world.id);
    // The second row's delay message is taken, its instant message is not.
    world.kafka.create(&topic, 1, &[("max.message.bytes", "400")]);
    world.kafka.create(&format!("{topic}-delay"), 1, &[("message.timestamp.type", "LogAppendTime")]);
    let options = "--chunk-size 1 --checkpoint-table -X compression.type=none --allow-unsafe message-size";
    let sql = "--sql 'UPDATE products SET price = price + 1 WHERE id IN (:keys)'";
    let command = format!("-t {topic} --database {} --table products {options} {sql}", sqlite.url);
    let mut stream = world.stream(&command);
    assert_eq!(stream.wait(), End::Status(1), "{:?}", stream.log());
    let told = "failed after 1 rows; run it again to go on".to_owned();
    assert_eq!(stream.log_of("info").last(), Some(&told), "{:?}", stream.log());
    let mut next = world.stream(&command);
    assert_eq!((next.wait(), world.kafka.count(&topic)), (End::Status(0), 2), "{:?}", next.log());
    assert!(next.says(&["info: going on behind key b", "b: 2 rows were done by 20"]), "{:?}", next.log());
    assert_eq!(block_on(sqlite.texts("SELECT DISTINCT price FROM products")), ["1"]);
}

#[test]
fn a_run_that_fails_tells_how_far_it_came_and_how_the_next_one_begins() {
    let world = World::new("failed-after");
    let [.., sqlite] = block_on(primaries("ends_failed"));
    products_of(&sqlite, 30);
    let run = |options: &str, text: &str| -> Process {
        let (topic, begun) =
            (world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1), world.file("begun"));
        let begun = begun.display();
        let action = world.script(&format!("cat > /dev/null; echo >> {begun}; [ $(wc -l < {begun}) -lt 3 ]"));
        let mut stream = world.stream_lines(&format!("-t {topic} --chunk-size 10 {options} -- {action}"), text);
        assert_eq!(stream.wait(), End::Status(1), "{options}: {:?}", stream.log());
        stream
    };
    let source = format!("--database {} --table products --chunk-time 1h", sqlite.url);
    let keep = format!("{source} --checkpoint {}", world.file("checkpoint").display());
    let behind = "warn: the next run has to go on behind line 20 of stdin, blank ones not counted";
    for (options, text, told) in [
        (
            &source,
            "",
            &["info: failed after 20 rows; without a --checkpoint the next run begins with the first row"][..],
        ),
        (&keep, "", &["info: failed after 20 rows; run it again to go on behind key 20"]),
        (&"- --chunk-wait 5s".to_owned(), lines(30).as_str(), &["info: failed after 20 rows", behind]),
    ] {
        let log = run(options, text).log();
        let [before @ .., error] = &log[..] else { panic!("{options}: {log:?}") };
        assert_eq!(&before[before.len() - told.len()..], told, "{log:?}");
        assert!(error.starts_with("error: the action failed: exit status 1; "), "{log:?}");
    }
    let figures = run(&format!("{source} --progress json"), "").log();
    let figures = figures.iter().rfind(|line| line.starts_with('{')).expect("it has shown its last figures");
    let figures: serde_json::Value = serde_json::from_str(figures).unwrap();
    assert_eq!((figures["done"].as_u64(), figures["finished"].as_bool()), (Some(20), Some(false)), "{figures}");
}

#[test]
fn of_lines_that_are_held_up_no_chunk_is_taken_ahead() {
    let world = World::new("not-taken");
    let topic = world.topic("products", 1);
    let [.., sqlite] = block_on(primaries("ends_lines"));
    let file = world.file("lines");
    // A chunk of these is larger than what is taken from a pipe at once.
    let line = format!("{{\"id\":1,\"pad\":\"{}\"}}\n", "x".repeat(1000));
    fs::write(&file, line.repeat(12_000)).unwrap();
    let held = format!("--throttle-database {} --throttle-query 'SELECT 1' --chunk-size 3000", sqlite.url);
    let command = format!("exec {STREAM} -t {topic} - {held} < {}", file.display());
    let mut stream = world.start("sh", &format!("-c \"{command}\""), &[]);
    world.eventually("it is held up", || {
        stream.ask();
        stream.says(&["; paused since "])
    });
    let taken = || {
        let stdin = fs::read_to_string(format!("/proc/{}/fdinfo/0", stream.pid)).unwrap();
        stdin.lines().find_map(|line| line.strip_prefix("pos:")).unwrap().trim().parse::<usize>().unwrap()
    };
    world.for_a_while(Duration::from_secs(1), "it takes no more than a buffer", || taken() <= 2 << 20);
    stream.signal(Signal::TERM);
    assert_eq!((stream.wait(), world.kafka.count(&topic)), (End::Status(75), 0));
    assert!(stream.says(&["info: 0 rows in "]), "{:?}", stream.log());
}
