//! The queries, the rights and the versions that the documents name are those of real servers.

use ksync::database::{Database, Dialect, Question};

use super::{document, sql_of};
use crate::support::{End, World, block_on, primaries};

#[test]
fn the_throttle_queries_give_numbers() {
    let [postgres, mariadb, _] = block_on(primaries("readme_throttle"));
    block_on(mariadb.execute("CREATE TABLE heartbeat (ts VARCHAR(26) NOT NULL, server_id INT UNSIGNED PRIMARY KEY)"));
    let now = "DATE_FORMAT(UTC_TIMESTAMP(6) - INTERVAL 15 SECOND, '%Y-%m-%dT%H:%i:%s.%f')";
    block_on(mariadb.execute(&format!("INSERT INTO heartbeat VALUES ({now}, 1)")));
    let block = sql_of("docs/stream.md", "Slow it down");
    // Each with the comment above it.
    let queries: Vec<_> = block.split("-- ").skip(1).map(|query| query.split_once('\n').unwrap()).collect();
    assert_eq!(queries.len(), 5);
    for (what, sql) in queries {
        let (primary, dialect) = match what.starts_with("Postgres") {
            true => (&postgres, Dialect::Postgres),
            false => (&mariadb, Dialect::MySql),
        };
        let number = number(&primary.url, sql, dialect);
        match what.split_once(": ").unwrap().1 {
            // Few of the 20 sessions are there.
            active if active.starts_with("active") => {
                assert!((-20.0..0.0).contains(&number.unwrap()), "{what}: {number:?}")
            }
            // The test's server has no replica and is none.
            _ if dialect == Dialect::Postgres => assert_eq!(number, None, "{what}"),
            _ => assert!((4.0..15.0).contains(&number.unwrap()), "{what}: {number:?}"),
        }
    }
}

fn number(url: &str, sql: &str, dialect: Dialect) -> Option<f64> {
    let question = Question::parse(sql, dialect).unwrap();
    let number = block_on(async { Database::open(url).await?.number(&question).await });
    number.unwrap_or_else(|trouble| panic!("{sql}: {trouble:#}"))
}

/// The statements that give rights: those for Postgres, those for MariaDB.
fn rights() -> (Vec<String>, Vec<String>) {
    let block = sql_of("docs/stream.md", "Replicas, rights, sessions");
    let (postgres, mariadb) = block.split_once("-- MariaDB").unwrap();
    let statements = |text: &str| {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("--")).collect();
        let text = lines.join("\n");
        text.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    // The rest of the comment is not a line of its own.
    (statements(postgres), statements(mariadb.split_once('\n').unwrap().1))
}

#[test]
fn each_right_that_is_granted_is_needed_and_enough() {
    let world = World::new("readme-rights");
    let [postgres, mariadb, _] = block_on(primaries("readme_rights"));
    let (of_postgres, of_mariadb) = rights();
    let [select, update, delete, table, marks, monitor] = &of_postgres[..] else { panic!("{of_postgres:?}") };
    let [shop_table, shop_marks] = &of_mariadb[..] else { panic!("{of_mariadb:?}") };
    let in_shop = |grant: &String| grant.replace(" ON products ", " ON shop.products ");

    // A user who may do nothing yet.
    let role = "IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ksync_reader') THEN CREATE ROLE ksync_reader LOGIN; END IF";
    block_on(postgres.execute(&format!("DO $$ BEGIN {role}; END $$; REVOKE pg_monitor FROM ksync_reader")));
    block_on(postgres.execute("GRANT USAGE ON SCHEMA ksync_readme_rights TO ksync_reader"));
    let users = "'ksync_reader'@'127.0.0.1', 'ksync_reader'@'localhost'";
    block_on(mariadb.execute(&format!("DROP USER IF EXISTS {users}; CREATE USER {users}")));

    for (primary, grants) in [
        (
            &postgres,
            [vec![select.clone()], vec![update.clone()], vec![delete.clone()], vec![table.clone(), marks.clone()]],
        ),
        (
            &mariadb,
            [
                vec![in_shop(select)],
                vec![in_shop(update)],
                vec![in_shop(delete)],
                vec![shop_table.clone(), shop_marks.clone()],
            ],
        ),
    ] {
        block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
        block_on(primary.execute("INSERT INTO products VALUES (1, 0), (2, 0), (3, 0)"));
        let url = primary.url.replace("//ksync@", "//ksync_reader@");
        let update = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
        let delete = "--where 'id = 3' --sql 'DELETE FROM products WHERE id IN (:keys)'";
        let uses = ["", update, delete, &format!("{update} --checkpoint-table")];
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        for (use_of_it, grants) in uses.iter().zip(grants) {
            let run = || {
                let mut stream = world.stream(&format!("-t {topic} --database {url} --table products {use_of_it}"));
                (stream.wait(), stream.log())
            };
            let (end, log) = run();
            let is_refused = log.iter().any(|line| line.contains("denied"));
            assert!(end != End::Status(0) && is_refused, "{primary:?} before {grants:?}: {end:?} {log:?}");
            for grant in &grants {
                let grant = match primary.dialect {
                    Dialect::MySql => grant.replace("TO ksync", &format!("TO {users}")),
                    _ => grant.replace("TO ksync", "TO ksync_reader"),
                };
                block_on(primary.execute(&grant.replace("shop.", "ksync_readme_rights.")));
            }
            let (end, log) = run();
            assert_eq!(end, End::Status(0), "{primary:?} after {grants:?}: {log:?}");
        }
    }

    let reader = postgres.url.replace("//ksync@", "//ksync_reader@");
    let _session = block_on(postgres.open());
    let others = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ksync' AND state IS NOT NULL";
    assert_eq!(number(&reader, others, Dialect::Postgres), Some(0.0));
    block_on(postgres.execute(&monitor.replace("TO ksync", "TO ksync_reader")));
    assert!(number(&reader, others, Dialect::Postgres) >= Some(1.0));
}

/// The number that stands behind these words.
fn version_behind(text: &str, words: &str) -> String {
    let (_, rest) = text.split_once(words).unwrap_or_else(|| panic!("nothing is said of '{words}'"));
    rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

/// What does not change with a release that only mends: 15 of Postgres 15.18, 10.11 of MariaDB 10.11.14.
fn series(version: &str, numbers: usize) -> Vec<&str> {
    version.split(['.', '-', ' ']).take(numbers).collect()
}

#[test]
fn the_versions_that_the_readme_names_are_those_of_the_servers() {
    let readme = document("README.md");
    let (_, named) = readme.split_once("The tests ran on ").unwrap();
    let [postgres, mariadb, sqlite] = block_on(primaries("readme_versions"));
    for (words, primary, question, numbers) in [
        ("Postgres ", &postgres, "SHOW server_version", 1),
        ("MariaDB ", &mariadb, "SELECT version()", 2),
        ("SQLite ", &sqlite, "SELECT sqlite_version()", 2),
    ] {
        let (named, found) = (version_behind(named, words), block_on(primary.texts(question)));
        assert_eq!(series(&named, numbers), series(&found[0], numbers), "{words}{found:?}");
    }
    for (server, words) in [
        ("kafka", "needs Kafka (tested with "),
        ("zookeeper", "and ZooKeeper (tested with "),
        ("opensearch", "tested with OpenSearch "),
    ] {
        let (pom, named) = (document(&format!("scripts/servers/{server}/pom.xml")), version_behind(&readme, words));
        assert!(!named.is_empty() && pom.contains(&format!("<version>{named}")), "{server}: {named}");
    }
}
