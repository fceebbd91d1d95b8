//! ksync-stream whose sessions with a database hear no more of it.

use std::time::Duration;

use ksync::database::Dialect;

use crate::stream::delayed;
use crate::support::{End, Hole, Lost, Primary, Process, World, block_on, primaries};

/// After this time without an answer a run gives up.
const SILENCE: Duration = Duration::from_secs(60);

fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    block_on(primary.execute("INSERT INTO products VALUES (1, 0), (2, 0), (3, 0)"));
}

fn new_topic(world: &World) -> String {
    world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1)
}

/// Its database's URL with the server's address, and that with another one in its place.
fn server_of(primary: &Primary) -> &str {
    let (_, rest) = primary.url.split_once('@').unwrap();
    rest.split_once('/').unwrap().0
}

/// How many statements sleep there.
fn running(primary: &Primary) -> usize {
    let sql = match primary.dialect {
        Dialect::Postgres => {
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'UPDATE products%10%'"
        }
        _ => "SELECT id FROM information_schema.processlist WHERE state = 'User sleep' AND db = 'ksync_vanished'",
    };
    block_on(primary.texts(sql)).len()
}

fn servers(test: &str) -> Vec<Primary> {
    block_on(primaries(test)).into_iter().filter(|primary| primary.dialect != Dialect::Sqlite).collect()
}

#[test]
fn a_run_ends_when_its_database_has_vanished_without_a_word_but_not_while_it_is_slow() {
    let world = World::new("vanished");
    // Each has a row of its own, which no other one locks.
    let action = |primary: &Primary, id: usize, seconds: u32| {
        let sleep = if primary.dialect == Dialect::Postgres { "pg_sleep" } else { "SLEEP" };
        let sleeps = format!("CONCAT({sleep}({seconds}), id) IS NOT NULL");
        format!("--where 'id = {id}' --sql 'UPDATE products SET price = 1 WHERE id IN (:keys) AND {sleeps}'")
    };
    let mut silent: Vec<(Process, String, Hole)> = vec![];
    let mut slow = vec![];
    for primary in servers("vanished") {
        products_of(&primary);
        let topic = new_topic(&world);
        let streams = [(1, Lost::Old), (2, Lost::All)].map(|(id, lost)| {
            let hole = Hole::before(server_of(&primary));
            let url = primary.url.replace(server_of(&primary), &hole.address);
            let stream =
                world.stream(&format!("-t {topic} --database {url} --table products {}", action(&primary, id, 10)));
            (stream, lost, hole)
        });
        // Each for ten seconds.
        world.eventually("both statements run", || running(&primary) == 2);
        for (stream, lost, hole) in streams {
            hole.lose(lost);
            silent.push((stream, topic.clone(), hole));
        }
        // It is at work for the same topic and table, but that says nothing of the others.
        let source = format!("-t {topic} --database {} --table products", primary.url);
        slow.push(world.stream(&format!("{source} {}", action(&primary, 3, 85))));
    }
    world.for_a_while(SILENCE / 2, "they wait", || silent.iter_mut().all(|(stream, ..)| stream.is_running()));
    for (mut stream, topic, _hole) in silent {
        // A minute behind the end of the slow one would be later.
        world.within(SILENCE, "it gives up", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(75), "{:?}", stream.log());
        assert!(stream.says(&["error: ", "the database has not answered for "]), "{:?}", stream.log());
        assert!(stream.says(&["warn: waiting for the database: "]), "{:?}", stream.log());
        let records = world.kafka.records(&topic);
        assert!(records.iter().all(|record| record.value.as_deref() == Some(r#"{"id":3}"#)), "{records:?}");
    }
    for mut stream in slow {
        world.within(2 * SILENCE, "it is done", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
        assert!(!stream.says(&["waiting for the database"]), "{:?}", stream.log());
    }
}

#[test]
fn a_command_ends_when_the_lock_of_its_job_is_gone_with_the_session() {
    let world = World::new("lock-gone");
    let mut runs = vec![];
    for primary in servers("lock_gone") {
        products_of(&primary);
        let topic = new_topic(&world);
        let action = world.script("cat > /dev/null; sleep 600");
        let stream = world.stream(&format!("-t {topic} --database {} --table products -- {action}", primary.url));
        world.eventually("the action runs", || delayed(&world, &topic).len() == 3);
        let (sessions, ends) = match primary.dialect {
            Dialect::Postgres => {
                let named = format!("application_name LIKE 'ksync-stream/{topic}/%'");
                (format!("SELECT '(' || pid || ')' FROM pg_stat_activity WHERE {named}"), "SELECT pg_terminate_backend")
            }
            _ => {
                let ours = "db = 'ksync_lock_gone' AND id <> CONNECTION_ID()";
                (format!("SELECT CONCAT(' ', id) FROM information_schema.processlist WHERE {ours}"), "KILL")
            }
        };
        let mut found = vec![];
        world.eventually("its session is seen", || {
            found = block_on(primary.texts(&sessions));
            found.len() == 1
        });
        block_on(primary.execute(&format!("{ends}{}", found[0])));
        runs.push((stream, topic));
    }
    for (mut stream, topic) in runs {
        world.within(Duration::from_secs(45), "it notices", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(75), "{:?}", stream.log());
        assert!(stream.says(&["error: ", "the session has ended: "]), "{:?}", stream.log());
        assert_eq!(world.kafka.count(&topic), 0);
    }
    world.eventually("the actions are ended", || world.processes() == 0);
}
