//! Keys, names and payloads of all types, as Postgres, MariaDB and SQLite give and take them.

use std::collections::BTreeSet;

use ksync::database::{Chunk, Dialect, Limit, Payload, Position, Source};
use rustix::process::Signal;

use crate::database::{keys, payloads, table, text};
use crate::stream::delayed;
use crate::support::{End, Primary, World, block_on, primaries};

#[tokio::test(flavor = "multi_thread")]
async fn text_keys_keep_every_character() {
    let texts = ["a", "B", "zoë", "it's \"so\"", "back\\slash", "7", "漢字", "line\nbreak", ""];
    for primary in primaries("texts").await {
        primary.execute("CREATE TABLE tags (name VARCHAR(40) PRIMARY KEY)").await;
        for text in texts {
            let escaped = text.replace('\'', "''");
            let escaped = if primary.dialect == Dialect::MySql { escaped.replace('\\', "\\\\") } else { escaped };
            primary.execute(&format!("INSERT INTO tags VALUES ('{escaped}')")).await;
        }
        let chunks = primary.chunks(&table("tags"), Limit { rows: 2, bytes: 1 << 20 }).await;
        let found = keys(&chunks);
        assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(texts), "{primary:?}");
        assert_eq!(found.len(), texts.len(), "{primary:?}");
        assert!(payloads(&chunks).contains(&r#"{"name":"it's \"so\""}"#.to_owned()));
        assert!(payloads(&chunks).contains(&r#"{"name":"line\nbreak"}"#.to_owned()));
        // Each is found again by its key.
        assert_eq!(primary.run("DELETE FROM tags WHERE name IN (:keys)", &table("tags"), 4).await, 9, "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn composite_keys_are_read_and_bound_as_a_whole() {
    for primary in primaries("composite").await {
        primary.execute("CREATE TABLE parts (a INTEGER, b VARCHAR(9), n INTEGER DEFAULT 0, PRIMARY KEY (a, b))").await;
        primary
            .execute("INSERT INTO parts (a, b) VALUES (1, 'a'), (1, 'b'), (1, 'c'), (2, 'a'), (2, 'b'), (3, 'a')")
            .await;
        let chunks = primary.chunks(&table("parts"), Limit { rows: 2, bytes: 1 << 20 }).await;
        assert_eq!(keys(&chunks), [r#"[1,"a"]"#, r#"[1,"b"]"#, r#"[1,"c"]"#, r#"[2,"a"]"#, r#"[2,"b"]"#, r#"[3,"a"]"#]);
        assert_eq!(payloads(&chunks)[4], r#"{"a":2,"b":"b"}"#);
        let update = "UPDATE parts SET n = n + 1 WHERE (a, b) IN (:keys) AND a < 3";
        assert_eq!(primary.run(update, &table("parts"), 4).await, 5, "{primary:?}");
        assert_eq!(primary.texts("SELECT n FROM parts ORDER BY a, b").await, ["1", "1", "1", "1", "1", "0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_type_are_written_read_and_bound_exactly() {
    use Dialect::{MySql, Postgres, Sqlite};
    let uuids = "'0190163d-8694-739b-aea5-966c26f8ad91', 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'";
    let uuid = |last| format!(r#"{{"k":"{last}"}}"#);
    let uuid = [uuid("0190163d-8694-739b-aea5-966c26f8ad91"), uuid("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")];
    let uuid = [uuid[0].as_str(), uuid[1].as_str()];
    let biggest = [r#"{"k":9007199254740993}"#, r#"{"k":18446744073709551615}"#];
    let smallest = [r#"{"k":-9223372036854775808}"#, r#"{"k":9223372036854775807}"#];
    let decimals = [r#"{"k":-0.50}"#, r#"{"k":12345678901234567890.01}"#, r#"{"k":12345678901234567890.02}"#];
    let long = [
        r#"{"k":-5}"#,
        r#"{"k":1234567890123456789012345678901234567890}"#,
        r#"{"k":1234567890123456789012345678901234567891}"#,
    ];
    let fine =
        [r#"{"k":0.00000000000000000000000000000000000001}"#, r#"{"k":0.50000000000000000000000000000000000000}"#];
    let times = [r#"{"k":"2024-02-29 23:59:59.000001"}"#, r#"{"k":"2024-02-29 23:59:59.000002"}"#];
    let zoned = [r#"{"k":"2024-02-29 23:59:59.000001+00"}"#, r#"{"k":"2024-03-01 00:00:00+00"}"#];
    let letters = [r#"{"k":"a"}"#, r#"{"k":"A"}"#, r#"{"k":"z"}"#, r#"{"k":"ä"}"#];
    let bytes = [r#"{"k":"\\x00ff"}"#, r#"{"k":"\\x6162"}"#];
    let wide = [r#"{"k":"\\x0190163d8694739baea5966c26f8ad91"}"#];
    let spans = [r#"{"k":"-01:00:00.000000"}"#, r#"{"k":"23:59:59.000001"}"#];
    let cases: Vec<(Dialect, &str, &str, &[&str])> = vec![
        (Postgres, "SMALLINT", "-1, 2", &[r#"{"k":-1}"#, r#"{"k":2}"#]),
        (Postgres, "INTEGER", "1, -2", &[r#"{"k":-2}"#, r#"{"k":1}"#]),
        (Postgres, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (Postgres, "NUMERIC(20,0)", "18446744073709551615, 9007199254740993", &biggest),
        (Postgres, "NUMERIC(22,2)", "-0.5, 12345678901234567890.01, 12345678901234567890.02", &decimals),
        (Postgres, "UUID", uuids, &uuid),
        (Postgres, "CHAR(3)", "'ab', 'abc'", &[r#"{"k":"ab"}"#, r#"{"k":"abc"}"#]),
        (Postgres, "TIMESTAMP", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (Postgres, "TIMESTAMPTZ", "'2024-02-29 23:59:59.000001+00', '2024-03-01 00:00:00+00'", &zoned),
        (Postgres, "DATE", "'2024-02-29', '2025-01-01'", &[r#"{"k":"2024-02-29"}"#, r#"{"k":"2025-01-01"}"#]),
        // Sorted as they stand there, not as texts.
        (Postgres, "mood", "'sad', 'glad'", &[r#"{"k":"sad"}"#, r#"{"k":"glad"}"#]),
        (Postgres, "TEXT COLLATE \"de-x-icu\"", "'z', 'ä', 'a', 'A'", &letters),
        (Postgres, "VARCHAR(9) COLLATE folded", "'z', 'Ä', 'b'", &[r#"{"k":"b"}"#, r#"{"k":"z"}"#, r#"{"k":"Ä"}"#]),
        (Postgres, "BYTEA", "'\\x00ff', 'ab'", &bytes),
        (Postgres, "BOOLEAN", "false, true", &[r#"{"k":false}"#, r#"{"k":true}"#]),
        (Postgres, "DOUBLE PRECISION", "0.1, 'NaN'", &[r#"{"k":0.1}"#, r#"{"k":"NaN"}"#]),
        (Postgres, "INTEGER[]", "'{1,2}', '{3}'", &[r#"{"k":"{1,2}"}"#, r#"{"k":"{3}"}"#]),
        (Postgres, "REAL", "0.5, 1.1", &[r#"{"k":0.5}"#, r#"{"k":1.1}"#]),
        (Postgres, "OID", "7, 4294967295", &[r#"{"k":7}"#, r#"{"k":4294967295}"#]),
        (Postgres, "TIME", "'00:00:00', '23:59:59.000001'", &[r#"{"k":"00:00:00"}"#, r#"{"k":"23:59:59.000001"}"#]),
        (Postgres, "INTERVAL", "'25:00:00', '1 day'", &[r#"{"k":"1 day"}"#, r#"{"k":"25:00:00"}"#]),
        (Postgres, "INET", "'10.1.0.1/16', '10.1.0.0/16'", &[r#"{"k":"10.1.0.0/16"}"#, r#"{"k":"10.1.0.1/16"}"#]),
        (Postgres, "CIDR", "'10.1.0.0/16', '10.0.0.0/8'", &[r#"{"k":"10.0.0.0/8"}"#, r#"{"k":"10.1.0.0/16"}"#]),
        (Postgres, "JSONB", "'{\"a\": 1}', '[2]'", &[r#"{"k":"[2]"}"#, r#"{"k":"{\"a\": 1}"}"#]),
        (Postgres, "INT4RANGE", "'[1,3)', '[5,9)'", &[r#"{"k":"[1,3)"}"#, r#"{"k":"[5,9)"}"#]),
        (Postgres, "CITEXT", "'a', 'B'", &[r#"{"k":"B"}"#, r#"{"k":"a"}"#]),
        // A domain.
        (Postgres, "word", "'b', 'a'", &[r#"{"k":"a"}"#, r#"{"k":"b"}"#]),
        (MySql, "TINYINT(1) UNSIGNED", "0, 200", &[r#"{"k":0}"#, r#"{"k":200}"#]),
        (MySql, "INT ZEROFILL", "1, 2", &[r#"{"k":1}"#, r#"{"k":2}"#]),
        (MySql, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (MySql, "BIGINT UNSIGNED", "18446744073709551615, 9007199254740993", &biggest),
        (MySql, "DECIMAL(22,2)", "-0.5, 12345678901234567890.01, 12345678901234567890.02", &decimals),
        (
            MySql,
            "DECIMAL(40,0)",
            "-5, 1234567890123456789012345678901234567890, 1234567890123456789012345678901234567891",
            &long,
        ),
        (MySql, "DECIMAL(38,38)", "0.5, 0.00000000000000000000000000000000000001", &fine),
        (MySql, "UUID", uuids, &uuid),
        (MySql, "BINARY(2)", "X'00ff', 'ab'", &bytes),
        (MySql, "DATETIME(6)", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (MySql, "TIMESTAMP(6)", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (MySql, "DATE", "'2024-02-29', '2025-01-01'", &[r#"{"k":"2024-02-29"}"#, r#"{"k":"2025-01-01"}"#]),
        (MySql, "YEAR", "1999, 2024", &[r#"{"k":1999}"#, r#"{"k":2024}"#]),
        (MySql, "BIT(9)", "b'1', b'100000000'", &[r#"{"k":1}"#, r#"{"k":256}"#]),
        (MySql, "DOUBLE", "0.1, 2.5e10", &[r#"{"k":0.1}"#, r#"{"k":25000000000.0}"#]),
        (MySql, "VARCHAR(9) CHARACTER SET latin1", "'é', 'z'", &[r#"{"k":"é"}"#, r#"{"k":"z"}"#]),
        (MySql, "VARCHAR(9) COLLATE utf8mb4_bin", "'z', 'ä', 'a', 'A'", &letters),
        (MySql, "VARCHAR(9) COLLATE utf8mb4_unicode_ci", "'Ä', 'b'", &[r#"{"k":"b"}"#, r#"{"k":"Ä"}"#]),
        (MySql, "CHAR(3)", "'ab', 'abc'", &[r#"{"k":"ab"}"#, r#"{"k":"abc"}"#]),
        (MySql, "TEXT", "'b', 'a'", &[r#"{"k":"a"}"#, r#"{"k":"b"}"#]),
        (MySql, "VARBINARY(9)", "X'00ff', 'ab'", &bytes),
        (MySql, "BINARY(16)", "X'0190163d8694739baea5966c26f8ad91'", &wide),
        (MySql, "SMALLINT UNSIGNED", "65535, 0", &[r#"{"k":0}"#, r#"{"k":65535}"#]),
        (MySql, "MEDIUMINT", "1, -2", &[r#"{"k":-2}"#, r#"{"k":1}"#]),
        (MySql, "TIME(6)", "'-01:00:00', '23:59:59.000001'", &spans),
        (MySql, "INET6", "'2001:db8::1', '::2'", &[r#"{"k":"2001:db8::1"}"#, r#"{"k":"::2"}"#]),
        (Sqlite, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (Sqlite, "INTEGER", "1, -2", &[r#"{"k":-2}"#, r#"{"k":1}"#]),
        (Sqlite, "TEXT", "'1', 'a'", &[r#"{"k":"1"}"#, r#"{"k":"a"}"#]),
        (Sqlite, "UUID", uuids, &uuid),
        (Sqlite, "BLOB", "X'00ff', X'6162'", &bytes),
        (Sqlite, "DATETIME", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (Sqlite, "REAL", "0.1, 2", &[r#"{"k":0.1}"#, r#"{"k":2.0}"#]),
        // A column without a type holds what it is given, in this order.
        (Sqlite, "", "1, 1.5, '1', X'31'", &[r#"{"k":1}"#, r#"{"k":1.5}"#, r#"{"k":"1"}"#, r#"{"k":"\\x31"}"#]),
    ];
    for primary in primaries("types").await {
        if primary.dialect == Postgres {
            primary.execute("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN word AS VARCHAR(9)").await;
            primary.execute("CREATE EXTENSION citext").await;
            let folded = "provider = icu, locale = 'und-u-ks-level2', deterministic = false";
            primary.execute(&format!("CREATE COLLATION folded ({folded})")).await;
        }
        let cases = cases.iter().filter(|(dialect, ..)| *dialect == primary.dialect);
        for (at, (_, kind, values, expected)) in cases.enumerate() {
            // Without an index the database compares as the SQL says, not as the index would.
            let rows = Source { key: vec!["k".to_owned()], ..table(&format!("t{at}")) };
            primary.execute(&format!("CREATE TABLE t{at} (k {kind} NOT NULL)")).await;
            primary.execute(&format!("INSERT INTO t{at} VALUES ({})", values.replace(", ", "), ("))).await;
            let chunks = primary.chunks(&rows, Limit { rows: 1, bytes: 1 << 20 }).await;
            let mut found = payloads(&chunks);
            for (read, chunk) in chunks.iter().enumerate() {
                let rest = behind(&primary, &rows, &chunk.end().unwrap()).await;
                assert_eq!(payloads(&rest), found[read + 1..], "{primary:?} {kind}");
            }
            found.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(found, expected, "{primary:?} {kind}");
            let touched = primary.run(&format!("DELETE FROM t{at} WHERE k IN (:keys)"), &rows, 2).await;
            assert_eq!(touched, expected.len() as u64, "{primary:?} {kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_has_all_columns_of_a_row_or_those_that_are_named() {
    use Dialect::{MySql, Postgres, Sqlite};
    // The type of a column, a value of it, and how that stands in a payload.
    let cases: Vec<(Dialect, &str, &str, &str)> = vec![
        (Postgres, "JSON", r#"'{"a": [1, null]}'"#, r#"{"a": [1, null]}"#),
        (Postgres, "JSONB", r#"'{"a":[1,null]}'"#, r#"{"a": [1, null]}"#),
        (Postgres, "TEXT[]", r#"'{a,NULL,"b c"}'"#, r#"["a",null,"b c"]"#),
        (Postgres, "NUMERIC", "12345678901234567890.10", "12345678901234567890.10"),
        (Postgres, "REAL", "'NaN'", r#""NaN""#),
        (Postgres, "BOOLEAN", "true", "true"),
        (Postgres, "TIMESTAMPTZ", "'2024-02-29 23:59:59.5+00'", r#""2024-02-29 23:59:59.5+00""#),
        (Postgres, "POINT", "'(1,2)'", r#""(1,2)""#),
        (Postgres, "XML", "'<a/>'", r#""<a/>""#),
        (Postgres, "BYTEA", "'\\x00ff'", r#""\\x00ff""#),
        (Postgres, "TEXT", "NULL", "null"),
        (MySql, "ENUM('b', 'a')", "'a'", r#""a""#),
        (MySql, "SET('b', 'a')", "'a,b'", r#""b,a""#),
        (MySql, "FLOAT", "1.5", "1.5"),
        (MySql, "FLOAT(8,2) ZEROFILL", "1.5", "1.50"),
        (MySql, "DECIMAL(8,2) ZEROFILL", "0.5", "0.50"),
        (MySql, "DOUBLE", "1e300", "1e+300"),
        (MySql, "DECIMAL(22,2)", "12345678901234567890.01", "12345678901234567890.01"),
        (MySql, "POINT", "POINT(1, 2)", r#""POINT(1 2)""#),
        (MySql, "DATETIME(6)", "'2024-02-29 23:59:59.000001'", r#""2024-02-29 23:59:59.000001""#),
        (MySql, "BLOB", "X'00ff'", r#""\\x00ff""#),
        (MySql, "TEXT", "'é\\n'", r#""é\n""#),
        (MySql, "TEXT", "NULL", "null"),
        (Sqlite, "REAL", "0.1", "0.1"),
        (Sqlite, "BLOB", "X'00ff'", r#""\\x00ff""#),
        (Sqlite, "TEXT", "NULL", "null"),
    ];
    for primary in primaries("payloads").await {
        let cases: Vec<_> = cases.iter().filter(|(dialect, ..)| *dialect == primary.dialect).collect();
        let columns = (0..).zip(&cases).map(|(at, (_, kind, ..))| format!(", c{at} {kind}")).collect::<String>();
        let values = cases.iter().map(|(_, _, value, _)| format!(", {value}")).collect::<String>();
        primary.execute(&format!("CREATE TABLE t (id INTEGER PRIMARY KEY, name VARCHAR(9){columns})")).await;
        primary.execute(&format!("INSERT INTO t VALUES (1, 'x'{values})")).await;
        let members = (0..).zip(&cases).map(|(at, (.., json))| format!(",\"c{at}\":{json}")).collect::<String>();
        let source = |payload| Source { payload, ..table("t") };
        let limit = Limit { rows: 2, bytes: 1 << 20 };
        let row = primary.chunks(&source(Payload::Row), limit).await;
        assert_eq!(
            (keys(&row), payloads(&row)),
            (vec!["1".to_owned()], vec![format!("{{\"id\":1,\"name\":\"x\"{members}}}")])
        );
        let chosen = Payload::Columns(vec!["name".to_owned(), "id".to_owned()]);
        assert_eq!(payloads(&primary.chunks(&source(chosen), limit).await), [r#"{"name":"x","id":1}"#]);
        let named = Payload::Columns(vec!["nam".to_owned()]);
        let trouble = primary.open().await.prepare(&source(named)).await.err().unwrap();
        assert!(text(&trouble).starts_with("misconfigured: table t has no column 'nam'; its columns are id, name, c0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_are_quoted_and_keep_their_spelling() {
    for primary in primaries("names").await {
        let quote = if primary.dialect == Dialect::MySql { "`" } else { "\"" };
        let name = format!("{quote}Order.s{quote}");
        primary.execute(&format!("CREATE TABLE {name} ({quote}select{quote} INTEGER PRIMARY KEY)")).await;
        primary.execute(&format!("INSERT INTO {name} VALUES (1), (2)")).await;
        primary.execute(&format!("CREATE TABLE marks ({quote}a?b{quote} VARCHAR(9) NOT NULL)")).await;
        primary.execute("INSERT INTO marks VALUES ('x'), ('x'), ('y')").await;
        let source = Source { key: vec!["a?b".to_owned()], ..table("marks") };
        let chunks = primary.chunks(&source, Limit { rows: 1, bytes: 1 << 20 }).await;
        assert_eq!(payloads(&chunks), [r#"{"a?b":"x"}"#, r#"{"a?b":"y"}"#], "{primary:?}");
        let schema = if primary.dialect == Dialect::Sqlite { "main" } else { "ksync_names" };
        for table_name in [name.clone(), format!("{schema}.{name}")] {
            let chunks = primary.chunks(&table(&table_name), Limit { rows: 1, bytes: 1 << 20 }).await;
            assert_eq!(payloads(&chunks), [r#"{"select":1}"#, r#"{"select":2}"#], "{primary:?}");
        }
    }
}

#[test]
fn names_that_have_to_be_quoted_are_quoted_in_all_that_a_run_asks_for() {
    let world = World::new("quoted");
    for primary in block_on(primaries("quoted")) {
        let quote = if primary.dialect == Dialect::MySql { '`' } else { '"' };
        let name = format!("a{quote}b");
        let [table, key, price] = ["order", name.as_str(), "select"].map(|name| {
            let doubled = name.replace(quote, &format!("{quote}{quote}"));
            format!("{quote}{doubled}{quote}")
        });
        block_on(primary.execute(&format!("CREATE TABLE {table} ({key} INTEGER PRIMARY KEY, {price} INTEGER)")));
        block_on(primary.execute(&format!("INSERT INTO {table} VALUES (1, 0), (2, 0), (3, 0)")));
        let topic = world.topic_with_delay(&format!("orders-{:06x}", rand::random::<u32>()), 1);
        let source = format!("--database {} --table order --payload row --where '{price} = 0' --count", primary.url);
        let update = format!("--sql 'UPDATE {table} SET {price} = {price} + 1 WHERE {key} IN (:keys)'");
        let keep = format!("--chunk-size 2 --checkpoint {}", world.file("checkpoint").display());
        let command = format!("-t {topic} {source} {keep} {update}");
        let sql = format!("SELECT {key} FROM {table} WHERE {price} = 1 ORDER BY {key}");
        let changed = || block_on(primary.texts(&sql));
        let mut part = world.stream(&format!("{command} --pause 1h"));
        world.eventually("a chunk is done", || changed() == ["1", "2"]);
        part.signal(Signal::TERM);
        assert_eq!(part.wait(), End::Status(75), "{primary:?}: {:?}", part.log());
        let mut rest = world.stream(&command);
        assert_eq!(rest.wait(), End::Status(0), "{primary:?}: {:?}", rest.log());
        assert!(rest.says(&["info: going on behind key 2: 2 rows were done by "]), "{primary:?}: {:?}", rest.log());
        assert_eq!(changed(), ["1", "2", "3"], "{primary:?}");
        let member = name.replace('"', "\\\"");
        let rows = [1, 2, 3].map(|id| format!("{{\"{member}\":{id},\"select\":0}}"));
        let instant: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!((&instant[..], &delayed(&world, &topic)[..]), (&rows[..], &rows[..]), "{primary:?}");
    }
}

/// What another process reads that is told in JSON how far this one was.
async fn behind(primary: &Primary, source: &Source, end: &Position) -> Vec<Chunk> {
    let end: Position = serde_json::from_str(&serde_json::to_string(end).unwrap()).unwrap();
    let mut database = primary.open().await;
    let mut scan = database.prepare(source).await.unwrap();
    scan.go_on_behind(&end).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = database.next_chunk(&mut scan, Limit { rows: 2, bytes: 1 << 20 }).await.unwrap() {
        chunks.push(chunk);
    }
    chunks
}
