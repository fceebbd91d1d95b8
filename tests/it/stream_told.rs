//! What a run of ksync-stream does not wait for at its start, what it tries again, and what it tells at its end.

use ksync::database::Dialect;
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use crate::database::table;
use crate::database_statements::scanned;
use crate::resume::{UPDATE, items_of, source, topic};
use crate::support::{End, World, block_on, primaries};

#[test]
fn the_end_tells_how_many_rows_a_statement_has_touched_where_these_are_not_all() {
    let world = World::new("touched");
    for primary in block_on(primaries("told_touched")) {
        items_of(&primary, 5);
        let topic = topic(&world);
        for (condition, level, told) in [
            ("", "info", None),
            (" AND id > 3", "info", Some("the statement has touched 2 of these 5 rows")),
            (" AND n > 100", "warn", Some("the statement has touched none of these 5 rows")),
        ] {
            let update = format!("--sql 'UPDATE items SET n = n + 1 WHERE id IN (:keys){condition}'");
            let mut stream = world.stream(&format!("{} --chunk-size 2 {update}", source(&topic, &primary)));
            assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
            let lines = stream.log_of(level);
            let lines: Vec<_> = lines.iter().filter(|line| line.contains("touched")).map(String::as_str).collect();
            assert_eq!(lines, Vec::from_iter(told), "{primary:?}{condition}");
        }
    }
}

#[test]
fn the_end_tells_nothing_of_what_was_touched_where_a_statement_does_not_count_what_it_changes() {
    let world = World::new("uncounted");
    for primary in block_on(primaries("told_uncounted")) {
        items_of(&primary, 3);
        let sql = match primary.dialect {
            Dialect::Postgres => {
                "WITH changed AS (UPDATE items SET n = n + 1 WHERE id IN (:keys) RETURNING id) SELECT count(*) FROM changed"
            }
            Dialect::MySql => "DO (SELECT max(n) FROM items WHERE id IN (:keys))",
            Dialect::Sqlite => "SELECT count(*) FROM items WHERE id IN (:keys)",
        };
        let mut stream = world.stream(&format!("{} --sql '{sql}'", source(&topic(&world), &primary)));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        assert!(!stream.says(&["touched"]), "{primary:?}: {:?}", stream.log());
        let n = if primary.dialect == Dialect::Postgres { "1" } else { "0" };
        assert_eq!(block_on(primary.texts("SELECT DISTINCT n FROM items")), [n], "{primary:?}");
    }
}

#[test]
fn a_lock_that_postgres_does_not_get_in_time_is_tried_again() {
    let world = World::new("lock-timeout");
    let [primary, ..] = block_on(primaries("told_lock"));
    items_of(&primary, 2);
    let topic = topic(&world);
    let mut other = block_on(PgConnection::connect(&primary.url)).unwrap();
    block_on(sqlx::raw_sql("BEGIN; SELECT n FROM items WHERE id = 2 FOR UPDATE").execute(&mut other)).unwrap();
    let patience = "--session-sql \"SET lock_timeout = '100ms'\"";
    let mut stream = world.stream(&format!("{} {patience} {UPDATE}", source(&topic, &primary)));
    let told =
        ["warn: the statement met another transaction: canceling statement due to lock timeout", "; trying again in "];
    world.eventually("it is tried again", || stream.says(&told));
    block_on(sqlx::raw_sql("ROLLBACK").execute(&mut other)).unwrap();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    assert_eq!(block_on(primary.texts("SELECT n::text FROM items ORDER BY id")), ["1", "1"]);
}

#[test]
fn a_second_run_of_a_job_looks_at_no_rows_before_it_ends() {
    let world = World::new("locked-first");
    for primary in block_on(primaries("told_locked")) {
        items_of(&primary, 4);
        let topic = topic(&world);
        // The key has no index: that is warned of once rows are looked at.
        let command = format!("{} --key n,id --count --pause 1h --chunk-size 1 {UPDATE}", source(&topic, &primary));
        let command =
            command.replace("WHERE id IN (:keys)", "WHERE (n, id) IN (:keys)").replace("SET n = n + 1", "SET n = n");
        let mut first = world.stream(&command);
        world.eventually("the first is at work", || world.kafka.count(&topic) == 1);
        let mut second = world.stream(&command);
        assert_eq!(second.wait(), End::Status(4), "{primary:?}");
        let log = second.log();
        assert!(log.iter().all(|line| !line.contains("no index of")), "{primary:?}: {log:?}");
        // The others do not mind so few rows.
        let is_warned = first.says(&["warn: ", "no index of"]);
        assert_eq!(is_warned, primary.dialect == Dialect::Postgres, "{primary:?}: {:?}", first.log());
        // A dry run changes nothing, so it may look beside it.
        assert_eq!(world.stream(&format!("{command} --dry-run")).wait(), End::Status(0), "{primary:?}");
        first.signal(Signal::TERM);
        assert_eq!(first.wait(), End::Status(75), "{primary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_never_null_are_not_searched_for_nulls() {
    let [postgres, mariadb, _] = primaries("told_nulls").await;
    for primary in [postgres, mariadb] {
        let create = "CREATE TABLE parts (id INTEGER PRIMARY KEY, a INTEGER NOT NULL, b INTEGER NOT NULL, c INTEGER, UNIQUE (a, b))";
        primary.execute(create).await;
        let rows = match primary.dialect {
            Dialect::Postgres => "SELECT n, n, n, n FROM generate_series(1, 5000) AS n",
            _ => "SELECT seq, seq, seq, seq FROM seq_1_to_5000",
        };
        primary.execute(&format!("INSERT INTO parts {rows}")).await;
        let mut database = primary.open().await;
        for (key, most) in [("a,b", 1000.0), ("a,c", f64::MAX)] {
            let before = scanned(&mut database, primary.dialect).await;
            let key = key.split(',').map(str::to_owned).collect();
            database.prepare(&ksync::database::Source { key, ..table("parts") }).await.unwrap();
            let more = scanned(&mut database, primary.dialect).await - before;
            assert!(more < most, "{primary:?}: {more} rows");
            assert!(most < f64::MAX || more >= 5000.0, "{primary:?}: {more} rows, and it cannot have looked for them");
        }
    }
}
