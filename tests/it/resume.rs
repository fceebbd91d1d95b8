//! ksync-stream that ends early, and the next run that goes on: checkpoints, locks, time windows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ksync::database::Dialect;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stream::delayed;
use crate::support::{End, Primary, Process, World, block_on, primaries};

/// `items` with ids from 1, none of which is changed yet.
pub fn items_of(primary: &Primary, rows: u32) {
    block_on(primary.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"));
    let rows: Vec<String> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO items VALUES {}", rows.join(", "))));
}

pub const UPDATE: &str = "--sql 'UPDATE items SET n = n + 1 WHERE id IN (:keys)'";

pub fn topic(world: &World) -> String {
    world.topic_with_delay(&format!("items-{:06x}", rand::random::<u32>()), 1)
}

pub fn source(topic: &str, primary: &Primary) -> String {
    format!("-t {topic} --database {} --table items", primary.url)
}

pub fn checkpoint(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Payloads of the items with these ids.
pub fn payloads(ids: impl IntoIterator<Item = u32>) -> Vec<String> {
    ids.into_iter().map(|id| format!("{{\"id\":{id}}}")).collect()
}

pub fn instant(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).into_iter().map(|record| record.value.unwrap()).collect()
}

/// The payloads of the rows that were changed.
pub fn changed(primary: &Primary) -> BTreeSet<String> {
    let ids = block_on(primary.texts("SELECT id FROM items WHERE n > 0"));
    payloads(ids.iter().map(|id| id.parse().unwrap())).into_iter().collect()
}

#[test]
fn sigterm_leaves_a_checkpoint_that_the_next_run_goes_on_from() {
    let world = World::new("resume-term");
    for primary in block_on(primaries("resume_term")) {
        block_on(primary.execute("CREATE TABLE parts (a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b))"));
        block_on(primary.execute("INSERT INTO parts VALUES (1, 'x'), (1, 'y\"'), (2, 'x'), (3, 'x')"));
        let (topic, file, gate, got) = (topic(&world), world.file("checkpoint"), world.gate(), world.file("got"));
        let action = world.script(&format!("cat >> {}; await {gate}", got.display()));
        let command = format!(
            "-t {topic} --database {} --table parts --chunk-size 2 --checkpoint {} -- {action}",
            primary.url,
            file.display()
        );
        let mut stream = world.stream(&command);
        world.eventually("the action runs", || fs::read_to_string(&got).is_ok_and(|text| text.lines().count() == 2));
        stream.signal(Signal::TERM);
        world.eventually("the end was asked for", || stream.says(&["asked to end"]));
        gate.open();
        assert_eq!(stream.wait(), End::Status(75), "{primary:?}");
        let text = r#"asked to end before the end of the source; run it again to go on behind key 1, y""#;
        assert!(stream.says(&["info: ", text]), "{primary:?}");
        let mut kept = checkpoint(&file);
        let job = kept["job"].as_object_mut().unwrap();
        assert_eq!((job["table"].as_str(), job["key"].as_str()), (Some("parts"), Some("a, b")));
        assert_eq!(
            (kept["last"].take(), kept["rows"].take(), kept["messages"].take(), kept["finished"].take()),
            (json!([{"integer": 1}, {"text": "y\""}]), json!(2), json!(4), json!(false))
        );
        let mut stream = world.stream(&command);
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        assert!(stream.says(&[r#"info: going on behind key 1, y": 2 rows were done by 20"#]), "{primary:?}");
        let expected = [r#"{"a":1,"b":"x"}"#, r#"{"a":1,"b":"y\""}"#, r#"{"a":2,"b":"x"}"#, r#"{"a":3,"b":"x"}"#];
        assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), expected, "{primary:?}");
        assert_eq!(instant(&world, &topic), expected, "{primary:?}");
        // The second chunk was read, and covered, while the action of the first was at work.
        let covered = [&expected[..], &expected[2..]].concat();
        assert_eq!(delayed(&world, &topic), covered, "{primary:?}");
        assert_eq!(checkpoint(&file)["finished"], json!(true));
    }
}

#[test]
fn a_reindex_keeps_how_far_it_is_and_begins_anew_once_it_was_finished() {
    let world = World::new("resume-reindex");
    let [_, _, sqlite] = block_on(primaries("resume_reindex"));
    items_of(&sqlite, 10);
    let (topic, file) = (topic(&world), world.file("checkpoint"));
    let command = format!("{} --chunk-size 3 --checkpoint {}", source(&topic, &sqlite), file.display());
    assert_eq!(world.stream(&command).wait(), End::Status(0));
    // As it was after the second chunk.
    let mut kept = checkpoint(&file);
    (kept["last"], kept["rows"], kept["finished"]) = (json!([{"integer": 6}]), json!(6), json!(false));
    fs::write(&file, kept.to_string()).unwrap();
    let mut stream = world.stream(&command);
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: going on behind key 6: 6 rows were done by "]));
    assert_eq!((checkpoint(&file)["rows"].clone(), instant(&world, &topic).len()), (json!(10), 14));
    let mut stream = world.stream(&command);
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: ", "says that this job was finished at ", ", with 10 rows: beginning anew"]));
    assert_eq!(instant(&world, &topic)[14..], payloads(1..=10));
}

#[test]
fn a_finished_action_is_not_done_again_unless_the_job_is_begun_anew() {
    let world = World::new("finished");
    for primary in block_on(primaries("resume_finished")) {
        items_of(&primary, 10);
        for (keep, label) in [
            (format!("--checkpoint {0}/finished-{primary:?}", world.dir.display()), "finished-"),
            ("--checkpoint-table=\"progress\"".to_owned(), "the checkpoint in table progress"),
        ] {
            block_on(primary.execute("UPDATE items SET n = 0"));
            let topic = topic(&world);
            let command = format!("{} --chunk-size 4 {keep} {UPDATE}", source(&topic, &primary));
            for (restart, told, n) in [("", false, "1"), ("", true, "1"), ("--restart", false, "2")] {
                // A table is that of the database under any of its addresses.
                let address = if told && keep.contains("table") { "localhost" } else { "127.0.0.1" };
                let mut stream = world.stream(&format!("{command} {restart}").replace("127.0.0.1", address));
                assert_eq!(stream.wait(), End::Status(0), "{primary:?} {keep}");
                let text = "says that this job was finished at ";
                let says = stream.says(&["info: ", label, text, ", with 10 rows; --restart begins it anew"]);
                assert_eq!(says, told, "{primary:?} {keep}");
                assert_eq!(block_on(primary.texts("SELECT DISTINCT n FROM items")), [n], "{primary:?} {keep}");
            }
            assert_eq!(instant(&world, &topic).len(), 20, "{primary:?} {keep}");
        }
    }
}

#[test]
fn a_second_run_of_the_same_job_ends_at_once_with_status_4_and_another_job_runs_beside_it() {
    let world = World::new("twice");
    for primary in block_on(primaries("resume_twice")) {
        items_of(&primary, 4);
        let (topic, gate, file) = (topic(&world), world.gate(), world.file("checkpoint"));
        let action = world.script(&format!("cat > /dev/null; await {gate}"));
        let begun = world.file("begun");
        let slow = world.script(&format!("cat > {}; await {gate}", begun.display()));
        let run =
            |options: &str, action: &str| world.stream(&format!("{} {options} -- {action}", source(&topic, &primary)));
        let with_file = format!("--checkpoint {}", file.display());
        let mut first = run(&with_file, &slow);
        world.eventually("the first is at work", || begun.exists());

        let mut second = run(&with_file, &slow);
        assert_eq!(second.wait(), End::Status(4), "{primary:?}");
        let holder = format!("another run uses the checkpoint {}: process {} on ", file.display(), first.pid);
        let told = second.log_of("error");
        assert!(told.len() == 1 && told[0].starts_with(&holder) && told[0].contains(" since 20"), "{told:?}");

        let mut second = run("", &slow);
        assert_eq!(second.wait(), End::Status(4), "{primary:?}");
        let holder = match primary.dialect {
            Dialect::Postgres => " from 127.0.0.1 since 20",
            Dialect::MySql => " from 127.0.0.1",
            Dialect::Sqlite => "",
        };
        let told = second.log_of("error");
        let text = format!(
            "cannot begin (topic {topic}, table items): a session of the database is at the same job already{holder}"
        );
        assert!(told.len() == 1 && told[0].starts_with(&text), "{primary:?}: {told:?}");

        // By another statement, or with another condition, it is another job.
        let mut beside = run("--where 'id < 3'", "cat");
        assert_eq!(beside.wait(), End::Status(0), "{primary:?}");
        // Without an action nothing can be done twice that must not.
        let mut beside = world.stream(&source(&topic, &primary));
        assert_eq!(beside.wait(), End::Status(0), "{primary:?}");
        gate.open();
        assert_eq!(first.wait(), End::Status(0), "{primary:?}");
        assert_eq!(run("", &action).wait(), End::Status(0), "{primary:?}");
    }
}

#[test]
fn a_run_ends_with_its_time_and_the_next_one_goes_on() {
    let world = World::new("window");
    let [_, _, sqlite] = block_on(primaries("resume_window"));
    items_of(&sqlite, 6);
    let (topic, file, got) = (topic(&world), world.file("checkpoint"), world.file("got"));
    let (first, begun) = (world.gate(), world.file("begun"));
    let slow = world.script(&format!("cat >> {}; touch {}; await {first}", got.display(), begun.display()));
    let run = |options: &str| -> Process {
        let keep = format!("--chunk-size 2 --checkpoint {}", file.display());
        world.stream(&format!("{} {keep} {options} -- {slow}", source(&topic, &sqlite)))
    };
    let over = |stream: &Process, option: &str| {
        stream.says(&["info: the time is over (", option, "): finishing what is under way"])
    };

    let mut stream = run("--until 2020-01-01T00:00Z");
    assert_eq!(stream.wait(), End::Status(75));
    assert!(over(&stream, "--until 2020-01-01T00:00:00Z") && !begun.exists());

    let mut stream = run("--max-time 15s");
    world.eventually("a chunk is under way", || begun.exists());
    world.eventually("its time is over", || over(&stream, "--max-time 15s"));
    assert!(stream.is_running());
    first.open();
    assert_eq!(stream.wait(), End::Status(75));
    assert!(stream.says(&["asked to end before the end of the source; run it again to go on behind key 2"]));
    assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), payloads(1..=2));

    assert_eq!(run("--max-time 1h").wait(), End::Status(0));
    assert_eq!(fs::read_to_string(&got).unwrap().lines().collect::<Vec<_>>(), payloads(1..=6));
}
