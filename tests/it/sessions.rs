//! How ksync-stream's sessions with databases are: where a statement is run, for how long, and by which settings.

use std::fs;

use ksync::database::Dialect;
use sqlx::{Connection, MySqlConnection};

use crate::support::{End, Primary, World, block_on, pooler, primaries};

const SQL: &str = "--sql 'UPDATE products SET price = price + 1 WHERE id IN (:keys)'";

fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0), (2, 0), (3, 0)"));
}

fn prices(primary: &Primary) -> Vec<String> {
    block_on(primary.texts("SELECT price FROM products ORDER BY id"))
}

fn new_topic(world: &World) -> String {
    world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1)
}

#[test]
fn rows_are_read_from_a_replica_and_changed_in_the_primary_which_keeps_how_far_it_is() {
    let world = World::new("replica");
    let pairs = block_on(primaries("session_replica")).into_iter().zip(block_on(primaries("session_primary")));
    for (replica, primary) in pairs {
        products_of(&replica);
        products_of(&primary);
        let topic = new_topic(&world);
        let source = format!("-t {topic} --database {} --table products --chunk-size 2", replica.url);
        let command = format!("{source} {SQL} --checkpoint-table --action-database {}", primary.url);
        for _ in 0..2 {
            let mut stream = world.stream(&command);
            assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
            assert_eq!((prices(&replica), prices(&primary)), (vec!["0".into(); 3], vec!["1".into(); 3]), "{primary:?}");
        }
        assert_eq!(block_on(primary.texts("SELECT job FROM ksync_checkpoints")).len(), 1, "{primary:?}");
        assert_eq!(world.kafka.count(&topic), 3);
        if primary.dialect != Dialect::Sqlite {
            // On another address of the primary it is the same job, and so it is by another replica.
            let elsewhere = [&primary.url, &replica.url];
            for url in elsewhere {
                let mut again = world.stream(&command.replace(url, &url.replace("127.0.0.1", "localhost")));
                assert_eq!(
                    (again.wait(), prices(&primary)),
                    (End::Status(0), vec!["1".into(); 3]),
                    "{:?}",
                    again.log()
                );
                assert!(again.says(&["says that this job was finished"]), "{:?}", again.log());
            }
            assert_eq!(block_on(primary.texts("SELECT job FROM ksync_checkpoints")).len(), 1, "{primary:?}");
        }
        // The same rows changed elsewhere are another job.
        let file = world.file("checkpoint");
        let keep = format!("{source} {SQL} --checkpoint {}", file.display());
        assert_eq!(world.stream(&keep).wait(), End::Status(0));
        let mut other = world.stream(&format!("{keep} --action-database {}", primary.url));
        assert_eq!(other.wait(), End::Status(78), "{primary:?}");
        assert!(other.says(&["is of another job: action database: none there"]), "{:?}", other.log());
    }
    let [postgres, mariadb, _] = block_on(primaries("session_kinds"));
    let other = format!("--table products {SQL} --action-database {}", mariadb.url);
    let mut refused = world.stream(&format!("-t products --database {} {other}", postgres.url));
    assert_eq!(refused.wait(), End::Status(2));
    assert!(refused.says(&["--action-database has to be of the same kind as the database of the rows"]));
}

#[test]
fn a_statement_that_takes_too_long_is_ended_by_the_database_and_leaves_nothing() {
    let world = World::new("statement-timeout");
    for primary in block_on(primaries("session_timeout")) {
        products_of(&primary);
        let sleep = if primary.dialect == Dialect::Postgres { "pg_sleep(30)::text = ''" } else { "SLEEP(30) = 0" };
        let sql = format!("--sql \"UPDATE products SET price = 1 WHERE id IN (:keys) AND {sleep}\"");
        let source = format!("--database {} --table products --statement-timeout 1s", primary.url);
        let mut stream = world.stream(&format!("-t {} {source} {sql}", new_topic(&world)));
        let (status, text) = match primary.dialect {
            Dialect::Postgres => (1, "cannot run the statement: canceling statement due to statement timeout"),
            Dialect::MySql => (1, "cannot run the statement: "),
            Dialect::Sqlite => (78, "only Postgres and MariaDB end a statement by time; leave out --statement-timeout"),
        };
        assert_eq!((stream.wait(), stream.says(&["error: ", text])), (End::Status(status), true), "{:?}", stream.log());
        assert_eq!(prices(&primary), ["0", "0", "0"], "{primary:?}");
    }
}

/// What sets a price for a session, and how SQL says it there.
fn price_of_session(dialect: Dialect) -> (&'static str, &'static str) {
    match dialect {
        Dialect::Postgres => ("SET my.price = '7'; SET lock_timeout = '1s'", "current_setting('my.price')::int"),
        Dialect::MySql => ("SET @price = 7; SET SESSION lock_wait_timeout = 1", "@price"),
        Dialect::Sqlite => ("CREATE TEMP TABLE mine AS SELECT 7 AS price", "(SELECT price FROM mine)"),
    }
}

#[test]
fn the_operator_s_own_settings_hold_for_all_of_a_session() {
    let world = World::new("session-sql");
    for primary in block_on(primaries("session_sql")) {
        products_of(&primary);
        let topic = new_topic(&world);
        let source = format!("-t {topic} --database {} --table products", primary.url);
        let (set, price) = price_of_session(primary.dialect);
        let sql = format!("--sql \"UPDATE products SET price = {price} WHERE id IN (:keys)\"");
        let mut stream = world.stream(&format!("{source} {sql} --session-sql \"{set}\""));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        assert_eq!(prices(&primary), ["7", "7", "7"], "{primary:?}");
        let mut refused = world.stream(&format!("{source} --session-sql 'SET nonsense to be'"));
        assert_ne!(refused.wait(), End::Status(0));
        assert!(refused.says(&["error: cannot run --session-sql: "]), "{:?}", refused.log());
    }
}

#[test]
fn the_operator_s_own_settings_hold_where_rows_are_read_and_where_they_are_changed() {
    let world = World::new("session-sql-two");
    let pairs = block_on(primaries("session_sql_read")).into_iter().zip(block_on(primaries("session_sql_act")));
    for (replica, primary) in pairs {
        products_of(&replica);
        products_of(&primary);
        let (set, price) = price_of_session(primary.dialect);
        let rows = format!("--database {} --table products --where \"price < {price}\"", replica.url);
        let sql = format!("--sql \"UPDATE products SET price = {price} WHERE id IN (:keys)\"");
        let action = format!("{sql} --action-database {}", primary.url);
        let mut stream = world.stream(&format!("-t {} {rows} {action} --session-sql \"{set}\"", new_topic(&world)));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        assert_eq!((prices(&replica), prices(&primary)), (vec!["0".into(); 3], vec!["7".into(); 3]), "{primary:?}");
    }
}

#[test]
fn keys_of_integers_are_read_by_copy_and_rows_that_have_more_by_a_query() {
    let world = World::new("copy");
    let [primary, ..] = block_on(primaries("session_copy"));
    products_of(&primary);
    for (options, begin) in
        [("", r#"COPY (SELECT "products"."id"::int8 FROM "#), ("--payload row", r#"SELECT "products"."id"::int8, "#)]
    {
        let topic = new_topic(&world);
        let source = format!("-t {topic} --database {} --table products --chunk-size 1 --pause 1h", primary.url);
        let stream = world.stream(&format!("{source} --read-ahead 0 {options}"));
        world.eventually("its first chunk is sent", || world.kafka.count(&topic) == 1);
        let named = format!("application_name LIKE 'ksync-stream/{topic}/%'");
        let asked = block_on(primary.texts(&format!("SELECT query FROM pg_stat_activity WHERE {named}")));
        assert!(asked.len() == 1 && asked[0].starts_with(begin), "{options}: {asked:?}");
        drop(stream);
    }
}

#[test]
fn a_session_tells_the_database_what_it_is_for_by_a_name_of_its_own() {
    let world = World::new("name");
    let [primary, ..] = block_on(primaries("session_name"));
    products_of(&primary);
    let (topic, gate) = (new_topic(&world), world.gate());
    let action = world.script(&format!("cat > /dev/null; await {gate}"));
    let source = format!("-t {topic} --database {} --table products", primary.url);
    let streams = [1, 2].map(|id| world.stream(&format!("{source} --where 'id = {id}' -- {action}")));
    let begin = format!("ksync-stream/{topic}/products/");
    let sql = format!("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE '{begin}%'");
    let mut names = vec![];
    world.eventually("both sessions have their names", || {
        names = block_on(primary.texts(&sql));
        names.len() == 2
    });
    assert!(names[0] != names[1] && names.iter().all(|name| name.len() == begin.len() + 6), "{names:?}");
    gate.open();
    for mut stream in streams {
        assert_eq!(stream.wait(), End::Status(0));
    }
}

#[test]
fn what_a_url_leaves_out_comes_from_where_the_clients_of_the_databases_have_it() {
    let world = World::new("left-out");
    let [postgres, mariadb, _] = block_on(primaries("session_left_out"));
    let stream = env!("CARGO_BIN_EXE_ksync-stream");
    for primary in [&postgres, &mariadb] {
        products_of(primary);
        // KIND://USER@HOST:PORT/REST
        let (kind, rest) = primary.url.split_once("://").unwrap();
        let (authority, rest) = rest.split_once('/').unwrap();
        let (user, server) = authority.split_once('@').unwrap();
        let (host, port) = server.rsplit_once(':').unwrap();
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let home = world.dir.join(kind);
        fs::create_dir(&home).unwrap();
        let password = if password.is_empty() { String::new() } else { format!("password='{password}'") };
        let client = format!("[client]\nuser={user}\n{password}\nhost = {host}\nport={port}\n");
        fs::write(home.join(".my.cnf"), client).unwrap();
        let home = ("HOME", home.to_str().unwrap());
        let environment = match primary.dialect {
            Dialect::Postgres => vec![home, ("PGHOST", host), ("PGPORT", port), ("PGUSER", user)],
            _ => vec![home],
        };
        let topic = new_topic(&world);
        let source = format!("-t {topic} --database '{kind}:///{rest}' --table products");
        let mut run = world.start(stream, &source, &environment);
        assert_eq!(run.wait(), End::Status(0), "{primary:?}: {:?}", run.log());
        assert_eq!(world.kafka.count(&topic), 3, "{primary:?}");
    }
}

#[test]
fn what_is_wrong_with_a_url_or_a_key_is_told_before_anything_is_sent() {
    let world = World::new("wrong-url");
    let [postgres, mariadb, sqlite] = block_on(primaries("session_wrong"));
    block_on(mariadb.execute("DROP USER IF EXISTS 'canary'@'127.0.0.1', 'canary'@'localhost'"));
    block_on(mariadb.execute("CREATE USER 'canary'@'127.0.0.1' IDENTIFIED BY 'right'"));
    block_on(mariadb.execute("CREATE USER 'canary'@'localhost' IDENTIFIED BY 'right'"));
    let server = |url: &str| url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let (pg, my) = (server(&postgres.url), server(&mariadb.url));
    for primary in [&postgres, &mariadb, &sqlite] {
        block_on(primary.execute("CREATE TABLE pairs (a INTEGER NOT NULL, b INTEGER)"));
        block_on(primary.execute("INSERT INTO pairs VALUES (1, 1), (1, NULL)"));
    }
    let topic = new_topic(&world);
    for (url, status, told) in [
        (format!("mysql://canary:PASSWORD@{my}/ksync_session_wrong"), 78, "Access denied for user 'canary'"),
        (format!("mysql://ksync@{my}/nowhere_to_be"), 78, "nowhere_to_be"),
        (format!("postgres://ksync:PASSWORD@{pg}/nowhere_to_be"), 78, "database \"nowhere_to_be\" does not exist"),
        (format!("postgres://ksync:PASSWORD@{pg}/ksync?sslmode=require"), 78, "server does not support TLS"),
        (
            format!("mysql://ksync:PASSWORD@{my}/ksync_session_wrong?ssl-mode=REQUIRED"),
            78,
            "server does not support TLS",
        ),
        ("postgres://ksync:PASSWORD@127.0.0.1:1/ksync".to_owned(), 75, "cannot connect to Postgres at 127.0.0.1:1"),
        ("mysql://ksync:PASSWORD@127.0.0.1:1/x".to_owned(), 75, "cannot connect to MySQL or MariaDB at 127.0.0.1:1"),
        ("sqlite:/no/such/file.db".to_owned(), 78, "cannot open the SQLite database /no/such/file.db"),
    ] {
        // Told everything, others may read it as well.
        for verbose in ["", "-vv"] {
            let options = format!("-t {topic} --table pairs --key a {SQL} {verbose}");
            let mut stream = world.start(env!("CARGO_BIN_EXE_ksync-stream"), &options, &[("DATABASE_URL", &url)]);
            assert_eq!(stream.wait(), End::Status(status), "{url}: {:?}", stream.log());
            assert!(stream.says(&["error: ", told]), "{url}: {:?}", stream.log());
            assert!(!stream.says(&["PASSWORD"]), "{url}: {:?}", stream.log());
        }
    }
    for primary in [&postgres, &mariadb, &sqlite] {
        let mut stream = world.stream(&format!("-t {topic} --database {} --table pairs --key a,b", primary.url));
        assert_eq!(stream.wait(), End::Status(78), "{primary:?}: {:?}", stream.log());
        assert!(
            stream.says(&["error: ", "table pairs has rows whose a, b is NULL"]),
            "{primary:?}: {:?}",
            stream.log()
        );
    }
    assert_eq!(world.kafka.count(&topic), 0);
}

#[test]
fn a_login_of_mariadb_that_cannot_be_used_is_told_from_one_that_cannot_be_used_yet() {
    let world = World::new("login");
    let [_, mariadb, _] = block_on(primaries("session_login"));
    products_of(&mariadb);
    let user = |name: &str| mariadb.url.replace("//ksync@", &format!("//ksync_{name}@"));
    for sql in [
        "CREATE OR REPLACE USER ksync_locked@'127.0.0.1' ACCOUNT LOCK",
        "CREATE OR REPLACE USER ksync_crowded@'127.0.0.1' WITH MAX_USER_CONNECTIONS 1",
        "GRANT SELECT ON products TO ksync_crowded@'127.0.0.1'",
    ] {
        block_on(mariadb.execute(sql));
    }
    let topic = new_topic(&world);
    let held = block_on(MySqlConnection::connect(&user("crowded"))).unwrap();
    for (name, status, told) in [("locked", 78, "account is locked"), ("crowded", 75, "max_user_connections")] {
        let mut stream = world.stream(&format!("-t {topic} --database {} --table products", user(name)));
        assert_eq!(stream.wait(), End::Status(status), "{name}: {:?}", stream.log());
        assert!(stream.says(&["error: cannot connect to MySQL or MariaDB at ", told]), "{name}: {:?}", stream.log());
    }
    block_on(held.close()).unwrap();
    assert_eq!(world.kafka.count(&topic), 0);
}

#[test]
fn a_pooler_in_transaction_mode_is_recognised() {
    let world = World::new("pooler");
    let [primary, ..] = block_on(primaries("session_pooler"));
    products_of(&primary);
    let topic = new_topic(&world);
    let (server, _) = primary.url.strip_prefix("postgres://ksync@").unwrap().split_once('/').unwrap();
    let sql = "--sql 'UPDATE ksync_session_pooler.products SET price = 1 WHERE id IN (:keys)'";
    let run = |server: &str| {
        // The search path that a URL asks for is one of those things that are lost.
        let source = format!("--database postgres://ksync@{server}/ksync --table ksync_session_pooler.products");
        let mut stream = world.stream(&format!("-t {topic} {source} {sql}"));
        (stream.wait(), stream.log())
    };
    let recognised = |log: &[String]| log.iter().any(|line| line.contains("a pooler in transaction mode"));
    let (end, log) = run(server);
    assert!(end == End::Status(0) && !recognised(&log), "{log:?}");
    let pooler = pooler(server, "ksync", "ksync");
    let (end, log) = run(&pooler);
    assert!(end == End::Status(0) && recognised(&log), "{log:?}");
    // Its prepared statements are still there.
    let (end, log) = run(&pooler);
    assert!(end == End::Status(78) && recognised(&log), "{log:?}");
}

#[test]
fn tables_without_transactions_are_told_of_and_refused_where_no_row_may_be_changed_twice() {
    let world = World::new("no-transactions");
    let [_, mariadb, _] = block_on(primaries("session_engine"));
    products_of(&mariadb);
    block_on(mariadb.execute("ALTER TABLE products ENGINE=MyISAM"));
    let source = format!("-t {} --database {} --table products {SQL}", new_topic(&world), mariadb.url);
    let mut told = world.stream(&source);
    assert_eq!(told.wait(), End::Status(0));
    assert!(told.says(&["warn: ", "table products knows no transactions (MyISAM)"]), "{:?}", told.log());
    let mut refused = world.stream(&format!("{source} --checkpoint-table"));
    assert_eq!(refused.wait(), End::Status(78));
    assert!(
        refused.says(&["error: --checkpoint-table changes no row twice, but table products"]),
        "{:?}",
        refused.log()
    );
    assert_eq!(prices(&mariadb), ["1", "1", "1"]);
}
