//! ksync-stream --verify: what it finds, what it leaves alone, and how it is repaired.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{End, Primary, Process, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

const ROWS: u32 = 2500;

/// A store that is a file, an object with a version for each key.
const STORE: &str = r#"#!/usr/bin/env python3
import json, sys
held = json.load(open("store.json"))
if sys.argv[1:] == ["--list"]:
    for key in held:
        print(json.dumps({"key": key}))
else:
    for line in sys.stdin:
        row = json.loads(line)
        if row["key"] in held:
            print(json.dumps({"key": row["key"], "version": held[row["key"]]}))
"#;

fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(20), price INTEGER)"));
    let rows: Vec<String> = (1..=ROWS).map(|id| format!("({id}, 'p{id}', {})", id % 7)).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

/// What a store holds that is equal to them.
fn equal() -> serde_json::Map<String, Value> {
    (1..=ROWS).map(|id| (id.to_string(), json!({ "price": id % 7, "id": id, "name": format!("p{id}") }))).collect()
}

fn keep(world: &World, held: serde_json::Map<String, Value>) {
    fs::write(world.dir.join("store.json"), Value::Object(held).to_string()).unwrap();
}

/// A run of ksync-stream --verify, which prints into the file `out`.
fn verify(world: &World, arguments: &str) -> Process {
    let script = world.script(&format!("exec {STREAM} --verify {arguments} >out"));
    world.start(&script, "", &[("KSYNC_DELAY", "200ms")])
}

/// The lines that were printed, in the order of their keys.
fn printed(world: &World) -> Vec<Value> {
    let out = fs::read_to_string(world.dir.join("out")).unwrap();
    let mut lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["key"].as_str().unwrap().to_owned());
    lines
}

/// Key and difference of each.
fn differences(world: &World) -> Vec<String> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    printed(world).iter().map(|line| format!("{} {}", text(line, "key"), text(line, "difference"))).collect()
}

#[test]
fn what_is_missing_stale_or_surplus_in_a_store_is_found_and_nothing_else() {
    let world = World::new("verify");
    let store = world.script_of(STORE);
    for primary in block_on(primaries("verify")) {
        products_of(&primary);
        let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let source = format!("-t {topic} --database '{}' --table products", primary.url);
        keep(&world, equal());
        assert_eq!(verify(&world, &format!("{source} -- {store}")).wait(), End::Status(0), "{primary:?}");
        assert_eq!(printed(&world), Vec::<Value>::new(), "{primary:?}");

        let mut held = equal();
        held.remove("7");
        held["1200"]["price"] = json!(70);
        held.insert("9999".to_owned(), json!({}));
        held.insert("-5".to_owned(), json!({}));
        keep(&world, held);
        let mut run = verify(&world, &format!("{source} -- {store}"));
        assert_eq!(run.wait(), End::Status(1), "{primary:?}");
        assert!(run.says(&["4 differences: 1 missing, 1 stale, 2 surplus", "--repair"]), "{primary:?}");
        assert_eq!(differences(&world), ["-5 surplus", "1200 stale", "7 missing", "9999 surplus"], "{primary:?}");
        assert_eq!(
            printed(&world)[1],
            json!({
                "key": "1200", "difference": "stale",
                "version": { "id": 1200, "name": "p1200", "price": 3 },
                "held": { "id": 1200, "name": "p1200", "price": 70 },
            })
        );
        assert!(world.kafka.records(&topic).is_empty(), "nothing is announced that nobody asked for");

        // A cache may forget; what does not match the condition is not wanted in the store.
        for (options, expected) in [
            ("--cache", &["-5 surplus", "1200 stale", "9999 surplus"][..]),
            ("--cache --where 'id <> 2500'", &["-5 surplus", "1200 stale", "2500 surplus", "9999 surplus"]),
        ] {
            assert_eq!(verify(&world, &format!("{source} {options} -- {store}")).wait(), End::Status(1), "{primary:?}");
            assert_eq!(differences(&world), expected, "{primary:?}");
        }

        let query = "--query 'SELECT name, id, price FROM products WHERE id <> 2500' --key id";
        let query = format!("-t {topic} --database '{}' {query} -- {store}", primary.url);
        assert_eq!(verify(&world, &query).wait(), End::Status(1), "{primary:?}");
        let expected = ["-5 surplus", "1200 stale", "2500 surplus", "7 missing", "9999 surplus"];
        assert_eq!(differences(&world), expected, "{primary:?}");

        // Only the version counts: as a value where it is one column.
        block_on(primary.execute("UPDATE products SET price = NULL WHERE id = 3"));
        let mut held = equal();
        held.values_mut().for_each(|held| *held = held["price"].to_string().into());
        (held["3"], held["1200"]) = (Value::Null, json!("70"));
        keep(&world, held);
        let command = format!("{source} --version-column price -- {store}");
        assert_eq!(verify(&world, &command).wait(), End::Status(1), "{primary:?}");
        assert_eq!(
            printed(&world),
            [json!({ "key": "1200", "difference": "stale", "version": 3, "held": "70" })],
            "{primary:?}"
        );
    }
}

#[test]
fn keys_of_every_kind_are_looked_up_in_the_primary() {
    let world = World::new("verify-keys");
    let store = world.script_of(STORE);
    for primary in block_on(primaries("verify_keys")) {
        let of = |postgres: &'static str, mysql: &'static str, sqlite: &'static str| match primary.dialect {
            ksync::database::Dialect::Postgres => postgres,
            ksync::database::Dialect::MySql => mysql,
            ksync::database::Dialect::Sqlite => sqlite,
        };
        for (at, (columns, rows, keys)) in [
            (
                "a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b)",
                "(1, 'x'), (1, 'y\"')",
                &[r#"[1,"x"]"#, r#"[1,"y\""]"#][..],
            ),
            ("a VARCHAR(9) PRIMARY KEY", "('007'), ('a'), (' ')", &["007", "a", " "]),
            ("a DECIMAL(9, 2) PRIMARY KEY", "(0.5), (7.25)", &[of("0.50", "0.50", "0.5"), "7.25"]),
            (
                of("a UUID PRIMARY KEY", "a BINARY(2) PRIMARY KEY", "a BLOB PRIMARY KEY"),
                of("('f81d4fae-7dec-11d0-a765-00a0c91e6bf6')", "(X'00ff')", "(X'00ff')"),
                &[of("f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "\\x00ff", "\\x00ff")],
            ),
        ]
        .into_iter()
        .enumerate()
        {
            block_on(primary.execute(&format!("CREATE TABLE t{at} ({columns})")));
            block_on(primary.execute(&format!("INSERT INTO t{at} VALUES {rows}")));
            let column = if at == 0 { "b" } else { "a" };
            let topic = world.topic(&format!("t-{:06x}", rand::random::<u32>()), 1);
            // The store says that it holds them, but not what.
            keep(&world, keys.iter().map(|key| ((*key).to_owned(), json!("?"))).collect());
            let source = format!("-t {topic} --database '{}' --table t{at}", primary.url);
            let command = format!("{source} --version-column {column} --repair -- {store}");
            assert_eq!(verify(&world, &command).wait(), End::Status(1), "{primary:?}: {columns}");
            let mut expected: Vec<_> = keys.iter().map(|key| format!("{key} stale")).collect();
            expected.sort();
            assert_eq!(differences(&world), expected, "{primary:?}: {columns}");
            let announced = world.kafka.records(&topic);
            assert_eq!(announced.len(), keys.len(), "{primary:?}: {columns}");
            assert!(announced.iter().all(|record| keys.contains(&record.key.as_deref().unwrap())), "{primary:?}");
        }
        // What cannot be a key is told, and not announced.
        products_of(&primary);
        let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let mut held = equal();
        held.insert("ten".to_owned(), json!(1));
        let mut expected = vec!["ten surplus"];
        if primary.dialect == ksync::database::Dialect::Postgres {
            held.insert("3000000000".to_owned(), json!(1));
            expected.insert(0, "3000000000 surplus");
        }
        keep(&world, held);
        let source = format!("-t {topic} --database '{}' --table products", primary.url);
        let mut run = verify(&world, &format!("{source} --repair -- {store}"));
        assert_eq!(run.wait(), End::Status(1), "{primary:?}");
        assert_eq!(differences(&world), expected, "{primary:?}");
        if primary.dialect != ksync::database::Dialect::Sqlite {
            assert!(run.says(&["keys of the store cannot be keys of the table"]), "{primary:?}");
            assert!(world.kafka.records(&topic).is_empty(), "{primary:?}");
        }
    }
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
    let mut run = verify(&world, &format!("{source} --delay 3s --statement-timeout 500ms -- {store}"));
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
fn what_is_on_its_way_is_no_difference() {
    let world = World::new("verify-late");
    let [.., primary] = block_on(primaries("verify_late"));
    products_of(&primary);
    let topic = world.topic("products", 1);
    let source = format!("-t {topic} --database '{}' --table products --version-column price", primary.url);
    // Of the product 1 it says something else each time that it is asked.
    let store = |answers: &str| {
        world.script_of(&format!(
            r#"#!/usr/bin/env python3
import json, os, sys
count = sum(1 for _ in open("asked")) if os.path.exists("asked") else 0
if sys.argv[1:] == ["--list"]:
    print(json.dumps({{"key": "1"}}))
    sys.exit()
rows = [json.loads(line) for line in sys.stdin]
for row in rows:
    held = row["version"]
    if row["key"] == "1":
        open("asked", "a").write("\n")
        held = {answers}[count]
    if held is not None:
        print(json.dumps({{"key": row["key"], "version": held}}))
"#
        ))
    };
    for (answers, told, end) in [
        // The price of 1 is 1.
        ("[None, 1]", "no difference", 0),
        ("[0, 1]", "no difference", 0),
        ("[0, 5, 1]", "no difference", 0),
        ("[0, 5, 5]", "1 differences: 0 missing, 1 stale, 0 surplus", 1),
        ("[0, None, 5, None]", "1 keys differed at each look, but the store had changed them in between", 0),
        ("[0, 0]", "1 differences: 0 missing, 1 stale, 0 surplus", 1),
    ] {
        let mut run = verify(&world, &format!("{source} -- {}", store(answers)));
        assert_eq!(run.wait(), End::Status(end), "{answers}");
        assert!(run.says(&[told]), "{answers}");
        fs::remove_file(world.dir.join("asked")).unwrap();
    }
    // A repair that writes something wrong repairs nothing.
    let mut run = verify(&world, &format!("{source} --repair -- {}", store("([None, None] + [5] * 99)")));
    assert_eq!(run.wait(), End::Status(1), "{:?}", run.log());
    assert!(run.says(&["1 of them are left"]), "{:?}", run.log());
}

/// The store is a copy in another SQLite file, kept by a handler of examples/.
#[test]
fn what_differs_is_announced_and_is_gone_once_a_consumer_has_handled_it() {
    let world = World::new("verify-repair");
    let [.., primary] = block_on(primaries("verify_repair"));
    products_of(&primary);
    let copy =
        Primary { dialect: primary.dialect, url: format!("sqlite:{}?mode=rwc", world.dir.join("copy.db").display()) };
    products_of(&copy);
    block_on(copy.execute(
        "DELETE FROM products WHERE id IN (3, 4); UPDATE products SET price = 100 WHERE id = 5;
         INSERT INTO products VALUES (3000, 'gone', 1)",
    ));
    let store = world.script_of(
        r#"#!/usr/bin/env python3
import json, sqlite3, sys
copy = sqlite3.connect("copy.db", timeout=30)
if sys.argv[1:] == ["--list"]:
    for [id] in copy.execute("SELECT id FROM products"):
        print(json.dumps({"key": id}))
for line in sys.stdin:
    id = json.loads(line)["payload"]["id"]
    for row in copy.execute("SELECT id, name, price FROM products WHERE id = ?", [id]):
        print(json.dumps({"key": str(id), "version": dict(zip(["id", "name", "price"], row))}))
"#,
    );
    let topic = world.topic("products", 1);
    let command = format!("-t {topic} --database '{}' --table products --repair -- {store}", primary.url);
    // Nobody consumes.
    let mut run = verify(&world, &command);
    assert_eq!(run.wait(), End::Status(1));
    assert_eq!(differences(&world), ["3 missing", "3000 surplus", "4 missing", "5 stale"]);
    assert!(run.says(&["4 differences: 2 missing, 1 stale, 1 surplus", "4 of them are left"]));
    let mut announced: Vec<_> = world.kafka.records(&topic).iter().map(|record| record.line()).collect();
    announced.sort();
    assert_eq!(announced, ["3000|{\"id\":3000}", "3|{\"id\":3}", "4|{\"id\":4}", "5|{\"id\":5}"]);

    let place = primary.url.trim_start_matches("sqlite:").to_owned();
    let files = [("PRIMARY_DB", place.as_str()), ("SECONDARY_DB", "copy.db")];
    let handler = format!("{PROJECT}/examples/handlers/products.py");
    block_on(copy.execute("DELETE FROM products WHERE id > 1500"));
    let consumer = env!("CARGO_BIN_EXE_ksync-consume");
    let _consumer = world.start(consumer, &format!("-t {topic} -n indexer -- {handler}"), &files);
    world.eventually("the consumer has handled what was announced", || {
        block_on(copy.texts("SELECT count(*) FROM products WHERE id = 3")) == ["1"]
    });
    let script = world.script(&format!("exec {STREAM} --verify {command} >out"));
    let mut run = world.start(&script, "", &[("KSYNC_DELAY", "5s")]);
    assert_eq!(run.wait(), End::Status(0));
    assert!(run.says(&["1000 differences: 1000 missing, 0 stale, 0 surplus; they were announced, and are gone"]));
    assert_eq!(
        block_on(copy.texts("SELECT sum(price) FROM products")),
        block_on(primary.texts("SELECT sum(price) FROM products"))
    );
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
