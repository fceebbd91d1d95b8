//! Statements of ksync-stream besides plain updates of rows that nobody else wants.

use std::slice;
use std::thread;
use std::time::Duration;

use ksync::database::Dialect;
use rustix::process::Signal;
use sqlx::{Connection, MySqlConnection, PgConnection};

use crate::application_faults::copying;
use crate::resume::{instant, payloads};
use crate::resume_killed::{new_copy, prices};
use crate::stream::delayed;
use crate::support::{Application, End, Primary, World, block_on, primaries};

fn products_of(primary: &Primary, rows: usize) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    let rows: Vec<_> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

fn new_topic(world: &World) -> String {
    world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1)
}

#[test]
fn rows_are_copied_chunk_by_chunk_and_those_that_are_there_already_are_refused() {
    let world = World::new("insert-select");
    for primary in block_on(primaries("statements_copy")) {
        products_of(&primary, 25);
        block_on(primary.execute("CREATE TABLE archive (id INTEGER PRIMARY KEY, price INTEGER)"));
        let archived = || block_on(primary.texts("SELECT id FROM archive ORDER BY id"));
        let all: Vec<_> = (1..=25).map(|id| id.to_string()).collect();
        let payloads: Vec<_> = all.iter().map(|id| format!("{{\"id\":{id}}}")).collect();
        let sql = "--sql 'INSERT INTO archive SELECT id, price FROM products WHERE id IN (:keys)'";
        let run = |topic: &str| {
            let source = format!("--database {} --table products --chunk-size 10 --chunk-time 1h", primary.url);
            world.stream(&format!("-t {topic} {source} {sql}"))
        };
        let topic = new_topic(&world);
        let mut copies = run(&topic);
        assert_eq!((copies.wait(), archived()), (End::Status(0), all.clone()), "{primary:?}: {:?}", copies.log());
        let instant: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!((&delayed(&world, &topic), &instant), (&payloads, &payloads), "{primary:?}");

        block_on(primary.execute("DELETE FROM archive WHERE id < 20"));
        let topic = new_topic(&world);
        let mut refused = run(&topic);
        assert_eq!(refused.wait(), End::Status(1), "{primary:?}: {:?}", refused.log());
        assert!(refused.says(&["error: cannot run the statement: "]), "{primary:?}: {:?}", refused.log());
        // The first chunk is whole, of the second one, which has the row 20, is nothing.
        let expected = [&all[..10], &all[19..]].concat();
        assert_eq!((archived(), world.kafka.count(&topic)), (expected, 10), "{primary:?}");
    }
}

#[test]
fn deleted_rows_have_both_messages_and_are_deleted_from_the_copy_and_the_next_run_deletes_the_rest() {
    let world = World::new("deleted");
    let shops = block_on(primaries("statements_deleted")).map(|primary| {
        let (topic, copy) = (new_topic(&world), new_copy(&world));
        block_on(primary.execute(Application::TABLE));
        let rows: Vec<_> = (1..=25).map(|id| format!("({id}, 0)")).collect();
        for database in [&primary, &copy] {
            block_on(database.execute(&format!("INSERT INTO products (id, price) VALUES {}", rows.join(", "))));
        }
        // So long that the instant messages have to do it.
        let copying = copying(&world, slice::from_ref(&topic), (&primary, &copy), Duration::from_secs(300));
        (primary, copy, topic, copying)
    });
    for (primary, copy, topic, _copying) in &shops {
        let keep = format!("--checkpoint {}", world.file("checkpoint").display());
        let source = format!("-t {topic} --database {} --table products --where 'id > 5'", primary.url);
        let run = |options: &str| {
            let delete = "--sql 'DELETE FROM products WHERE id IN (:keys)'";
            world.stream(&format!("{source} --chunk-size 10 --chunk-time 1h {keep} {options} {delete}"))
        };
        let left = |ids: &[u32]| ids.iter().map(|id| format!("{id} 0")).collect::<Vec<_>>();
        let mut first = run("--pause 1h");
        world.eventually("the first chunk is announced", || world.kafka.count(topic) == 10);
        first.signal(Signal::TERM);
        assert_eq!(first.wait(), End::Status(75), "{primary:?}: {:?}", first.log());
        let rest: Vec<u32> = (1..=5).chain(16..=25).collect();
        assert_eq!(prices(primary), left(&rest), "{primary:?}");
        world.eventually("the copy has no more either", || prices(copy) == left(&rest));

        let mut next = run("");
        assert_eq!(next.wait(), End::Status(0), "{primary:?}: {:?}", next.log());
        let told = next.says(&["info: going on behind key 15: 10 rows were done by "]);
        assert!(told, "{primary:?}: {:?}", next.log());
        assert_eq!(prices(primary), left(&[1, 2, 3, 4, 5]), "{primary:?}");
        let deleted = payloads(6..=25);
        assert_eq!((&delayed(&world, topic), &instant(&world, topic)), (&deleted, &deleted), "{primary:?}");
        world.eventually("the copy has no more either", || prices(copy) == prices(primary));
    }
}

#[test]
fn a_statement_that_no_index_of_mariadb_serves_is_told_with_what_to_write() {
    let world = World::new("listed-rows");
    let [_, primary, _] = block_on(primaries("statements_listed"));
    block_on(primary.execute("CREATE TABLE parts (a INTEGER, b INTEGER, n INTEGER, PRIMARY KEY (a, b))"));
    block_on(primary.execute("INSERT INTO parts VALUES (1, 1, 0), (1, 2, 0)"));
    let topic = new_topic(&world);
    let is_told = |row: &str| {
        let sql = format!("--sql 'UPDATE parts SET n = n + 1 WHERE {row} IN (:keys)'");
        let mut stream = world.stream(&format!("-t {topic} --database {} --table parts {sql}", primary.url));
        assert_eq!(stream.wait(), End::Status(0), "{row}: {:?}", stream.log());
        stream.says(&["warn: each chunk may go through the whole table", " an index serves only (a, b) IN (:keys)"])
    };
    assert_eq!(["(a, b)", "ROW(a, b)"].map(is_told), [false, true]);
    assert_eq!(block_on(primary.texts("SELECT n FROM parts")), ["2", "2"]);
}

/// A row of `products` that gets the price 1 takes the only row of `stock`, too.
fn stocked(primary: &Primary) {
    products_of(primary, 1);
    block_on(primary.execute("CREATE TABLE stock (n INTEGER); INSERT INTO stock VALUES (0)"));
    block_on(primary.execute(match primary.dialect {
        // It waits for a lock before that.
        Dialect::Postgres => {
            "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               PERFORM pg_advisory_xact_lock(60606);
               UPDATE stock SET n = n + 1;
               RETURN NEW;
             END $$;
             CREATE TRIGGER take AFTER UPDATE ON products FOR EACH ROW WHEN (NEW.price = 1) EXECUTE FUNCTION take()"
        }
        _ => {
            "CREATE TRIGGER take AFTER UPDATE ON products FOR EACH ROW
               IF NEW.price = 1 THEN UPDATE stock SET n = n + 1; END IF"
        }
    }));
}

const BUY: &str = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";

#[test]
fn a_statement_that_postgres_ends_in_a_deadlock_is_tried_again() {
    let world = World::new("deadlock");
    let [primary, ..] = block_on(primaries("statements_deadlock"));
    stocked(&primary);
    let connect = || block_on(PgConnection::connect(&primary.url)).unwrap();
    let is_seen = |sql: &str| !block_on(primary.texts(sql)).is_empty();
    let (mut gate, mut other) = (connect(), connect());
    block_on(sqlx::raw_sql("SELECT pg_advisory_lock(60606)").execute(&mut gate)).unwrap();
    // It never looks whether it waits in a circle: the stream does, after a second.
    let begin = "SET deadlock_timeout = '1h'; BEGIN; UPDATE stock SET n = n + 10";
    block_on(sqlx::raw_sql(begin).execute(&mut other)).unwrap();
    let topic = new_topic(&world);
    let mut stream = world.stream(&format!("-t {topic} --database {} --table products {BUY}", primary.url));
    let waits = "SELECT pid::text FROM pg_locks WHERE locktype = 'advisory' AND objid = 60606 AND NOT granted";
    world.eventually("the statement has its row", || is_seen(waits));
    let other = thread::spawn(move || {
        let buy = "UPDATE products SET price = 5 /* of the other */; COMMIT";
        block_on(sqlx::raw_sql(buy).execute(&mut other)).unwrap();
    });
    let waits = "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid <> pg_backend_pid()
                 AND query LIKE '%of the other%'";
    world.eventually("the other waits for that row", || is_seen(waits));
    block_on(gate.close()).unwrap();
    other.join().unwrap();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let told = ["warn: the statement met another transaction: deadlock detected", "; trying again in 50ms"];
    assert!(stream.says(&told) && stream.says(&["; 2 messages, 1 retries; "]), "{:?}", stream.log());
    assert_eq!(block_on(primary.texts("SELECT price::text FROM products")), ["1"]);
    assert_eq!(block_on(primary.texts("SELECT n::text FROM stock")), ["11"]);
    assert_eq!(world.kafka.count(&topic), 1);
}

#[test]
fn a_statement_that_mariadb_ends_in_a_deadlock_is_tried_again() {
    let world = World::new("deadlock");
    let [_, primary, _] = block_on(primaries("statements_circle"));
    stocked(&primary);
    // Who has changed less is ended.
    block_on(primary.execute("CREATE TABLE ballast (n INTEGER)"));
    let ballast = vec!["(1)"; 100].join(", ");
    let mut other = block_on(MySqlConnection::connect(&primary.url)).unwrap();
    let begin = format!("BEGIN; UPDATE stock SET n = n + 10; INSERT INTO ballast VALUES {ballast}");
    block_on(sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut other)).unwrap();
    let topic = new_topic(&world);
    let mut stream = world.stream(&format!("-t {topic} --database {} --table products {BUY}", primary.url));
    // What innodb_trx shows stays as it is while it is read more often than each 100 ms.
    let waits = "SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE db = 'ksync_statements_circle'
                 AND command <> 'Sleep' AND id <> CONNECTION_ID() AND time_ms > 1000";
    world.eventually("the statement waits for the other", || !block_on(primary.texts(waits)).is_empty());
    block_on(sqlx::raw_sql("UPDATE products SET price = 5; COMMIT").execute(&mut other)).unwrap();
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let told = ["warn: the statement met another transaction: 1213 ", "; trying again in 50ms"];
    assert!(stream.says(&told) && stream.says(&["; 2 messages, 1 retries; "]), "{:?}", stream.log());
    assert_eq!(block_on(primary.texts("SELECT price FROM products")), ["1"]);
    assert_eq!(block_on(primary.texts("SELECT n FROM stock")), ["11"]);
    assert_eq!(world.kafka.count(&topic), 1);
}
