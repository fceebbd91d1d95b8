//! Postgres with a hot standby that is behind: ksync-stream and handlers read from it.

use std::fs;

use ksync::database::{Database, Dialect, Question};

use crate::readme::sql_of;
use crate::support::{End, Primary, Services, Standby, World, block_on};

fn prices(primary: &Primary) -> Vec<String> {
    block_on(primary.texts("SELECT price FROM products"))
}

/// A query of docs/stream.md, by its comment, but for a second instead of ten.
fn query(comment: &str) -> String {
    let block = sql_of("docs/stream.md", "Slow it down");
    let (_, rest) = block.split_once(&format!("-- Postgres: {comment}")).unwrap();
    let (_, sql) = rest.split_once('\n').unwrap();
    sql.split("\n--").next().unwrap().replace("- 10", "- 1")
}

fn number(primary: &Primary, sql: &str) -> Option<f64> {
    let question = Question::parse(sql, Dialect::Postgres).unwrap();
    block_on(async { Database::open(&primary.url).await?.number(&question).await }).unwrap()
}

#[test]
fn what_a_handler_reads_too_early_from_a_standby_the_delay_message_heals_and_its_lag_holds_a_run_up() {
    let world = World::new("standby");
    let services = Services::postgres(&world.id);
    let primary = Primary { dialect: Dialect::Postgres, url: services.get("KSYNC_TEST_POSTGRES").to_owned() };
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0)"));
    block_on(primary.execute("CREATE TABLE beats (n INTEGER)"));
    let beat = || block_on(primary.execute("INSERT INTO beats VALUES (1)"));
    let standby = Standby::of(&primary, &world);
    let replica = &standby.replica;
    // Before its first one it does not know how old the last transaction is that it has.
    beat();
    world.eventually("it follows", || block_on(replica.texts("SELECT n FROM beats")).len() == 1);
    standby.hold(&world);

    let topic = world.topic_with_delay("products", 1);
    let seen = world.file("seen");
    let look = format!("psql -X -A -t -c 'SELECT price FROM products' '{}' >> {}", replica.url, seen.display());
    let handler = world.handler(&look);
    let consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
    world.eventually("it leads", || consumer.says(&["leading from offset 0"]));
    let source = format!("--database {} --action-database {} --table products", replica.url, primary.url);
    let update = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
    let mut stream = world.stream(&format!("-t {topic} {source} {update}"));
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    assert_eq!(prices(&primary), ["1"]);
    world.eventually("the instant message is handled", || handler.payloads().len() == 1);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "0\n");

    let (of_primary, of_replica) = (query("replicas, "), query("a replica, "));
    for (asked, sql) in [(&primary, &of_primary), (replica, &of_replica)] {
        world.eventually("its lag is seen", || {
            beat();
            number(asked, sql) > Some(0.0)
        });
    }
    let others = world.topic("others", 1);
    let throttle = format!("--throttle-database {} --throttle-query '{of_replica}'", replica.url);
    let mut held = world.stream_lines(&format!("- -t {others} {throttle}"), "{\"id\":1}\n");
    world.eventually("a run waits for it", || {
        held.ask();
        held.says(&["; paused since 2", "Z: the throttle query says "])
    });

    standby.let_go();
    assert_eq!(held.wait(), End::Status(0), "{:?}", held.log());
    world.eventually("it has caught up", || prices(replica) == ["1"]);
    let _delayer = world.delayer(&format!("-t {topic} --delay 100ms"));
    world.eventually("the delay message is handled", || handler.payloads().len() == 2);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "0\n1\n");
    standby.end();
}
