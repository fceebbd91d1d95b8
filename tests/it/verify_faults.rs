//! ksync-stream --verify where something is in the way: rows that go meanwhile, little memory, a database or a command that
//! fails, a signal.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::support::{End, World, block_on, primaries};
use crate::verify::{ROWS, STORE, differences, equal, keep, products_of, verify};

#[test]
fn what_differed_is_told_once_though_its_row_goes_meanwhile_and_the_store_lists_it_twice() {
    let world = World::new("verify-once");
    let [.., primary] = block_on(primaries("verify_once"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    // Its list begins when all rows were compared. Looks are of 1000 keys.
    let store = world.script_of(&format!(
        r#"#!/usr/bin/env python3
import json, sqlite3, sys
if sys.argv[1:] == ["--list"]:
    with sqlite3.connect("{}", timeout=30) as primary:
        primary.execute("DELETE FROM products WHERE id IN (1, {ROWS})")
    for key in [*range(1, {ROWS} + 1), 9999, *range(1, {ROWS} + 1), 9999]:
        print(json.dumps({{"key": key}}))
for line in sys.stdin:
    print(json.dumps({{"key": json.loads(line)["key"], "version": "old"}}))
"#,
        primary.url.trim_start_matches("sqlite:")
    ));
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let mut run = verify(&world, &format!("{source} -- {store}"));
    assert_eq!(run.wait(), End::Status(1), "{:?}", run.log());
    let surplus = [1, ROWS, 9999].map(|id| format!("{id} surplus"));
    let mut expected: Vec<_> = (2..ROWS).map(|id| format!("{id} stale")).chain(surplus).collect();
    expected.sort();
    let mut told = differences(&world);
    told.sort();
    assert_eq!(told, expected);
    assert!(run.says(&["2501 differences: 0 missing, 2498 stale, 3 surplus"]), "{:?}", run.log());
}

#[test]
fn a_key_that_can_be_none_of_the_table_is_told_once_though_the_store_lists_it_twice() {
    let world = World::new("verify-unfit");
    let [primary, ..] = block_on(primaries("verify_unfit"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    // Of one that is too large the database says so. Looks are of 1000 keys.
    let store = world.script_of(&format!(
        r#"#!/usr/bin/env python3
import json, sys
if sys.argv[1:] == ["--list"]:
    for key in 2 * ["ten", 3000000000, *range(1, {ROWS} + 1)]:
        print(json.dumps({{"key": key}}))
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({{"key": row["key"], "version": row["version"]}}))
"#
    ));
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let mut run = verify(&world, &format!("{source} -- {store}"));
    assert_eq!(run.wait(), End::Status(1), "{:?}", run.log());
    assert_eq!(differences(&world), ["3000000000 surplus", "ten surplus"]);
    assert!(run.says(&["2 keys of the store cannot be keys of the table"]), "{:?}", run.log());
}

#[test]
fn a_database_that_refuses_to_answer_says_not_that_a_row_is_gone() {
    let world = World::new("verify-refused");
    let [primary, ..] = block_on(primaries("verify_refused"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    let mut held = equal();
    held.remove("7");
    held.insert("0".to_owned(), json!(1));
    keep(&world, held);
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    let store = world.script_of(STORE);
    let mut run = verify(&world, &format!("{source} --delay 10s --statement-timeout 3s -- {store}"));
    world.eventually("it has seen differences", || run.says(&["2 keys differ; looking again"]));
    block_on(async {
        let mut connection = PgConnection::connect(&primary.url).await.unwrap();
        sqlx::raw_sql("BEGIN; LOCK TABLE products").execute(&mut connection).await.unwrap();
        world.eventually("it has ended", || !run.is_running());
    });
    assert_eq!((run.wait(), differences(&world)), (End::Status(1), vec![]));
    assert!(run.says(&["error: ", "canceling statement due to statement timeout"]), "{:?}", run.log());
}

#[test]
fn later_looks_take_no_more_memory_than_a_chunk_may() {
    let world = World::new("verify-wide");
    let [.., primary] = block_on(primaries("verify_wide"));
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, text VARCHAR(100000))"));
    for id in 1..=100 {
        block_on(primary.execute(&format!("INSERT INTO products VALUES ({id}, '{}')", "x".repeat(100_000))));
    }
    let topic = world.topic("products", 1);
    let store = world.script("test \"$1\" = --list || wc -l >>asked");
    let source = format!("-t {topic} --database '{}' --table products --chunk-bytes 1MiB", primary.url);
    assert_eq!(verify(&world, &format!("{source} -- {store}")).wait(), End::Status(1));
    assert_eq!(differences(&world).len(), 100);
    let asked = fs::read_to_string(world.dir.join("asked")).unwrap();
    let asked: Vec<u32> = asked.lines().map(|count| count.trim().parse().unwrap()).collect();
    assert_eq!(asked.iter().sum::<u32>(), 200, "each is looked at twice");
    assert!(asked.iter().all(|count| *count <= 11), "{asked:?}");
}

#[test]
fn a_command_that_is_none_for_it_is_told_so() {
    let world = World::new("verify-wrong");
    let [.., primary] = block_on(primaries("verify_wrong"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    let source = format!("-t {topic} --database '{}' --table products --version-column price", primary.url);
    let telling = r#"printf '{"key":"1","version":1}\n'"#;
    for (body, end, said) in [
        ("cat >/dev/null; exit 75", 75, "the command that tells what the store holds failed: exit status 75"),
        ("cat >/dev/null; exit 78", 78, "exit status 78"),
        ("cat >/dev/null; exit 3", 1, "exit status 3"),
        ("exit 0", 1, "bytes of its input unread"),
        ("cat >/dev/null; echo hello", 1, "it printed 'hello' where"),
        ("cat >/dev/null; echo '{\"key\":\"0\",\"version\":1}'", 1, "nobody asked for key '0'"),
        ("cat >/dev/null; echo '{\"key\":\"1\"}'", 1, "key '1' has no version"),
        (&format!("cat >/dev/null; {telling}; {telling}"), 1, "it told twice of key '1'"),
        (
            &format!("if [ -z \"$1\" ] && grep -q '\"key\":\"1\",'; then cat >/dev/null; {telling}; fi"),
            1,
            "the command printed nothing with --list, although the store holds 1 of the rows",
        ),
    ] {
        let mut run = verify(&world, &format!("{source} -- {}", world.script(body)));
        assert_eq!(run.wait(), End::Status(end), "{body}");
        assert!(run.says(&[said]), "{body}");
    }
    for (arguments, said) in [
        (format!("{source} "), "<COMMAND>"),
        (format!("{source} --sql 'x' -- true"), "--sql"),
        (format!("- -t {topic} -- true"), "cannot be used with"),
    ] {
        let mut run = verify(&world, &arguments);
        assert_eq!(run.wait(), End::Status(2), "{arguments}");
        assert!(run.says(&[said]), "{arguments}");
    }
}

#[test]
fn a_signal_ends_it_and_its_command_at_once() {
    let world = World::new("verify-term");
    let [.., primary] = block_on(primaries("verify_term"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    let source = format!("-t {topic} --database '{}' --table products", primary.url);
    for body in
        ["cat >/dev/null; [ -n \"$1\" ] || { touch begun; sleep 600; }", "cat >/dev/null; touch begun; sleep 600"]
    {
        let mut run = verify(&world, &format!("{source} -- {}", world.script(body)));
        world.eventually("the command is at work", || Path::new(&world.dir.join("begun")).exists());
        run.signal(Signal::TERM);
        assert_eq!(run.wait(), End::Status(75));
        assert!(run.says(&["asked to end before all was compared"]));
        world.eventually("the command is gone", || world.processes() == 0);
        fs::remove_file(world.dir.join("begun")).unwrap();
    }
}
