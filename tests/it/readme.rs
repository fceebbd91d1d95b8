//! What README.md shows is true as it is written: its examples, its lines for cron, its queries and its rights.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ksync::database::{Database, Dialect, Question};

use crate::clients::environment;
use crate::examples::built;
use crate::support::{End, Primary, Record, World, block_on, primaries};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");
const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// How long an application may take to start, and to be run.
const MINUTES: Duration = Duration::from_secs(300);

fn readme() -> String {
    fs::read_to_string(Path::new(PROJECT).join("README.md")).unwrap()
}

/// The first block of SQL in a section.
pub fn sql_of(section: &str) -> String {
    let readme = readme();
    let (_, section) = readme.split_once(&format!("\n### {section}\n")).unwrap();
    let (_, block) = section.split_once("\n```sql\n").unwrap();
    block.split_once("\n```").unwrap().0.to_owned()
}

fn thousand_products(postgres: &Primary) {
    block_on(postgres.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)"));
    block_on(postgres.execute("INSERT INTO products SELECT n, 'x', n * 100 FROM generate_series(1, 1000) AS n"));
}

#[test]
fn the_examples_run() {
    let world = World::alone("readme");
    let [postgres, ..] = block_on(primaries("readme"));
    thousand_products(&postgres);
    let path = format!("{}:{}", Path::new(STREAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let home = world.dir.display().to_string();
    let environment = [("PATH", path.as_str()), ("DATABASE_URL", &postgres.url), ("HOME", &home)];
    let readme = readme();
    let blocks = readme.split("\n```sh run\n").skip(1);
    let examples: Vec<&str> = blocks.map(|block| block.split_once("\n```").unwrap().0).collect();
    assert!(examples.len() >= 6, "only {} examples are marked with `sh run`", examples.len());
    for example in examples {
        let script = world.script(&format!("cd {PROJECT}\n{example}"));
        assert_eq!(world.start(&script, "", &environment).wait(), End::Status(0), "{example}");
    }
    assert_eq!(block_on(postgres.texts("SELECT min(price)::text FROM products")), ["500"]);
    assert_eq!(block_on(postgres.texts("SELECT count(*)::text FROM products")), ["990"]);
}

/// The applications that are to be running in five minutes: each is run as it is shown, and what it has changed has arrived.
#[test]
fn the_applications_of_five_minutes_announce_what_they_change() {
    let world = World::alone("readme-shop");
    let [postgres, ..] = block_on(primaries("readme_shop"));
    // Only ksync takes a schema from the URL.
    block_on(postgres.execute("DROP DATABASE IF EXISTS ksync_readme_shop WITH (FORCE)"));
    block_on(postgres.execute("CREATE DATABASE ksync_readme_shop"));
    let (server, _) = postgres.url.rsplit_once('/').unwrap();
    let shop = Primary { url: format!("{server}/ksync_readme_shop"), ..postgres };
    block_on(shop.execute(&sql_of("In five minutes")));
    built();
    let path = format!("{}:{}", Path::new(STREAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let dir = world.dir.display().to_string();
    let [python, node] = ["python", "node/node_modules"].map(|folder| environment("", folder).1);
    let variables = [
        ("PATH", path.as_str()),
        ("DATABASE_URL", &shop.url),
        ("TMPDIR", &dir),
        ("PYTHONPATH", &python),
        ("NODE_PATH", &node),
    ];
    let readme = readme();
    let blocks = readme.split("\n```sh run shop\n").skip(1).map(|block| block.split_once("\n```").unwrap().0);
    let mut told: Vec<u32> = vec![];
    let mut changes = [vec![1, 1], vec![2], vec![3], vec![2, 3, 4, 4]].into_iter();
    for block in blocks {
        let changed: Vec<u32> = changes.next().unwrap();
        let script = world.script(&format!("cd {PROJECT}\n{block}"));
        let mut process = world.start(&script, "", &variables);
        world.within(MINUTES, block, || !process.is_running());
        assert_eq!(process.wait(), End::Status(0), "{block}");
        told.extend(&changed);
        told.sort();
        let lines: Vec<_> = told.iter().map(|id| format!("{id}|{{\"id\":{id}}}")).collect();
        assert_eq!(sorted(world.kafka.records("products").iter().map(Record::line)), lines, "{block}");
        let covered = world.kafka.records("products-delay").into_iter().map(|record| record.key.unwrap());
        assert_eq!(sorted(covered), told.iter().map(u32::to_string).collect::<Vec<_>>(), "{block}");
        let last = changed.last().unwrap();
        let shown = format!("\"key\":\"{last}\",\"headers\":[],\"payload\":{{\"id\":{last}}}}}");
        assert!(process.says(&[&shown]), "{block}: {:?}", process.log());
    }
    assert!(changes.next().is_none(), "an example is missing");
    let rows = block_on(shop.texts("SELECT id || ' ' || name || ' ' || price FROM products ORDER BY id"));
    assert_eq!(rows, ["1 tea 500", "2 tea 500", "3 tea 500", "4 tea 500"]);
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

/// The commands of lines for cron: five fields, the user, the command.
fn cron_commands(text: &str) -> Vec<&str> {
    let is_field = |field: &&str| field.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
    let is_line = |line: &&str| line.split_whitespace().take_while(is_field).count() == 5;
    text.lines().filter(is_line).map(|line| line.split_once(" ksync ").unwrap().1.trim()).collect()
}

#[test]
fn the_lines_for_cron_run_as_cron_runs_them() {
    let world = World::alone("readme-cron");
    let [postgres, ..] = block_on(primaries("readme_cron"));
    thousand_products(&postgres);
    world.kafka.create("products", 1, &[]);
    world.kafka.create("products-delay", 1, &[("message.timestamp.type", "LogAppendTime")]);
    // The files of an installation.
    let at = world.dir.display();
    let config = world.file("ksync.conf");
    let servers = format!("KSYNC_BOOTSTRAP_SERVER={}\n", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    fs::write(&config, format!("{servers}KSYNC_DATABASE={}\n", postgres.url)).unwrap();
    fs::write(world.dir.join("night.sql"), "UPDATE products SET name = upper(name) WHERE id IN (:keys)").unwrap();
    fs::write(world.dir.join("database-url"), &postgres.url).unwrap();
    let holds = holds(&world);
    let cron = "-i PATH=/usr/bin:/bin SHELL=/bin/sh HOME=/";
    let run = |command: &str| {
        assert!(!command.contains('%'), "that is a line break to cron: {command}");
        let command = command
            .replace("/usr/local/bin/ksync-stream", STREAM)
            .replace("/usr/local/lib/ksync/index-holds", &holds)
            .replace("/var/lib/ksync", &at.to_string())
            .replace("/etc/ksync", &at.to_string());
        let command = format!("{cron} KSYNC_CONFIG={} /bin/sh -c '{command}'", config.display());
        let mut process = world.start("env", &command, &[]);
        // With -q cron has nothing to send.
        assert_eq!((process.wait(), process.log()), (End::Status(0), vec![]), "{command}");
    };
    let readme = readme();
    let commands = cron_commands(&readme);
    let [reindex, night, sunday, nightly] = commands[..] else { panic!("{commands:?}") };
    for count in [1000, 2000] {
        run(reindex);
        assert_eq!(world.kafka.count("products"), count);
    }
    for _ in 0..2 {
        run(night);
        assert_eq!((world.kafka.count("products"), world.kafka.count("products-delay")), (3000, 1000));
    }
    assert_eq!(block_on(postgres.texts("SELECT DISTINCT name FROM products")), ["X"]);
    run(sunday);
    assert_eq!(world.kafka.count("products"), 3000);
    run(nightly);
    assert_eq!(world.kafka.count("products"), 4000);
    let example = fs::read_to_string(Path::new(PROJECT).join("examples/systemd/ksync.cron")).unwrap();
    assert_eq!(cron_commands(&example), [nightly]);
}

/// A store that holds all that it is asked for.
fn holds(world: &World) -> String {
    let rows = r#"sed 's/"payload":{[^}]*},//'"#;
    world.script(&format!(r#"if [ "$1" = --list ]; then seq 1000 | sed 's/.*/{{"key":"&"}}/'; else {rows}; fi"#))
}

#[test]
fn the_comparisons_find_no_difference_where_there_is_none() {
    let world = World::alone("readme-verify");
    let [postgres, ..] = block_on(primaries("readme_verify"));
    thousand_products(&postgres);
    block_on(postgres.execute("ALTER TABLE products ADD updated_at TIMESTAMPTZ DEFAULT now()"));
    world.kafka.create("products", 1, &[]);
    let holds = holds(&world);
    let readme = readme();
    let (_, section) = readme.split_once("\n### Find what differs\n").unwrap();
    let section = section.split_once("\n### ").unwrap().0.replace("\\\n", "");
    let commands: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("    ksync-stream ")).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let command = command.replace("/usr/local/lib/ksync/index-holds", &holds);
        let script = world.script(&format!("exec {STREAM} {command}"));
        let mut run = world.start(&script, "", &[("DATABASE_URL", postgres.url.as_str())]);
        assert_eq!(run.wait(), End::Status(0), "{command}");
        assert!(run.says(&["no difference"]), "{command}: {:?}", run.log());
    }
}

#[test]
fn the_throttle_queries_give_numbers() {
    let [postgres, mariadb, _] = block_on(primaries("readme_throttle"));
    block_on(mariadb.execute("CREATE TABLE heartbeat (ts VARCHAR(26) NOT NULL, server_id INT UNSIGNED PRIMARY KEY)"));
    let now = "DATE_FORMAT(UTC_TIMESTAMP(6) - INTERVAL 15 SECOND, '%Y-%m-%dT%H:%i:%s.%f')";
    block_on(mariadb.execute(&format!("INSERT INTO heartbeat VALUES ({now}, 1)")));
    let block = sql_of("Slow it down");
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

/// The statements of README.md that give rights: those for Postgres, those for MariaDB.
fn rights() -> (Vec<String>, Vec<String>) {
    let block = sql_of("Replicas, rights, sessions");
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
