//! Commands that are ended with their ksync-stream, while a server goes on with what they have asked it for.

use std::fs;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::support::{World, block_on, primaries};

#[test]
fn what_a_server_commits_behind_a_command_that_was_ended_reaches_the_handler_by_its_delay_message() {
    let world = World::new("command-ended");
    let [primary, ..] = block_on(primaries("command_ended"));
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0)"));
    let prices = || block_on(primary.texts("SELECT price FROM products"));
    let mut other = block_on(PgConnection::connect(&primary.url)).unwrap();
    block_on(sqlx::raw_sql("BEGIN; SELECT id FROM products FOR UPDATE").execute(&mut other)).unwrap();
    let topic = world.topic_with_delay("products", 1);
    let update = format!("UPDATE products SET price = 1 /* of {} */", world.id);
    let action = world.script(&format!("cat > /dev/null; psql -X -q -c '{update}' '{}'", primary.url));
    let mut stream = world.stream_lines(&format!("- -t {topic} -- {action}"), "{\"id\":1}\n");
    let waits = format!(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE%/* of {} */'",
        world.id
    );
    let is_waiting = || !block_on(primary.texts(&waits)).is_empty();
    world.eventually("the server waits with it", is_waiting);
    stream.kill();
    world.eventually("the command is ended", || world.processes() == 0);
    // The server does not look whether somebody still waits for its answer.
    assert!(is_waiting());
    assert_eq!((prices(), world.kafka.count(&topic)), (vec!["0".to_owned()], 0));
    block_on(sqlx::raw_sql("ROLLBACK").execute(&mut other)).unwrap();
    world.eventually("the server commits it", || prices() == ["1"]);

    let seen = world.file("seen");
    let look = format!("psql -X -A -t -c 'SELECT price FROM products' '{}' >> {}", primary.url, seen.display());
    let handler = world.handler(&look);
    let _delayer = world.delayer(&format!("-t {topic} --delay 100ms"));
    let _consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
    world.within(Duration::from_secs(30), "the handler has it", || handler.payloads() == ["{\"id\":1}"]);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "1\n");
}
