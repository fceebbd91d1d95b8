//! Statements that are run for the keys of a chunk: what they touch, and what becomes of those that fail.

use ksync::database::{Database, Dialect, Limit, Question, Rows, Source, Statement};

use crate::database::{numbers, table, text};
use crate::support::primaries;

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
async fn a_statement_for_keys_of_several_columns_reads_the_rows_of_its_chunk_and_not_the_whole_table() {
    let [postgres, mariadb, _] = primaries("several").await;
    for primary in [postgres, mariadb] {
        let columns = "a INTEGER, b VARCHAR(9), n INTEGER, pad VARCHAR(400), PRIMARY KEY (a, b)";
        primary.execute(&format!("CREATE TABLE parts ({columns})")).await;
        let insert = format!("INSERT INTO parts SELECT n, 'x', 0, '{}' FROM numbers", "x".repeat(400));
        primary.execute(&numbers(&insert, 10_000)).await;
        primary
            .execute(if primary.dialect == Dialect::Postgres { "ANALYZE parts" } else { "ANALYZE TABLE parts" })
            .await;
        let rows = Rows::Table { table: "parts".to_owned(), filter: Some("a <= 200".to_owned()) };
        let chunks = primary.chunks(&Source { rows, ..table("parts") }, Limit { rows: 20, bytes: 1 << 20 }).await;
        let mut database = primary.open().await;
        let before = scanned(&mut database, primary.dialect).await;
        for sql in ["UPDATE parts SET n = n + 1 WHERE (a, b) IN (:keys)", "DELETE FROM parts WHERE (a, b) IN (:keys)"] {
            let statement = Statement::parse(sql, primary.dialect).unwrap();
            for chunk in &chunks {
                assert_eq!(database.run(&statement, chunk, None).await.unwrap(), 20, "{primary:?}: {sql}");
            }
        }
        // Twenty statements: the whole table for each would be 200,000. MariaDB counts those of its own variables, too.
        let scanned = scanned(&mut database, primary.dialect).await - before;
        assert!(scanned < 10_000.0, "{primary:?}: {scanned} rows");
        assert_eq!(primary.texts("SELECT count(*) FROM parts").await, ["9800"], "{primary:?}");
    }
}

/// How many rows the session has read so far without an index.
pub async fn scanned(database: &mut Database, dialect: Dialect) -> f64 {
    let sql = match dialect {
        Dialect::Postgres => {
            // A session tells others of it now and then, or when it is asked to.
            let tell = Question::parse("SELECT pg_stat_force_next_flush() IS NOT NULL", dialect).unwrap();
            database.number(&tell).await.unwrap();
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'parts'::regclass"
        }
        _ => {
            "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'Handler_read_rnd_next'"
        }
    };
    database.number(&Question::parse(sql, dialect).unwrap()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_touches_more_rows_than_keys_is_rolled_back() {
    for primary in primaries("toomany").await {
        primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
        primary.execute("INSERT INTO products (id) VALUES (1), (2), (3)").await;
        let trouble =
            primary.refusal("UPDATE products SET hits = 1 WHERE id IN (:keys) OR 1 = 1", &table("products"), 2).await;
        let hint = match primary.dialect {
            Dialect::MySql => COUNTED_TWICE,
            Dialect::Postgres | Dialect::Sqlite => "",
        };
        let expected = "refused: the statement touched 3 rows for 2 keys and was rolled back; it has to name the rows by their \
                        keys, for example ... WHERE id IN (:keys)";
        assert_eq!(text(&trouble), format!("{expected}{hint}"), "{primary:?}");
        assert_eq!(primary.texts("SELECT sum(hits) FROM products").await, ["0"], "{primary:?}");
    }
}

const COUNTED_TWICE: &str =
    " (MySQL and MariaDB count a row twice that REPLACE or ON DUPLICATE KEY UPDATE changes: write UPDATE)";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_mariadb_counts_twice_is_told_as_that() {
    let [_, mariadb, _] = primaries("twice").await;
    mariadb.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, hits INTEGER DEFAULT 0)").await;
    mariadb.execute("INSERT INTO products (id) VALUES (1), (2)").await;
    for statement in [
        "REPLACE INTO products SELECT id, 1 FROM products WHERE id IN (:keys)",
        "INSERT INTO products SELECT id, 1 FROM products WHERE id IN (:keys) ON DUPLICATE KEY UPDATE hits = 1",
    ] {
        let told = text(&mariadb.refusal(statement, &table("products"), 2).await);
        let begin = "refused: the statement touched 4 rows for 2 keys and was rolled back; ";
        assert!(told.starts_with(begin) && told.ends_with(COUNTED_TWICE), "{statement}: {told}");
    }
    assert_eq!(mariadb.texts("SELECT sum(hits) FROM products").await, ["0"]);
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
