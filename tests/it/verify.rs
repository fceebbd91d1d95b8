//! ksync-stream --verify: what it finds, what it leaves alone, and how it is repaired.

use std::fs;

use serde_json::{Value, json};

use crate::support::{End, Primary, Process, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

pub const ROWS: u32 = 2500;

/// A store that is a file, an object with a version for each key.
pub const STORE: &str = r#"#!/usr/bin/env python3
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

pub fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(20), price INTEGER)"));
    let rows: Vec<String> = (1..=ROWS).map(|id| format!("({id}, 'p{id}', {})", id % 7)).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

/// What a store holds that is equal to them.
pub fn equal() -> serde_json::Map<String, Value> {
    (1..=ROWS).map(|id| (id.to_string(), json!({ "price": id % 7, "id": id, "name": format!("p{id}") }))).collect()
}

pub fn keep(world: &World, held: serde_json::Map<String, Value>) {
    fs::write(world.dir.join("store.json"), Value::Object(held).to_string()).unwrap();
}

/// A run of ksync-stream --verify, which prints into the file `out`.
pub fn verify(world: &World, arguments: &str) -> Process {
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
pub fn differences(world: &World) -> Vec<String> {
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
fn a_digest_or_the_time_of_the_last_change_is_version_enough() {
    let world = World::new("verify-digest");
    let store = world.script_of(STORE);
    let [postgres, mariadb, _] = block_on(primaries("verify_digest"));
    for primary in [&postgres, &mariadb] {
        products_of(primary);
        block_on(primary.execute("ALTER TABLE products ADD updated_at TIMESTAMP DEFAULT '2026-11-22 03:00:00'"));
    }
    let by_digest = |digest: &str| {
        format!("--query 'SELECT id, {digest} AS digest FROM products' --key id --version-column digest")
    };
    let by_time = "--table products --version-column updated_at".to_owned();
    let [of_postgres, of_mariadb] = ["md5(json_build_array(name, price)::text)", "md5(json_array(name, price))"];
    for (primary, source, version) in [
        (&postgres, by_digest(of_postgres), of_postgres),
        (&mariadb, by_digest(of_mariadb), of_mariadb),
        (&postgres, by_time, "replace(updated_at::text, ' ', 'T')"),
    ] {
        let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let versions = block_on(primary.texts(&format!("SELECT {version} FROM products ORDER BY id")));
        keep(&world, (1..=ROWS).map(|id| id.to_string()).zip(versions.into_iter().map(Value::from)).collect());
        let command = format!("-t {topic} --database '{}' {source} -- {store}", primary.url);
        assert_eq!(verify(&world, &command).wait(), End::Status(0), "{primary:?} {source}: {:?}", printed(&world));
        let later = "updated_at = updated_at + INTERVAL '1' SECOND";
        block_on(primary.execute(&format!("UPDATE products SET price = price + 10, {later} WHERE id = 7")));
        assert_eq!(verify(&world, &command).wait(), End::Status(1), "{primary:?} {source}");
        assert_eq!(differences(&world), ["7 stale"], "{primary:?} {source}");
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
            // What looks like a number or like bytes, in SQLite in a column without a type.
            (
                of("a VARCHAR(9) PRIMARY KEY", "a VARCHAR(9) PRIMARY KEY", "a PRIMARY KEY"),
                of(r"('7'), ('\x41'), ('2.5')", r"('7'), ('\\x41'), ('2.5')", r"('7'), ('\x41'), (2.5)"),
                &["7", r"\x41", "2.5"],
            ),
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
    let mut run = world.start(&script, "", &[("KSYNC_DELAY", "15s")]);
    assert_eq!(run.wait(), End::Status(0));
    assert!(run.says(&["1000 differences: 1000 missing, 0 stale, 0 surplus; they were announced, and are gone"]));
    assert_eq!(
        block_on(copy.texts("SELECT sum(price) FROM products")),
        block_on(primary.texts("SELECT sum(price) FROM products"))
    );
}
