//! Rows as they are read in chunks, from Postgres, MariaDB and SQLite themselves.

use std::time::{Duration, Instant};

use ksync::database::{Chunk, Dialect, Limit, Payload, Rows, Source, Trouble};

use crate::support::{Primary, pass, primaries};

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
async fn of_rows_that_may_be_large_few_are_asked_for_at_first_and_more_as_they_fit() {
    for primary in primaries("large").await {
        primary.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, pad TEXT)").await;
        primary.execute(&numbers("INSERT INTO t SELECT n, 'x' FROM numbers", 1_000)).await;
        let sizes = async |payload, bytes| {
            let chunks = primary.chunks(&Source { payload, ..table("t") }, Limit { rows: 600, bytes }).await;
            assert_eq!(keys(&chunks).len(), 1_000, "{primary:?}");
            chunks.iter().map(|chunk| chunk.changes.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(Payload::Row, 1 << 20).await, [100, 200, 400, 300], "{primary:?}");
        assert_eq!(sizes(Payload::Key, 1 << 20).await, [600, 400], "{primary:?}");
        // Where large ones are followed by small ones.
        primary.execute(&format!("UPDATE t SET pad = '{}' WHERE id <= 10", "x".repeat(10_000))).await;
        assert_eq!(sizes(Payload::Row, 60_000).await, [6, 12, 24, 48, 96, 192, 384, 238], "{primary:?}");
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
                // Sessions that were closed may not have ended yet.
                let mut found = primary.texts(others).await;
                while found.len() > 1 {
                    pass(Duration::from_millis(10)).await;
                    found = primary.texts(others).await;
                }
                primary.execute(&format!("KILL {}", found[0])).await;
            }
        }
        let trouble = database.next_chunk(&mut scan, limit).await.err().unwrap();
        assert!(text(&trouble).starts_with("away: cannot read table "), "{primary:?}: {}", text(&trouble));
        chunks.extend(primary.open().await.next_chunk(&mut scan, limit).await.unwrap());
        assert_eq!(keys(&chunks), ["1", "2", "3"], "{primary:?}");
    }
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
        // A server may show it a moment after its answer.
        let (mut states, begun) = (primary.texts(&sql).await, Instant::now());
        while states.iter().any(|state| state != idle) && begun.elapsed() < Duration::from_secs(20) {
            pass(Duration::from_millis(10)).await;
            states = primary.texts(&sql).await;
        }
        assert!(!states.is_empty() && states.iter().all(|state| state == idle), "{primary:?}: {states:?}");
        assert_eq!(keys(&[database.next_chunk(&mut scan, Limit { rows: 1, bytes: 1 }).await.unwrap().unwrap()]), ["2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_whole_table_that_are_left_are_estimated() {
    for primary in primaries("estimate").await {
        primary.execute("CREATE TABLE products (id BIGINT PRIMARY KEY)").await;
        primary.execute(&numbers("INSERT INTO products SELECT n FROM numbers", 1_000)).await;
        let analyze = if primary.dialect == Dialect::MySql { "ANALYZE TABLE products" } else { "ANALYZE products" };
        primary.execute(analyze).await;
        let (all, mut database) = (table("products"), primary.open().await);
        let mut scan = database.prepare(&all).await.unwrap();
        assert_eq!(database.estimate(&all, (&scan, 0)).await.unwrap(), Some(1_000), "{primary:?}");
        let some = Rows::Table { table: "products".to_owned(), filter: Some("id < 5".to_owned()) };
        let some = Source { rows: some, key: Vec::new(), payload: Payload::Key };
        assert_eq!(database.estimate(&some, (&scan, 0)).await.unwrap(), None, "{primary:?}");
        let chunk = database.next_chunk(&mut scan, Limit { rows: 400, bytes: 1 << 20 }).await.unwrap();
        assert!(chunk.is_some(), "{primary:?}");
        assert_eq!(database.estimate(&all, (&scan, 400)).await.unwrap(), Some(600), "{primary:?}");
        if primary.dialect == Dialect::Sqlite {
            // It counts: what was done and is gone is not taken off twice.
            primary.execute("DELETE FROM products WHERE id <= 400").await;
            assert_eq!(database.estimate(&all, (&scan, 400)).await.unwrap(), Some(600));
        } else {
            assert_eq!(database.estimate(&all, (&scan, 1_000)).await.unwrap(), None, "{primary:?}");
        }
    }
}

pub fn table(name: &str) -> Source {
    Source { rows: Rows::Table { table: name.to_owned(), filter: None }, key: Vec::new(), payload: Payload::Key }
}

pub fn keys(chunks: &[Chunk]) -> Vec<String> {
    let changes = chunks.iter().flat_map(|chunk| &chunk.changes);
    changes.map(|change| String::from_utf8(change.key.clone().unwrap()).unwrap()).collect()
}

pub fn payloads(chunks: &[Chunk]) -> Vec<String> {
    let changes = chunks.iter().flat_map(|chunk| &chunk.changes);
    changes.map(|change| String::from_utf8(change.payload.clone()).unwrap()).collect()
}

pub fn text(trouble: &Trouble) -> String {
    let kind = match trouble {
        Trouble::Misconfigured(_) => "misconfigured",
        Trouble::Away(_) => "away",
        Trouble::Refused(_) | Trouble::Unfit(_) => "refused",
        Trouble::Busy(_) => "busy",
    };
    format!("{kind}: {trouble:#}")
}

/// `insert`, with the numbers from 1 to `last` as the table `numbers`.
pub fn numbers(insert: &str, last: u32) -> String {
    insert.replace(
        "FROM numbers",
        &format!(
            "FROM (WITH RECURSIVE digits AS (SELECT 0 AS d UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
                       SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 1 AS n
                       FROM digits a, digits b, digits c, digits e, digits f) AS numbers WHERE n <= {last}"
        ),
    )
}
