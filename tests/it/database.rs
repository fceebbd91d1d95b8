//! The database edge against Postgres, MariaDB and SQLite themselves.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ksync::database::{Chunk, Database, Dialect, Limit, Payload, Position, Rows, Source, Statement, Trouble};

use crate::support::{Primary, primaries};

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_read_in_chunks_over_all_gaps() {
    for primary in primaries("gaps").await {
        primary.execute("CREATE TABLE products (id BIGINT PRIMARY KEY, name VARCHAR(20))").await;
        primary.execute(&numbers("INSERT INTO products SELECT n * n % 99991 * 3 - 500, 'x' FROM numbers", 9_000)).await;
        let expected = primary.texts("SELECT id FROM products ORDER BY products.id").await;
        for rows in [1_000, 4_500, 9_000, 20_000] {
            let chunks = primary.chunks(&table("products"), Limit { rows, bytes: 1 << 20 }).await;
            assert_eq!(keys(&chunks), expected, "{primary:?}, {rows} rows");
            assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk.changes.len() == rows));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_ends_at_its_bytes_and_one_row_always_fits() {
    for primary in primaries("bytes").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY)").await;
        primary.execute("INSERT INTO products VALUES (1), (2), (3), (4), (5)").await;
        // A key of one byte and {"id":1} are nine.
        let chunks = primary.chunks(&table("products"), Limit { rows: 100, bytes: 18 }).await;
        assert_eq!(chunks.iter().map(|chunk| chunk.changes.len()).collect::<Vec<_>>(), [2, 2, 1], "{primary:?}");
        let chunks = primary.chunks(&table("products"), Limit { rows: 100, bytes: 0 }).await;
        assert_eq!(keys(&chunks), ["1", "2", "3", "4", "5"], "{primary:?}");
    }
}

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
    let times = [r#"{"k":"2024-02-29 23:59:59.000001"}"#, r#"{"k":"2024-02-29 23:59:59.000002"}"#];
    let bytes = [r#"{"k":"\\x00ff"}"#, r#"{"k":"\\x6162"}"#];
    let cases: Vec<(Dialect, &str, &str, &[&str])> = vec![
        (Postgres, "SMALLINT", "-1, 2", &[r#"{"k":-1}"#, r#"{"k":2}"#]),
        (Postgres, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (Postgres, "NUMERIC(20,0)", "18446744073709551615, 9007199254740993", &biggest),
        (Postgres, "NUMERIC(22,2)", "-0.5, 12345678901234567890.01, 12345678901234567890.02", &decimals),
        (Postgres, "UUID", uuids, &uuid),
        (Postgres, "CHAR(3)", "'ab', 'abc'", &[r#"{"k":"ab"}"#, r#"{"k":"abc"}"#]),
        (Postgres, "TIMESTAMP", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (Postgres, "BYTEA", "'\\x00ff', 'ab'", &bytes),
        (Postgres, "BOOLEAN", "false, true", &[r#"{"k":false}"#, r#"{"k":true}"#]),
        (Postgres, "DOUBLE PRECISION", "0.1, 'NaN'", &[r#"{"k":0.1}"#, r#"{"k":"NaN"}"#]),
        (Postgres, "INTEGER[]", "'{1,2}', '{3}'", &[r#"{"k":"{1,2}"}"#, r#"{"k":"{3}"}"#]),
        (MySql, "TINYINT(1) UNSIGNED", "0, 200", &[r#"{"k":0}"#, r#"{"k":200}"#]),
        (MySql, "INT ZEROFILL", "1, 2", &[r#"{"k":1}"#, r#"{"k":2}"#]),
        (MySql, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (MySql, "BIGINT UNSIGNED", "18446744073709551615, 9007199254740993", &biggest),
        (MySql, "DECIMAL(22,2)", "-0.5, 12345678901234567890.01, 12345678901234567890.02", &decimals),
        (MySql, "UUID", uuids, &uuid),
        (MySql, "BINARY(2)", "X'00ff', 'ab'", &bytes),
        (MySql, "DATETIME(6)", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (MySql, "TIMESTAMP(6)", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (MySql, "DATE", "'2024-02-29', '2025-01-01'", &[r#"{"k":"2024-02-29"}"#, r#"{"k":"2025-01-01"}"#]),
        (MySql, "YEAR", "1999, 2024", &[r#"{"k":1999}"#, r#"{"k":2024}"#]),
        (MySql, "BIT(9)", "b'1', b'100000000'", &[r#"{"k":1}"#, r#"{"k":256}"#]),
        (MySql, "DOUBLE", "0.1, 2.5e10", &[r#"{"k":0.1}"#, r#"{"k":25000000000.0}"#]),
        (MySql, "VARCHAR(9) CHARACTER SET latin1", "'é', 'z'", &[r#"{"k":"é"}"#, r#"{"k":"z"}"#]),
        (Sqlite, "BIGINT", "-9223372036854775808, 9223372036854775807", &smallest),
        (Sqlite, "UUID", uuids, &uuid),
        (Sqlite, "BLOB", "X'00ff', X'6162'", &bytes),
        (Sqlite, "DATETIME", "'2024-02-29 23:59:59.000001', '2024-02-29 23:59:59.000002'", &times),
        (Sqlite, "REAL", "0.1, 2", &[r#"{"k":0.1}"#, r#"{"k":2.0}"#]),
        // A column without a type holds what it is given, in this order.
        (Sqlite, "", "1, 1.5, '1', X'31'", &[r#"{"k":1}"#, r#"{"k":1.5}"#, r#"{"k":"1"}"#, r#"{"k":"\\x31"}"#]),
    ];
    for primary in primaries("types").await {
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
async fn a_table_of_200_columns_is_read_as_it_is_and_its_large_rows_a_few_at_a_time() {
    for primary in primaries("wide").await {
        let columns = (0..200).map(|at| format!(", c{at} INTEGER DEFAULT {at}")).collect::<String>();
        primary.execute(&format!("CREATE TABLE t (id INTEGER PRIMARY KEY, pad TEXT{columns})")).await;
        for id in 0..40 {
            primary.execute(&format!("INSERT INTO t (id, pad) VALUES ({id}, '{}')", "x".repeat(10_000))).await;
        }
        let source = Source { payload: Payload::Row, ..table("t") };
        let chunks = primary.chunks(&source, Limit { rows: 1000, bytes: 60_000 }).await;
        let sizes: Vec<_> = chunks.iter().map(|chunk| chunk.changes.len()).collect();
        assert_eq!(keys(&chunks), (0..40).map(|id| id.to_string()).collect::<Vec<_>>(), "{primary:?}");
        assert!(sizes[..sizes.len() - 1].iter().all(|size| (5..=6).contains(size)), "{sizes:?}");
        let first = payloads(&chunks).remove(0);
        assert!(first.ends_with(",\"c198\":198,\"c199\":199}"), "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_and_a_query_choose_the_rows() {
    for primary in primaries("choice").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(9))").await;
        primary.execute("INSERT INTO products VALUES (1, 'a'), (2, 'b'), (3, 'a:x'), (4, 'a')").await;
        let condition = "products.name LIKE 'a%' OR id = 2 -- all of them";
        let rows = Rows::Table { table: "products".to_owned(), filter: Some(condition.to_owned()) };
        let chunks = primary
            .chunks(&Source { rows, key: Vec::new(), payload: Payload::Key }, Limit { rows: 2, bytes: 1 << 20 })
            .await;
        assert_eq!(keys(&chunks), ["1", "2", "3", "4"], "{primary:?}");

        let query = "SELECT max(id) AS newest, name FROM products GROUP BY name; -- the newest of each";
        let source =
            Source { rows: Rows::Query(query.to_owned()), key: vec!["newest".to_owned()], payload: Payload::Key };
        let chunks = primary.chunks(&source, Limit { rows: 2, bytes: 1 << 20 }).await;
        assert_eq!(payloads(&chunks), [r#"{"newest":2}"#, r#"{"newest":3}"#, r#"{"newest":4}"#], "{primary:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_meets_exactly_the_keys_of_its_chunk() {
    for primary in primaries("keys").await {
        primary.execute("CREATE TABLE products (id BIGINT PRIMARY KEY, hits INTEGER DEFAULT 0, other BIGINT)").await;
        primary.execute(&numbers("INSERT INTO products SELECT n * 3, 0, -n FROM numbers", 2_500)).await;
        let rows = table("products");
        let mut database = primary.open().await;
        let statement = "UPDATE products SET hits = hits + 1 /* :keys */ WHERE id IN (:keys) AND NOT other IN (:keys)";
        let statement = Statement::parse(statement, primary.dialect).unwrap();
        let mut scan = database.prepare(&rows).await.unwrap();
        let mut touched = Vec::new();
        while let Some(chunk) = database.next_chunk(&mut scan, Limit { rows: 1_000, bytes: 1 << 20 }).await.unwrap() {
            touched.push(database.run(&statement, &chunk, None).await.unwrap());
            let updated = primary.texts("SELECT count(*) FROM products WHERE hits = 1").await;
            assert_eq!(updated, [touched.iter().sum::<u64>().to_string()], "{primary:?}");
        }
        assert_eq!(touched, [1_000, 1_000, 500], "{primary:?}");
        assert_eq!(primary.run("DELETE FROM products WHERE id IN (:keys)", &rows, 2_000).await, 2_500);
        assert_eq!(primary.texts("SELECT count(*) FROM products").await, ["0"], "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_touches_more_rows_than_keys_is_rolled_back() {
    for primary in primaries("toomany").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
        primary.execute("INSERT INTO products (id) VALUES (1), (2), (3)").await;
        let trouble =
            primary.refusal("UPDATE products SET hits = 1 WHERE id IN (:keys) OR 1 = 1", &table("products"), 2).await;
        assert_eq!(
            text(&trouble),
            "refused: the statement touched 3 rows for 2 keys and was rolled back; it has to name the rows by their \
             keys, for example ... WHERE id IN (:keys)",
            "{primary:?}"
        );
        assert_eq!(primary.texts("SELECT sum(hits) FROM products").await, ["0"], "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_fails_is_refused_with_the_words_of_the_database() {
    for primary in primaries("fails").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY)").await;
        primary.execute("INSERT INTO products VALUES (1)").await;
        let trouble = primary.refusal("UPDATE products SET nr = 1 WHERE id IN (:keys)", &table("products"), 2).await;
        let expected = match primary.dialect {
            Dialect::Postgres => "column \"nr\" of relation \"products\" does not exist",
            Dialect::MySql => "1054 (42S22): Unknown column 'nr' in 'SET'",
            Dialect::Sqlite => "no such column: nr",
        };
        assert_eq!(text(&trouble), format!("refused: cannot run the statement: {expected}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_fit_is_refused_before_a_row_is_read() {
    for primary in primaries("unfit").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name VARCHAR(9))").await;
        primary.execute("CREATE TABLE bare (id INTEGER, name VARCHAR(9))").await;
        primary.execute("INSERT INTO bare VALUES (1, 'a'), (NULL, 'b')").await;
        let key = |name: &str| vec![name.to_owned()];
        let query = |sql: &str, key| Source { rows: Rows::Query(sql.to_owned()), key, payload: Payload::Key };
        let twice = "SELECT a.id, b.id FROM products a JOIN products b ON a.id = b.id";
        let missing = match primary.dialect {
            Dialect::Postgres => "relation \"nothing\" does not exist",
            Dialect::MySql => "1146 (42S02): Table 'ksync_unfit.nothing' doesn't exist",
            Dialect::Sqlite => "no such table: nothing",
        };
        let cases = [
            (
                Source { key: key("nr"), ..table("products") },
                "table products has no column 'nr'; its columns are id, name",
            ),
            (query("SELECT name FROM products", key("id")), "the query has no column 'id'; its columns are name"),
            (
                query("SELECT 1 AS id", Vec::new()),
                "the query has no primary key of its own; name its key columns with --key",
            ),
            (table("bare"), "table bare has no primary key; name the columns of a unique key with --key"),
            (
                Source { key: key("id"), ..table("bare") },
                "table bare has rows whose id is NULL; leave them out with a condition (IS NOT NULL), or name another --key",
            ),
            (query(twice, key("id")), "the query has several columns 'id'; give them different names"),
            (table("a.b.c"), "'a.b.c' is not a table name; write TABLE or SCHEMA.TABLE"),
            (table("nothing"), &format!("cannot read table nothing: {missing}")),
        ];
        let mut database = primary.open().await;
        for (source, expected) in cases {
            let trouble = database.prepare(&source).await.err().unwrap();
            assert_eq!(text(&trouble), format!("misconfigured: {expected}"), "{primary:?}");
        }
        let second = Rows::Table { table: "products".to_owned(), filter: Some("id = 1; DROP TABLE bare".to_owned()) };
        let trouble =
            database.prepare(&Source { rows: second, key: Vec::new(), payload: Payload::Key }).await.err().unwrap();
        let expected = "refused: cannot use the condition: it goes on after the ';'; one statement is all that is run";
        assert_eq!(text(&trouble), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_keys_that_sort_otherwise_than_they_compare_are_refused() {
    let [_, mariadb, _] = primaries("enums").await;
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY, e ENUM('b', 'a') NOT NULL, s SET('b', 'a') NOT NULL)").await;
    let mut database = mariadb.open().await;
    for name in ["e", "s"] {
        let trouble = database.prepare(&Source { key: vec![name.to_owned()], ..table("t") }).await.err().unwrap();
        let why = "an ENUM or SET is sorted one way and compared another";
        assert_eq!(text(&trouble), format!("misconfigured: column {name} of table t cannot be a key: {why}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_repeats_is_announced_and_none_is_lost_between_chunks() {
    for primary in primaries("repeats").await {
        primary.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, product BIGINT, name VARCHAR(9))").await;
        let insert = "INSERT INTO orders SELECT n, n % 7, concat('p', n % 7) FROM numbers";
        let insert = if primary.dialect == Dialect::Sqlite {
            "INSERT INTO orders SELECT n, n % 7, 'p' || (n % 7) FROM numbers"
        } else {
            insert
        };
        primary.execute(&numbers(insert, 100)).await;
        for rows in [1, 5, 14, 15, 16, 40, 200] {
            let by_number = Source { key: vec!["product".to_owned()], ..table("orders") };
            let chunks = primary.chunks(&by_number, Limit { rows, bytes: 1 << 20 }).await;
            assert_eq!(keys(&chunks), ["0", "1", "2", "3", "4", "5", "6"], "{primary:?} {rows}");
            let by_name = Source { key: vec!["name".to_owned()], ..table("orders") };
            let chunks = primary.chunks(&by_name, Limit { rows, bytes: 1 << 20 }).await;
            assert_eq!(keys(&chunks), ["p0", "p1", "p2", "p3", "p4", "p5", "p6"], "{primary:?} {rows}");
            // Each row of a key has more to tell.
            let payload = Payload::Columns(vec!["product".to_owned(), "id".to_owned()]);
            let all_of_it = Source { key: vec!["product".to_owned()], payload, ..table("orders") };
            let mut database = primary.open().await;
            let mut scan = database.prepare(&all_of_it).await.unwrap();
            let limit = Limit { rows, bytes: 1 << 20 };
            let Err(Trouble::Misconfigured(error)) = database.next_chunk(&mut scan, limit).await else {
                panic!("{primary:?} {rows}: a row is left out");
            };
            assert!(error.to_string().contains("has several rows with the same product"), "{error:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_only_the_database_takes_for_equal_are_refused_where_one_would_be_lost() {
    for primary in primaries("collation").await {
        let kind = match primary.dialect {
            Dialect::Postgres => "NUMERIC",
            Dialect::MySql => "VARCHAR(9) COLLATE utf8mb4_general_ci",
            Dialect::Sqlite => "TEXT COLLATE NOCASE",
        };
        let (rows, values) = match primary.dialect {
            Dialect::Postgres => ("(1, 1.0), (2, 1.00), (3, 2)", ["1.0", "1.00"]),
            _ => ("(1, 'a'), (2, 'A'), (3, 'b')", ["a", "A"]),
        };
        primary.execute(&format!("CREATE TABLE t (id INTEGER PRIMARY KEY, k {kind} NOT NULL)")).await;
        primary.execute(&format!("INSERT INTO t VALUES {rows}")).await;
        let source = Source { key: vec!["k".to_owned()], ..table("t") };
        assert_eq!(keys(&primary.chunks(&source, Limit { rows: 2, bytes: 1 << 20 }).await).len(), 3, "{primary:?}");

        let mut database = primary.open().await;
        let mut scan = database.prepare(&source).await.unwrap();
        let one = Limit { rows: 1, bytes: 1 << 20 };
        let first = database.next_chunk(&mut scan, one).await.unwrap().unwrap();
        let end = first.end().unwrap();
        let mut troubles = vec![database.next_chunk(&mut scan, one).await.err().unwrap()];
        let first = &keys(&[first])[0];
        assert!(values.contains(&first.as_str()));
        // The same where another process goes on.
        let mut scan = database.prepare(&source).await.unwrap();
        scan.go_on_behind(&end).unwrap();
        troubles.extend(database.next_chunk(&mut scan, one).await.err());
        let told = format!(
            "misconfigured: table t has several rows whose k is '{first}' for the database although they are written \
             differently (upper and lower case, perhaps); name a --key that tells them apart"
        );
        assert_eq!(troubles.iter().map(text).collect::<Vec<_>>(), [told.as_str(), &told], "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_meets_another_transaction_is_tried_again() {
    let [postgres, mariadb, _] = primaries("conflicts").await;
    for primary in [&postgres, &mariadb] {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
        primary.execute("INSERT INTO products (id) VALUES (1), (2)").await;
        // A sequence is not rolled back: the first two transactions fail, the third goes through.
        primary.execute("CREATE SEQUENCE attempts").await;
    }
    postgres
        .execute(
            "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF nextval('attempts') < 3 THEN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END IF;
               RETURN NEW;
             END $$;
             CREATE TRIGGER conflict BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION conflict()",
        )
        .await;
    mariadb
        .execute(
            "CREATE TRIGGER conflict BEFORE UPDATE ON products FOR EACH ROW
               IF NEXTVAL(attempts) < 3 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF",
        )
        .await;
    for primary in [postgres, mariadb] {
        let update = "UPDATE products SET hits = hits + 1 WHERE id IN (:keys)";
        assert_eq!(primary.run(update, &table("products"), 10).await, 2, "{primary:?}");
        assert_eq!(primary.texts("SELECT hits FROM products").await, ["1", "1"], "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_goes_on_over_a_new_connection() {
    let [postgres, mariadb, _] = primaries("reconnect").await;
    let postgres = Primary { url: format!("{}&application_name=reconnect", postgres.url), ..postgres };
    for primary in [postgres, mariadb] {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY)").await;
        primary.execute("INSERT INTO products VALUES (1), (2), (3)").await;
        let mut database = primary.open().await;
        let mut scan = database.prepare(&table("products")).await.unwrap();
        let limit = Limit { rows: 2, bytes: 1 << 20 };
        let mut chunks = vec![database.next_chunk(&mut scan, limit).await.unwrap().unwrap()];
        match primary.dialect {
            Dialect::Postgres => {
                let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                              WHERE application_name = 'reconnect' AND pid <> pg_backend_pid()";
                primary.execute(others).await;
            }
            _ => {
                let others = "SELECT id FROM information_schema.processlist
                              WHERE db = 'ksync_reconnect' AND id <> connection_id()";
                for id in primary.texts(others).await {
                    primary.execute(&format!("KILL {id}")).await;
                }
            }
        }
        let trouble = database.next_chunk(&mut scan, limit).await.err().unwrap();
        assert!(text(&trouble).starts_with("away: cannot read table "), "{primary:?}: {}", text(&trouble));
        chunks.extend(primary.open().await.next_chunk(&mut scan, limit).await.unwrap());
        assert_eq!(keys(&chunks), ["1", "2", "3"], "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_told_when_the_database_cannot_be_opened() {
    let [postgres, mariadb, sqlite] = primaries("passwords").await;
    let wrong = |primary: &Primary| {
        let (scheme, rest) = primary.url.split_once("://").unwrap();
        let (_, host) = rest.rsplit_once('@').unwrap();
        format!("{scheme}://nobody:Canary@{host}")
    };
    let missing = sqlite.url.replace(".db", "-missing.db");
    let cases = [
        (wrong(&postgres), "misconfigured: cannot connect to Postgres at "),
        (wrong(&mariadb), "misconfigured: cannot connect to MySQL or MariaDB at "),
        (
            "postgres://me:Canary@127.0.0.1:1/shop".to_owned(),
            "away: cannot connect to Postgres at 127.0.0.1:1: Connection refused",
        ),
        (
            "mariadb://me:Canary@127.0.0.1:1/shop".to_owned(),
            "away: cannot connect to MySQL or MariaDB at 127.0.0.1:1: ",
        ),
        (
            "postgres://me:Canary@127.0.0.1:port/shop".to_owned(),
            "misconfigured: cannot use the database URL: invalid port number",
        ),
        ("oracle://me:Canary@127.0.0.1/shop".to_owned(), "misconfigured: a database URL begins with postgres://, "),
        ("me:Canary@127.0.0.1/shop".to_owned(), "misconfigured: a database URL begins with postgres://, "),
        (missing.clone(), "misconfigured: cannot open the SQLite database "),
    ];
    for (url, expected) in cases {
        let told = text(&Database::open(&url).await.err().unwrap());
        assert!(told.starts_with(expected), "{told}");
        assert!(!told.contains("Canary"), "{told}");
    }
    assert!(!PathBuf::from(missing.trim_start_matches("sqlite:")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_is_free_for_others_between_two_chunks() {
    let [_, _, sqlite] = primaries("locks").await;
    sqlite.execute("CREATE TABLE products (id INTEGER PRIMARY KEY)").await;
    sqlite.execute("INSERT INTO products VALUES (1), (2), (3), (4)").await;
    let mut database = sqlite.open().await;
    let mut scan = database.prepare(&table("products")).await.unwrap();
    let chunk = database.next_chunk(&mut scan, Limit { rows: 100, bytes: 1 }).await.unwrap().unwrap();
    assert_eq!(keys(&[chunk]), ["1"]);
    // Without WAL an open reader keeps writers out: this would fail after the busy timeout.
    sqlite.execute("DELETE FROM products WHERE id = 2").await;
    let chunk = database.next_chunk(&mut scan, Limit { rows: 100, bytes: 1 << 20 }).await.unwrap().unwrap();
    assert_eq!(keys(&[chunk]), ["3", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_chunk_that_ends_by_its_bytes_nothing_stays_open_in_the_database() {
    for primary in primaries("half_read").await.into_iter().filter(|primary| primary.dialect != Dialect::Sqlite) {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, pad TEXT)").await;
        let insert = format!("INSERT INTO products SELECT n, '{}' FROM numbers", "x".repeat(10_000));
        primary.execute(&numbers(&insert, 3_000)).await;
        let mut database = primary.open().await;
        let source = Source { payload: Payload::Row, ..table("products") };
        let mut scan = database.prepare(&source).await.unwrap();
        let chunk = database.next_chunk(&mut scan, Limit { rows: 3_000, bytes: 1 }).await.unwrap().unwrap();
        assert_eq!(keys(&[chunk]), ["1"]);
        // Of what is sent to nobody the server would keep more than a socket takes.
        let (sql, idle) = match primary.dialect {
            Dialect::Postgres => {
                let one = "query LIKE '%\"pad\"%ksync_half_read%' OR query LIKE 'SELECT \"products\".\"id\"%'";
                (format!("SELECT state FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({one})"), "idle")
            }
            _ => {
                let one = "db = 'ksync_half_read' AND id <> CONNECTION_ID()";
                (format!("SELECT command FROM information_schema.processlist WHERE {one}"), "Sleep")
            }
        };
        let states = primary.texts(&sql).await;
        assert!(!states.is_empty() && states.iter().all(|state| state == idle), "{primary:?}: {states:?}");
        assert_eq!(keys(&[database.next_chunk(&mut scan, Limit { rows: 1, bytes: 1 }).await.unwrap().unwrap()]), ["2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_more_keys_than_can_be_bound_is_refused_and_told_its_limit() {
    let [postgres, mariadb, sqlite] = primaries("binds").await;
    let update = "UPDATE products SET hits = 1 WHERE id IN (:keys) AND id IN (:keys)";
    for (primary, expected) in [(postgres, None), (mariadb, Some((65_535, 32_767))), (sqlite, Some((32_766, 16_383)))] {
        primary.execute("CREATE TABLE products (id BIGINT PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
        primary.execute(&numbers("INSERT INTO products (id) SELECT n FROM numbers", 40_000)).await;
        let Some((most, keys)) = expected else {
            assert_eq!(primary.run(update, &table("products"), 40_000).await, 40_000);
            continue;
        };
        let trouble = primary.refusal(update, &table("products"), 40_000).await;
        assert_eq!(
            text(&trouble),
            format!(
                "misconfigured: the database binds at most {most} values to a statement, and 40000 keys need 80000; \
                 use a --chunk-size of at most {keys}"
            )
        );
        assert_eq!(primary.run(update, &table("products"), keys).await, 40_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_and_its_mark_stay_together_and_only_while_the_run_holds_the_row() {
    for primary in primaries("bookmark").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
        primary.execute("INSERT INTO products (id) VALUES (1), (2), (3)").await;
        let mut database = primary.open().await;
        let hit = |condition: &str| {
            let sql = format!("UPDATE products SET hits = hits + 1 WHERE id IN (:keys) {condition}");
            Statement::parse(&sql, primary.dialect).unwrap()
        };
        let chunk = &primary.chunks(&table("products"), Limit { rows: 2, bytes: 1 << 20 }).await[0];
        let (first, nothing) = database.bookmark("marks", 7).await.unwrap();
        database.begin(&first, "begun").await.unwrap();
        database.run(&hit(""), chunk, Some(&first.mark("one"))).await.unwrap();
        let refused = database.run(&hit("OR 1 = 1"), chunk, Some(&first.mark("two"))).await.err().unwrap();
        assert!(text(&refused).starts_with("refused: the statement touched 3 rows for 2 keys"), "{primary:?}");

        let mut another = primary.open().await;
        let (second, after) = another.bookmark("marks", 7).await.unwrap();
        let (_, beside) = another.bookmark("marks", 8).await.unwrap();
        assert_eq!((nothing, after.as_deref(), beside), (None, Some("one"), None), "{primary:?}");
        another.begin(&second, "taken").await.unwrap();
        let lost = "busy: another run of the same job has taken over its row in table marks; this one has changed \
                    nothing since";
        let told = database.run(&hit(""), chunk, Some(&first.mark("two"))).await.err().unwrap();
        assert_eq!(text(&told), lost, "{primary:?}");
        assert_eq!(text(&database.write(&first.mark("two")).await.err().unwrap()), lost, "{primary:?}");
        assert_eq!(primary.texts("SELECT hits FROM products ORDER BY id").await, ["1", "1", "0"], "{primary:?}");
        assert_eq!(another.bookmark("marks", 7).await.unwrap().1.as_deref(), Some("taken"), "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_whole_table_are_estimated() {
    for primary in primaries("estimate").await {
        primary.execute("CREATE TABLE products (id BIGINT PRIMARY KEY)").await;
        primary.execute(&numbers("INSERT INTO products SELECT n FROM numbers", 1_000)).await;
        let analyze = if primary.dialect == Dialect::MySql { "ANALYZE TABLE products" } else { "ANALYZE products" };
        primary.execute(analyze).await;
        let mut database = primary.open().await;
        assert_eq!(database.estimate(&table("products")).await.unwrap(), Some(1_000), "{primary:?}");
        let some = Rows::Table { table: "products".to_owned(), filter: Some("id < 5".to_owned()) };
        assert_eq!(
            database.estimate(&Source { rows: some, key: Vec::new(), payload: Payload::Key }).await.unwrap(),
            None,
            "{primary:?}"
        );
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

fn table(name: &str) -> Source {
    Source { rows: Rows::Table { table: name.to_owned(), filter: None }, key: Vec::new(), payload: Payload::Key }
}

fn keys(chunks: &[Chunk]) -> Vec<String> {
    let changes = chunks.iter().flat_map(|chunk| &chunk.changes);
    changes.map(|change| String::from_utf8(change.key.clone().unwrap()).unwrap()).collect()
}

fn payloads(chunks: &[Chunk]) -> Vec<String> {
    let changes = chunks.iter().flat_map(|chunk| &chunk.changes);
    changes.map(|change| String::from_utf8(change.payload.clone()).unwrap()).collect()
}

fn text(trouble: &Trouble) -> String {
    let kind = match trouble {
        Trouble::Misconfigured(_) => "misconfigured",
        Trouble::Away(_) => "away",
        Trouble::Refused(_) | Trouble::Unfit(_) => "refused",
        Trouble::Busy(_) => "busy",
    };
    format!("{kind}: {trouble:#}")
}

/// `insert`, with the numbers from 1 to `last` as the table `numbers`.
fn numbers(insert: &str, last: u32) -> String {
    insert.replace(
        "FROM numbers",
        &format!(
            "FROM (WITH RECURSIVE digits AS (SELECT 0 AS d UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
                       SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 1 AS n
                       FROM digits a, digits b, digits c, digits e, digits f) AS numbers WHERE n <= {last}"
        ),
    )
}
