//! Databases, sources and keys that do not fit: refused, and how that is told.

use std::path::PathBuf;

use ksync::database::{Database, Dialect, Limit, Payload, Rows, Source};

use crate::database::{keys, table, text};
use crate::support::{Primary, primaries};

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
        for (filter, expected) in [
            ("id = 1; DROP TABLE bare", "it goes on after the ';'; one statement is all that is run"),
            // What is asked besides would hold for one half of it.
            ("id = 1) OR (id = 2", "it has a ')' that closes nothing"),
        ] {
            let rows = Rows::Table { table: "products".to_owned(), filter: Some(filter.to_owned()) };
            let source = Source { rows, key: Vec::new(), payload: Payload::Key };
            let trouble = database.prepare(&source).await.err().unwrap();
            assert_eq!(text(&trouble), format!("refused: cannot use the condition: {expected}"), "{primary:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_the_database_sets_back_ends() {
    let [_, mariadb, _] = primaries("set_back").await;
    // Those of a query are compared as numbers of 35 digits before the point.
    mariadb.execute("CREATE TABLE t (k DECIMAL(50,0) NOT NULL)").await;
    let digits = "0".repeat(39);
    mariadb.execute(&format!("INSERT INTO t VALUES (1{digits}), (2{digits}), (3{digits})")).await;
    let rows = Rows::Query("SELECT k FROM t".to_owned());
    let source = Source { rows, key: vec!["k".to_owned()], payload: Payload::Key };
    let mut database = mariadb.open().await;
    // The chunk that gives rows again may be larger.
    for (rows, more) in [(1, 1), (2, 2), (2, 3)] {
        let mut scan = database.prepare(&source).await.unwrap();
        let limit = |rows| Limit { rows, bytes: 1 << 20 };
        assert!(database.next_chunk(&mut scan, limit(rows)).await.unwrap().is_some());
        let trouble = database.next_chunk(&mut scan, limit(more)).await.err().unwrap();
        let told = format!(
            "misconfigured: the query cannot be read on behind '{rows}{digits}': the database gives rows again that were read \
             before, since it does not compare the k exactly (numbers with too many digits, perhaps); name another --key"
        );
        assert_eq!(text(&trouble), told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_whose_order_cannot_be_told_are_refused() {
    let [postgres, mariadb, _] = primaries("unordered").await;
    let (otherwise, no_order) = ("an ENUM or SET is sorted one way and compared another", "its values have no order");
    let of_postgres = [("JSON", no_order), ("XML", no_order), ("POINT", no_order)];
    let of_mariadb = [
        ("ENUM('b', 'a')", otherwise),
        ("SET('b', 'a')", otherwise),
        ("FLOAT", "a FLOAT does not equal its own text"),
        ("POINT", no_order),
    ];
    for (primary, kinds) in [(postgres, &of_postgres[..]), (mariadb, &of_mariadb[..])] {
        let mut database = primary.open().await;
        for (at, (kind, why)) in kinds.iter().enumerate() {
            primary.execute(&format!("CREATE TABLE t{at} (id INTEGER PRIMARY KEY, k {kind} NOT NULL)")).await;
            let name = format!("t{at}");
            let query = Rows::Query(format!("SELECT * FROM {name}"));
            for (rows, label) in [(table(&name).rows, format!("table {name}")), (query, "the query".to_owned())] {
                let source = Source { rows, key: vec!["k".to_owned()], payload: Payload::Key };
                let trouble = database.prepare(&source).await.err().unwrap();
                let told = format!("misconfigured: column k of {label} cannot be a key: {why}");
                assert_eq!(text(&trouble), told, "{primary:?} {kind}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_only_the_database_takes_for_equal_are_refused_where_one_would_be_lost() {
    let [postgres, mariadb, sqlite] = primaries("collation").await;
    let folded = "provider = icu, locale = 'und-u-ks-level2', deterministic = false";
    postgres.execute(&format!("CREATE COLLATION folded ({folded})")).await;
    for (primary, kind, values, behind) in [
        (&postgres, "NUMERIC", ["1.0", "1.00"], "2"),
        (&postgres, "TEXT COLLATE folded", ["a", "A"], "b"),
        (&mariadb, "VARCHAR(9) COLLATE utf8mb4_general_ci", ["a", "A"], "b"),
        // Blanks at the end say nothing to it.
        (&mariadb, "VARCHAR(9) COLLATE utf8mb4_bin", ["a", "a "], "b"),
        (&sqlite, "TEXT COLLATE NOCASE", ["a", "A"], "b"),
    ] {
        let [one, other] = values;
        primary.execute("DROP TABLE IF EXISTS t").await;
        primary.execute(&format!("CREATE TABLE t (id INTEGER PRIMARY KEY, k {kind} NOT NULL)")).await;
        primary.execute(&format!("INSERT INTO t VALUES (1, '{one}'), (2, '{other}'), (3, '{behind}')")).await;
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
async fn no_password_is_told_when_the_database_cannot_be_opened() {
    let [postgres, mariadb, sqlite] = primaries("passwords").await;
    let wrong = |primary: &Primary| {
        let (scheme, rest) = primary.url.split_once("://").unwrap();
        let (_, host) = rest.rsplit_once('@').unwrap();
        format!("{scheme}://nobody:Canary@{host}")
    };
    let missing = sqlite.url.replace(".db", "-missing.db");
    let nobody = format!("{}.test", "x".repeat(64));
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
        // No name server is asked for one with so long a part.
        (
            format!("postgres://me:Canary@{nobody}/shop"),
            &format!("away: cannot connect to Postgres at {nobody}:5432: "),
        ),
        (
            format!("mysql://me:Canary@{nobody}/shop"),
            &format!("away: cannot connect to MySQL or MariaDB at {nobody}:3306: "),
        ),
        (missing.clone(), "misconfigured: cannot open the SQLite database "),
    ];
    for (url, expected) in cases {
        let told = text(&Database::open(&url).await.err().unwrap());
        assert!(told.starts_with(expected), "{told}");
        assert!(!told.contains("Canary"), "{told}");
    }
    assert!(!PathBuf::from(missing.trim_start_matches("sqlite:")).exists());
}
