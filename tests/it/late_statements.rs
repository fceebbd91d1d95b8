//! Statements of ksync-stream that last longer than the delay, or never get by those who are in their way.

use std::fs;
use std::time::Duration;

use ksync::database::Dialect;
use sqlx::{Connection, SqliteConnection};

use crate::commit_lost::way_to;
use crate::stream::made_at;
use crate::support::{End, Moment, Primary, World, block_on, primaries};

/// A table with one row.
fn product_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0)"));
}

fn price(primary: &Primary) -> Vec<String> {
    block_on(primary.texts("SELECT price FROM products"))
}

const UPDATE: &str = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";

#[test]
fn what_a_statement_longer_than_the_delay_has_committed_before_a_crash_reaches_the_handler() {
    let world = World::new("late-statement");
    let [postgres, mariadb, _] = block_on(primaries("late_statement"));
    let (hold, over_the_way) = way_to(&postgres);
    let topics = ["crashes", "ends"].map(|name| world.topic_with_delay(name, 1));
    let (delay_topic, seen) = (format!("{}-delay", topics[0]), world.file("seen"));
    let run = |topic: &str, primary: &Primary| {
        let sleep = if primary.dialect == Dialect::Postgres { "pg_sleep" } else { "SLEEP" };
        let where_slow = format!("WHERE id IN (:keys) AND CONCAT({sleep}(7), id) IS NOT NULL");
        let source = format!("-t {topic} --delay 4s --database {} --table products", primary.url);
        world.stream(&format!("{source} --sql 'UPDATE products SET price = 1 {where_slow}'"))
    };
    for primary in [&postgres, &mariadb] {
        product_of(primary);
    }
    let look = format!("psql -XAt -c 'SELECT price FROM products' '{}' >> {}", postgres.url, seen.display());
    let handler = world.handler(&look);
    let daemons = [
        world.delayer(&format!("-t {} --delay 4s", topics[0])),
        world.consume(&format!("-t {} -n indexer -- {handler}", topics[0])),
    ];
    world.eventually("both lead", || daemons.iter().all(|daemon| daemon.says(&["leading from offset 0"])));

    hold.at(Moment::Committed);
    let (mut crashes, mut ends) = (run(&topics[0], &over_the_way), run(&topics[1], &mariadb));
    world.eventually("the answer to its commit is held", || hold.is_held());
    assert_eq!(price(&postgres), ["1"]);
    crashes.kill();
    hold.let_go();
    world.within(Duration::from_secs(4 + 30), "the handler has seen what was committed", || {
        fs::read_to_string(&seen).is_ok_and(|prices| prices.lines().any(|price| price == "1"))
    });
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("all are sent on", || seat.offset() == Some(world.kafka.count(&delay_topic)));
    // Nothing else has told the handler.
    assert_eq!(world.kafka.count(&topics[0]), world.kafka.count(&delay_topic));

    assert_eq!((ends.wait(), price(&mariadb)), (End::Status(0), vec!["1".to_owned()]), "{:?}", ends.log());
    assert_eq!(world.kafka.count(&topics[1]), 1);
    for topic in &topics {
        let made: Vec<f64> = world.kafka.records(&format!("{topic}-delay")).iter().map(made_at).collect();
        // Each before the one before was due.
        let are_in_time = made.windows(2).all(|pair| pair[1] - pair[0] < 4.0);
        assert!(made.len() >= 3 && are_in_time, "{topic}: {made:?}");
    }
}

#[test]
fn a_statement_that_others_are_in_the_way_of_each_time_is_given_up_after_five_attempts() {
    let world = World::new("conflicts");
    let [postgres, mariadb, _] = block_on(primaries("late_conflicts"));
    for primary in [postgres, mariadb] {
        product_of(&primary);
        // It is not rolled back.
        block_on(primary.execute("CREATE SEQUENCE attempts"));
        let (trigger, count) = match primary.dialect {
            Dialect::Postgres => (
                "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   PERFORM nextval('attempts');
                   RAISE EXCEPTION 'conflict' USING ERRCODE = '40001';
                 END $$;
                 CREATE TRIGGER conflict BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION conflict()",
                "SELECT nextval('attempts')",
            ),
            _ => (
                "CREATE TRIGGER conflict BEFORE UPDATE ON products FOR EACH ROW
                   IF NEXTVAL(attempts) > 0 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF",
                "SELECT NEXTVAL(attempts)",
            ),
        };
        block_on(primary.execute(trigger));
        let topic = world.topic_with_delay(&format!("{primary:?}").to_lowercase(), 1);
        let mut stream = world.stream(&format!("-t {topic} --database {} --table products {UPDATE}", primary.url));
        assert_eq!(stream.wait(), End::Status(75), "{primary:?}: {:?}", stream.log());
        assert_eq!(block_on(primary.texts(count)), ["6"], "{primary:?}");
        let met = "the statement met another transaction: ";
        let told: Vec<_> = stream.log_of("warn").into_iter().filter(|line| line.starts_with(met)).collect();
        let pauses: Vec<_> = told.iter().map(|line| line.rsplit_once("; trying again in ").unwrap().1).collect();
        assert_eq!(pauses, ["50ms", "100ms", "200ms", "400ms"], "{primary:?}");
        assert!(stream.says(&["error: cannot run the statement: "]), "{primary:?}: {:?}", stream.log());
        let sent = [&topic, &format!("{topic}-delay")].map(|topic| world.kafka.count(topic));
        assert_eq!((price(&primary), sent), (vec!["0".to_owned()], [0, 1]), "{primary:?}");
    }
}

#[test]
fn who_has_locked_a_sqlite_database_is_waited_for_but_not_for_ever() {
    let world = World::new("locked");
    let [.., sqlite] = block_on(primaries("late_locked"));
    product_of(&sqlite);
    for (busy_timeout, is_let_go) in [(50, false), (1000, true)] {
        let mut other = block_on(SqliteConnection::connect(&sqlite.url)).unwrap();
        block_on(sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other)).unwrap();
        let topic = world.topic_with_delay(if is_let_go { "waits" } else { "ends" }, 1);
        let session = format!("--session-sql 'PRAGMA busy_timeout = {busy_timeout}'");
        let source = format!("-t {topic} --database {} --table products {session}", sqlite.url);
        let mut stream = world.stream(&format!("{source} {UPDATE}"));
        let met = ["warn: the statement met another transaction: database is locked", "; trying again in "];
        let (end, price_then, sent) = if is_let_go {
            world.eventually("it has met the other", || stream.says(&met));
            block_on(sqlx::raw_sql("COMMIT").execute(&mut other)).unwrap();
            (End::Status(0), "1", [1, 1])
        } else {
            (End::Status(75), "0", [0, 1])
        };
        assert_eq!(stream.wait(), end, "{:?}", stream.log());
        let is_told = stream.says(&["error: cannot run the statement: database is locked"]);
        assert_eq!((stream.says(&met), is_told), (true, !is_let_go), "{:?}", stream.log());
        let counts = [&topic, &format!("{topic}-delay")].map(|topic| world.kafka.count(topic));
        assert_eq!((price(&sqlite), counts), (vec![price_then.to_owned()], sent));
        block_on(other.close()).unwrap();
    }
}
