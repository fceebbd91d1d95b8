//! Records of all kinds for the handlers of real stores: their keys, tombstones, and what does not fit.

use std::fs;

use ksync::database::Dialect;
use serde_json::{Value, json};

use crate::isolation::letters;
use crate::secondaries::{CONSUME, Shop, handler};
use crate::support::{End, Message, Primary, block_on, value};

#[test]
fn a_row_that_the_mapping_refuses_is_named_and_the_others_are_indexed() {
    let shop = Shop::open("secondaries-refused");
    let dead = shop.world.topic("dead", 1);
    shop.search("PUT", "/_mapping", r#"{"properties": {"name": {"type": "integer"}}}"#);
    shop.change(
        "INSERT INTO $ SELECT n, CASE n WHEN 5 THEN 'five' ELSE n::text END, n FROM generate_series(1, 10) AS n",
    );
    shop.announce(1..=10);
    let mut consumer = shop.consume("opensearch", &format!("-e --dead-letter={dead}"));
    assert_eq!(consumer.wait(), End::Status(3));
    let mut expected = shop.rows(&shop.primary);
    expected.remove(4);
    assert_eq!(shop.stored("opensearch", 10), expected);
    let letters = shop.world.kafka.records(&dead);
    let header = |name: &str| &letters[0].headers.iter().find(|(found, _)| found == name).unwrap().1;
    assert_eq!((letters.len(), letters[0].key.as_deref(), header("ksync.offset").as_str()), (1, Some("5"), "4"));
    assert!(header("ksync.error").contains("mapper_parsing_exception: failed to parse field [name]"), "{letters:?}");
}

#[test]
fn a_key_that_does_not_fit_is_put_aside_and_a_missing_table_ends_the_consumer() {
    let shop = Shop::open("secondaries-keys");
    shop.change("INSERT INTO $ VALUES (1, 'a', 1), (2, 'b', 2)");
    shop.announce([1]);
    let odd = [r#"{"id":"it's"}"#, r#"{"no":1}"#, r#"{"id":"2"}"#, r#"{"id":99999999999}"#];
    shop.world.kafka.produce(&shop.topic, odd.map(value));
    for store in ["redis", "postgres_copy"] {
        let dead = shop.world.topic(&format!("dead-{store}"), 1);
        assert_eq!(shop.consume(store, &format!("-e --dead-letter={dead}")).wait(), End::Status(3), "{store}");
        let mut offsets = letters(&shop.world, &dead);
        offsets.sort();
        assert_eq!(offsets, [1, 2, 4], "{store}");
        assert_eq!(shop.stored(store, 2), shop.rows(&shop.primary), "{store}");
    }
    shop.change("DROP TABLE $");
    assert_eq!(shop.consume("opensearch", "-e").wait(), End::Status(78));
}

#[test]
fn a_key_of_several_columns_names_its_row_as_ksync_writes_it() {
    let shop = Shop::open("secondaries-columns");
    shop.change("INSERT INTO $ VALUES (1, 'é \"a\"', 5), (3, 'c', 6)");
    let tombstone = Message { key: Some(br#"[2,"b"]"#.to_vec()), ..Message::default() };
    // The last one is as the clients of applications write it.
    let [of_stream, of_client] = [r#"{"id":1,"name":"é \"a\""}"#, r#"{"id":[3,"c"]}"#].map(value);
    shop.world.kafka.produce(&shop.topic, [of_stream, tombstone, of_client]);
    let command = format!("-t {} -n redis -e -- {}", shop.topic, handler("redis").display());
    assert_eq!(shop.start(CONSUME, &command, &[("KEY", "id,name")]).wait(), End::Status(0));
    let row = |key: &str| shop.connect("redis").field(&format!("{}:{key}", shop.table), "row");
    assert_eq!(row(r#"[1,"é \"a\""]"#), Some(r#"{"id": 1, "name": "é \"a\"", "price": 5}"#.to_owned()));
    assert_eq!(row(r#"[2,"b"]"#), Some(String::new()));
    assert_eq!(row(r#"[3,"c"]"#), Some(r#"{"id": 3, "name": "c", "price": 6}"#.to_owned()));
}

#[test]
fn what_a_copy_holds_is_told_whatever_type_its_key_has() {
    let shop = Shop::open("secondaries-holds");
    let holds = handler("postgres_copy_holds");
    let uuid = "5aa4d2fb-2d8d-4e49-b6d5-9f0e62635e0c";
    for (kind, key) in [("BIGINT", "3000000000"), ("TEXT", "a\tb"), ("UUID", uuid)] {
        shop.change_copy("DELETE FROM $");
        shop.change_copy(&format!("ALTER TABLE $ ALTER id TYPE {kind} USING id::text::{kind}"));
        shop.change_copy(&format!("INSERT INTO $ VALUES ('{key}', 'a', 1)"));
        let asked = shop.world.file("asked");
        fs::write(&asked, format!("{}\n", json!({"key": key}))).unwrap();
        let run = |options: &str| {
            let told = shop.world.file("told");
            let command = format!("exec {} {options} <{} >{}", holds.display(), asked.display(), told.display());
            assert_eq!(shop.start(&shop.world.script(&command), "", &[]).wait(), End::Status(0), "{kind}");
            let lines = fs::read_to_string(told).unwrap();
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        };
        let id = if kind == "BIGINT" { json!(3_000_000_000_u64) } else { json!(key) };
        assert_eq!(run(""), [json!({"key": key, "version": {"id": id, "name": "a", "price": 1}})]);
        assert_eq!(run("--list"), [json!({"key": key})]);
    }
}

#[test]
fn two_keys_of_one_row_in_a_batch_do_not_block_its_partition() {
    let shop = Shop::open("secondaries-twice");
    shop.change("INSERT INTO $ VALUES (7, 'a', 1)");
    shop.world.kafka.produce(&shop.topic, [r#"{"id":7}"#, r#"{"id":"07"}"#].map(value));
    assert_eq!(shop.consume("postgres_copy", "-e --give-up 5s").wait(), End::Status(0));
    assert_eq!(shop.stored("postgres_copy", 7), shop.rows(&shop.primary));
}

#[test]
fn memcached_deletes_a_key_of_any_characters_as_its_head_says_that_applications_write_it() {
    let shop = Shop::open("secondaries-characters");
    let keys = [("a@b é", "a@b%20é"), ("a/b", "a/b"), ("x:y", "x:y"), ("50%", "50%25"), ("\n", "%0A")];
    let mut memcached = shop.connect("memcached");
    for (_, written) in keys {
        assert_eq!(memcached.ask(&format!("set {}:{written} 0 0 3\r\nold", shop.table)), "STORED");
    }
    shop.world.kafka.produce(&shop.topic, keys.map(|(key, _)| value(json!({"id": key}).to_string())));
    assert_eq!(shop.consume("memcached", "-e").wait(), End::Status(0));
    for (_, written) in keys {
        assert_eq!(memcached.ask(&format!("get {}:{written}", shop.table)), "END", "{written}");
    }
}

#[test]
fn a_key_may_have_capitals_in_its_name_and_be_a_decimal() {
    let shop = Shop::open("secondaries-decimal");
    shop.change("ALTER TABLE $ ADD \"productId\" NUMERIC(6, 2)");
    shop.change("INSERT INTO $ VALUES (7, 'a', 1, 7.5)");
    let records = [r#"{"productId":7.50}"#, r#"{"productId":true}"#, r#"{"id":7}"#].map(value);
    shop.world.kafka.produce(&shop.topic, records);
    let dead = shop.world.topic("dead", 1);
    let command = format!("-t {} -n redis -e --dead-letter={dead} -- {}", shop.topic, handler("redis").display());
    assert_eq!(shop.start(CONSUME, &command, &[("KEY", "productId")]).wait(), End::Status(3));
    let row = shop.connect("redis").field(&format!("{}:7.50", shop.table), "row");
    assert_eq!(row.as_deref(), Some(r#"{"id": 7, "name": "a", "price": 1, "productId": 7.50}"#));
    let letters = shop.world.kafka.records(&dead);
    let errors = letters.iter().flat_map(|letter| &letter.headers).filter(|(name, _)| name == "ksync.error");
    let mut errors: Vec<_> = errors.map(|(_, error)| error.as_str()).collect();
    errors.sort_unstable();
    assert_eq!(errors, ["a key (productId) that is neither number nor text", "no key (productId)"]);
}

#[test]
fn a_tombstone_is_a_deletion_to_products_py() {
    let shop = Shop::open("secondaries-tombstone");
    let table = "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)";
    let file = shop.world.file("secondary.db");
    let copy = Primary { dialect: Dialect::Sqlite, url: format!("sqlite:{}?mode=rwc", file.display()) };
    block_on(shop.primary.execute(table));
    block_on(copy.execute(table));
    block_on(copy.execute("INSERT INTO products VALUES (7, 'a', 1), (8, 'b', 2)"));
    shop.world.kafka.produce(&shop.topic, [Message { key: Some(b"7".to_vec()), ..Message::default() }]);
    let command = format!("-t {} -n copy -e -- {}", shop.topic, handler("products_of_server").display());
    let secondary = file.display().to_string();
    assert_eq!(shop.start(CONSUME, &command, &[("SECONDARY_DB", &secondary)]).wait(), End::Status(0));
    assert_eq!(block_on(copy.texts("SELECT CAST(id AS TEXT) FROM products")), ["8"]);
}
