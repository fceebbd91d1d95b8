//! Chunks are found by the index of their key, whatever its type is and however far a scan has come.

use ksync::database::{Database, Dialect, Limit, Question, Source};

use crate::database::{numbers, table};
use crate::support::{Primary, primaries};

const ROWS: u32 = 2_000;
const CHUNK: Limit = Limit { rows: 100, bytes: 1 << 20 };

#[tokio::test(flavor = "multi_thread")]
async fn whatever_type_a_key_of_postgres_has_the_rows_before_a_chunk_are_not_gone_through_for_it() {
    let [postgres, ..] = primaries("by_index_postgres").await;
    let of_rows = [
        ("SMALLINT", "n"),
        ("INTEGER", "n * 7"),
        ("BIGINT", "n * 1000000007::bigint"),
        ("NUMERIC(20,0)", "n * 1000000007::bigint"),
        ("NUMERIC(22,2)", "n / 4.0"),
        ("REAL", "n / 8.0"),
        ("DOUBLE PRECISION", "n / 7.0"),
        ("OID", "n::oid"),
        ("DATE", "'2000-01-01'::date + n"),
        ("TIME", "'00:00'::time + n * interval '1 second'"),
        ("TIMESTAMP", "'2000-01-01'::timestamp + n * interval '1.000001 seconds'"),
        ("TIMESTAMPTZ", "'2000-01-01'::timestamptz + n * interval '1.000001 seconds'"),
        ("INTERVAL", "n * interval '1 second'"),
        ("UUID", "md5(n::text)::uuid"),
        ("TEXT", "md5(n::text)"),
        ("TEXT COLLATE \"de-x-icu\"", "md5(n::text)"),
        ("VARCHAR(40)", "md5(n::text)"),
        ("CHAR(32)", "md5(n::text)"),
        ("BYTEA", "decode(md5(n::text), 'hex')"),
        ("INET", "'10.0.0.0'::inet + n"),
        ("JSONB", "to_jsonb(n)"),
        ("INT4RANGE", "int4range(n, n + 1)"),
        ("INTEGER[]", "ARRAY[n]"),
    ];
    all_are_read_by_index(&postgres, &of_rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_type_a_key_of_mariadb_has_the_rows_before_a_chunk_are_not_gone_through_for_it() {
    let [_, mariadb, _] = primaries("by_index_mariadb").await;
    let of_rows = [
        ("SMALLINT UNSIGNED", "n"),
        ("MEDIUMINT", "n - 1000"),
        ("INT", "n * 7"),
        ("BIGINT", "n * 1000000007"),
        ("BIGINT UNSIGNED", "n * 1000000007"),
        ("DECIMAL(22,2)", "n / 4"),
        ("DOUBLE", "n / 7"),
        ("BIT(16)", "n"),
        ("DATE", "'2000-01-01' + INTERVAL n DAY"),
        ("TIME(6)", "SEC_TO_TIME(n)"),
        ("DATETIME(6)", "'2000-01-01' + INTERVAL n SECOND"),
        ("TIMESTAMP(6)", "'2020-01-01' + INTERVAL n MINUTE"),
        ("CHAR(32)", "MD5(n)"),
        ("VARCHAR(40)", "MD5(n)"),
        ("VARCHAR(40) COLLATE utf8mb4_bin", "MD5(n)"),
        ("VARCHAR(40) COLLATE utf8mb4_unicode_ci", "MD5(n)"),
        ("VARCHAR(40) CHARACTER SET latin1", "MD5(n)"),
        ("BINARY(16)", "UNHEX(MD5(n))"),
        ("VARBINARY(16)", "UNHEX(MD5(n))"),
        ("UUID", "CONCAT('00000000-0000-4000-8000-', LPAD(HEX(n * 7919), 12, '0'))"),
        ("INET6", "CONCAT('2001:db8::', HEX(n))"),
    ];
    all_are_read_by_index(&mariadb, &of_rows).await;
}

/// Each is the type of a key, and what it is in a row by the row's number.
async fn all_are_read_by_index(primary: &Primary, of_rows: &[(&str, &str)]) {
    primary.execute("CREATE TABLE seed (n INTEGER PRIMARY KEY)").await;
    primary.execute(&numbers("INSERT INTO seed SELECT n FROM numbers", ROWS)).await;
    for (at, (kind, value)) in of_rows.iter().enumerate() {
        let name = format!("t{at}");
        primary.execute(&format!("CREATE TABLE {name} (k {kind} PRIMARY KEY)")).await;
        primary.execute(&format!("INSERT INTO {name} SELECT {value} FROM seed")).await;
        is_read_by_index(primary, &name, kind).await;
    }
    // Chunks end amid the rows that have the same first column.
    primary.execute("CREATE TABLE pairs (a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b))").await;
    primary.execute("INSERT INTO pairs SELECT n % 30, n FROM seed").await;
    is_read_by_index(primary, "pairs", "INTEGER, VARCHAR(9)").await;
}

async fn is_read_by_index(primary: &Primary, name: &str, kind: &str) {
    let analyze = if primary.dialect == Dialect::MySql { "ANALYZE TABLE" } else { "ANALYZE" };
    primary.execute(&format!("{analyze} {name}")).await;
    let mut database = primary.open().await;
    let mut scan = database.prepare(&table(name)).await.unwrap();
    let (before, mut rows) = (looked_at(&mut database, primary.dialect, name).await, 0);
    while let Some(chunk) = database.next_chunk(&mut scan, CHUNK).await.unwrap() {
        rows += chunk.changes.len();
    }
    assert_eq!(rows, ROWS as usize, "{primary:?} {kind}");
    let looked_at = looked_at(&mut database, primary.dialect, name).await - before;
    // From the first row on for each chunk it would be 20,000. MariaDB counts those of its own variables, too.
    let (least, most) = (f64::from(ROWS), f64::from(3 * ROWS));
    assert!((least..most).contains(&looked_at), "{primary:?} {kind}: {looked_at} rows were looked at");
}

/// At how many rows of the table, or entries of its indexes, the session has looked so far.
async fn looked_at(database: &mut Database, dialect: Dialect, name: &str) -> f64 {
    let sql = match dialect {
        Dialect::Postgres => {
            // A session tells others of it now and then, or when it is asked to.
            let tell = Question::parse("SELECT pg_stat_force_next_flush() IS NOT NULL", dialect).unwrap();
            database.number(&tell).await.unwrap();
            format!(
                "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes AS i WHERE i.relid = t.relid)
                 FROM pg_stat_user_tables AS t WHERE relid = '{name}'::regclass"
            )
        }
        _ => {
            let counts = "variable_name LIKE 'Handler_read%'";
            format!("SELECT SUM(variable_value) FROM information_schema.session_status WHERE {counts}")
        }
    };
    database.number(&Question::parse(&sql, dialect).unwrap()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_plans_a_chunk_behind_the_last_rows_by_the_index_too() {
    let [.., sqlite] = primaries("by_index_sqlite").await;
    sqlite.execute("CREATE TABLE seed (n INTEGER PRIMARY KEY)").await;
    sqlite.execute(&numbers("INSERT INTO seed SELECT n FROM numbers", ROWS)).await;
    let of_rows = [
        ("k INTEGER PRIMARY KEY", "n * 7", ""),
        ("k BIGINT PRIMARY KEY", "n * 1000000007", ""),
        ("k REAL PRIMARY KEY", "n / 8.0", ""),
        ("k PRIMARY KEY", "n", ""),
        ("k TEXT PRIMARY KEY", "printf('%08x', n)", ""),
        ("k TEXT COLLATE NOCASE PRIMARY KEY", "printf('%08x', n)", ""),
        ("k TEXT NOT NULL PRIMARY KEY", "printf('%08x', n)", "WITHOUT ROWID"),
        ("k BLOB PRIMARY KEY", "CAST(printf('%08x', n) AS BLOB)", ""),
        ("a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b)", "n % 30, n", ""),
    ];
    for (at, (columns, value, options)) in of_rows.into_iter().enumerate() {
        let name = format!("t{at}");
        sqlite.execute(&format!("CREATE TABLE {name} ({columns}) {options}")).await;
        sqlite.execute(&format!("INSERT INTO {name} SELECT {value} FROM seed")).await;
        let mut database = sqlite.open().await;
        let (mut scan, mut rows) = (database.prepare(&table(&name)).await.unwrap(), 0);
        while let Some(chunk) = database.next_chunk(&mut scan, CHUNK).await.unwrap() {
            rows += chunk.changes.len();
            let effort = database.costly(&scan, 1).await.unwrap();
            assert_eq!(effort, None, "{columns} {options}, behind {rows} rows");
        }
        assert_eq!(rows, ROWS as usize, "{columns} {options}");
    }
    // So it is seen where there is none.
    sqlite.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, k INTEGER NOT NULL)").await;
    sqlite.execute("INSERT INTO bare SELECT n, n FROM seed").await;
    let mut database = sqlite.open().await;
    let mut scan = database.prepare(&Source { key: vec!["k".to_owned()], ..table("bare") }).await.unwrap();
    database.next_chunk(&mut scan, CHUNK).await.unwrap();
    assert!(database.costly(&scan, 1).await.unwrap().is_some());
}
