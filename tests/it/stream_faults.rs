//! ksync-stream while Kafka, its database or itself goes away, and while others change the rows that it reads.

use std::fs;
use std::time::Duration;

use ksync::database::Dialect;
use rustix::process::{Signal, kill_process};
use sqlx::{Connection, MySqlConnection, PgConnection, SqliteConnection};

use crate::database::numbers;
use crate::stream::delayed;
use crate::support::{Client, End, Primary, Record, Services, World, block_on, is_full, primaries};

fn products_of(primary: &Primary, rows: usize) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    let rows: Vec<_> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

fn changed(primary: &Primary) -> Vec<String> {
    block_on(primary.texts("SELECT id FROM products WHERE price > 0 ORDER BY id"))
}

fn new_topic(world: &World) -> String {
    world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1)
}

/// Another program's session with a database, in which a transaction may stay open.
enum Other {
    Postgres(PgConnection),
    MySql(MySqlConnection),
    Sqlite(SqliteConnection),
}

impl Other {
    fn of(primary: &Primary) -> Other {
        match primary.dialect {
            Dialect::Postgres => Other::Postgres(block_on(PgConnection::connect(&primary.url)).unwrap()),
            Dialect::MySql => Other::MySql(block_on(MySqlConnection::connect(&primary.url)).unwrap()),
            Dialect::Sqlite => Other::Sqlite(block_on(SqliteConnection::connect(&primary.url)).unwrap()),
        }
    }

    fn run(&mut self, sql: &'static str) {
        let query = sqlx::raw_sql(sql);
        let done = match self {
            Other::Postgres(session) => block_on(query.execute(session)).map(drop),
            Other::MySql(session) => block_on(query.execute(session)).map(drop),
            Other::Sqlite(session) => block_on(query.execute(session)).map(drop),
        };
        done.unwrap();
    }
}

#[test]
fn while_kafka_is_away_between_commit_and_instant_messages_these_are_waited_for() {
    let world = World::alone("away-after-commit");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let action = world.script(&format!("cat > /dev/null; await {gate}; touch committed"));
    let mut stream = world.stream_lines(&format!("- -t {topic} -- {action}"), "{\"id\":1}\n");
    world.eventually("the action runs", || delayed(&world, &topic).len() == 1);
    let broker = world.services.pid("kafka-1");
    kill_process(broker, Signal::STOP).unwrap();
    gate.open();
    world.eventually("it has committed", || world.dir.join("committed").exists());
    if is_full() {
        // Longer than it tries.
        world.within(Duration::from_secs(90), "it gives up", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(75));
        assert!(stream.says(&["error: ", "cannot send the instant messages; the delay messages cover the change"]));
        kill_process(broker, Signal::CONT).unwrap();
        let handler = world.handler("");
        let _delayer = world.delayer(&format!("-t {topic} --delay 100ms"));
        let _consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
        world.within(Duration::from_secs(30), "its delay message brings it", || handler.payloads() == ["{\"id\":1}"]);
    } else {
        world.for_a_while(Duration::from_secs(1), "it waits", || stream.is_running());
        kill_process(broker, Signal::CONT).unwrap();
        assert_eq!(stream.wait(), End::Status(0));
        assert_eq!(world.kafka.count(&topic), 1);
    }
}

#[test]
fn a_connection_that_the_database_ends_leaves_whole_chunks_and_the_next_run_goes_on() {
    let world = World::new("connection-ended");
    for primary in block_on(primaries("faults_ended")).into_iter().filter(|it| it.dialect != Dialect::Sqlite) {
        products_of(&primary, 120);
        let topic = new_topic(&world);
        let keep = format!("--checkpoint {}", world.file("checkpoint").display());
        let source = format!("-t {topic} --database {} --table products --chunk-size 10 {keep}", primary.url);
        let slow = if primary.dialect == Dialect::Postgres { "pg_sleep(0.06) IS NOT NULL" } else { "SLEEP(0.06) = 0" };
        let sql = format!("--sql \"UPDATE products SET price = price + 1 WHERE id IN (:keys) AND {slow}\"");
        // Whole chunks, also where the database sleeps for rows that are not of the chunk.
        let command = format!("{source} --chunk-time 1h {sql}");
        let mut stream = world.stream(&command);
        world.eventually("some chunks are done", || changed(&primary).len() >= 20);
        let (ends, sessions) = match primary.dialect {
            Dialect::Postgres => {
                let named = format!("application_name LIKE 'ksync-stream/{topic}/%'");
                ("SELECT pg_terminate_backend", format!("SELECT '(' || pid || ')' FROM pg_stat_activity WHERE {named}"))
            }
            _ => {
                let running = "info LIKE 'UPDATE products%' AND db = 'ksync_faults_ended'";
                ("KILL", format!("SELECT CONCAT(' ', id) FROM information_schema.processlist WHERE {running}"))
            }
        };
        let mut found = vec![];
        world.eventually("its session is seen", || {
            found = block_on(primary.texts(&sessions));
            found.len() == 1
        });
        block_on(primary.execute(&format!("{ends}{}", found[0])));
        assert_eq!(stream.wait(), End::Status(75), "{primary:?}: {:?}", stream.log());
        let (done, told) = (changed(&primary).len(), delayed(&world, &topic).len());
        assert!(done % 10 == 0 && done < 120 && told >= done, "{done} changed, {told} delay messages");
        assert_eq!(world.kafka.count(&topic), done as i64, "{primary:?}");
        let mut next = world.stream(&command);
        assert_eq!((next.wait(), changed(&primary).len()), (End::Status(0), 120), "{primary:?}: {:?}", next.log());
    }
}

#[test]
fn a_server_that_is_killed_leaves_whole_chunks_and_the_next_run_goes_on() {
    let world = World::new("server-killed");
    let services = Services::postgres(&world.id);
    let primary = Primary { dialect: Dialect::Postgres, url: services.get("KSYNC_TEST_POSTGRES").to_owned() };
    products_of(&primary, 40);
    let source = format!("--database {} --table products --chunk-size 10 --chunk-time 1h", primary.url);

    let topic = new_topic(&world);
    let update = "--checkpoint-table --sql 'UPDATE products SET price = price + 1 WHERE id IN (:keys)'";
    let command = format!("-t {topic} {source} {update}");
    let mut other = Other::of(&primary);
    other.run("BEGIN; SELECT id FROM products WHERE id = 25 FOR UPDATE");
    let mut stream = world.stream(&command);
    let waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    world.eventually("the third chunk is at its statement", || !block_on(primary.texts(waits)).is_empty());
    kill_process(services.pid("postgres"), Signal::KILL).unwrap();
    assert_eq!(stream.wait(), End::Status(75), "{:?}", stream.log());
    services.start_again("postgres");
    assert_eq!((changed(&primary).len(), world.kafka.count(&topic)), (20, 20));
    let mut next = world.stream(&command);
    assert_eq!(next.wait(), End::Status(0), "{:?}", next.log());
    assert_eq!(block_on(primary.texts("SELECT DISTINCT price FROM products")), ["1"]);
    assert_eq!(world.kafka.count(&topic), 40);

    let (topic, path) = (new_topic(&world), world.file("control"));
    let keep = format!("--read-ahead 0 --checkpoint {}", world.file("checkpoint").display());
    let command = format!("-t {topic} {source} {keep}");
    let mut stream = world.stream(&format!("{command} --rate 0.001/s --control unix:{}", path.display()));
    let mut client = Client::to(&world, &path);
    world.eventually("a chunk is sent", || client.ask("status").contains("; paused since "));
    kill_process(services.pid("postgres"), Signal::KILL).unwrap();
    client.ask("rate off");
    assert_eq!(stream.wait(), End::Status(75), "{:?}", stream.log());
    services.start_again("postgres");
    // Sessions outlive their server for a moment.
    let done = world.kafka.count(&topic);
    assert!(done % 10 == 0 && done < 40, "{done}");
    let mut next = world.stream(&command);
    assert_eq!(next.wait(), End::Status(0), "{:?}", next.log());
    let told = format!("info: going on behind key {done}: {done} rows were done by ");
    assert!(next.says(&[&told]), "{:?}", next.log());
    assert_eq!(world.kafka.count(&topic), 40);
}

#[test]
fn the_statement_of_a_stream_that_is_killed_is_not_committed_by_the_server() {
    let world = World::new("killed-statement");
    for primary in block_on(primaries("faults_killed")).into_iter().filter(|it| it.dialect != Dialect::Sqlite) {
        products_of(&primary, 5);
        let slow = if primary.dialect == Dialect::Postgres { "pg_sleep(2) IS NOT NULL" } else { "SLEEP(2) = 0" };
        let sql = format!("--sql \"UPDATE products SET price = 1 WHERE id IN (:keys) AND {slow}\"");
        let topic = new_topic(&world);
        let mut stream = world.stream(&format!("-t {topic} --database {} --table products {sql}", primary.url));
        world.eventually("the statement runs", || delayed(&world, &topic).len() == 5);
        world.for_a_while(Duration::from_millis(300), "it is at work", || changed(&primary).is_empty());
        stream.kill();
        world.for_a_while(Duration::from_secs(12), "nothing is committed", || changed(&primary).is_empty());
    }
}

#[test]
fn the_last_line_of_stdin_needs_no_line_break_but_all_of_itself() {
    let world = World::new("last-line");
    let topic = new_topic(&world);
    let action = world.script("cat >> got");
    let run = |lines: &str| {
        let mut stream = world.stream_lines(&format!("- -t {topic} -- {action}"), lines);
        let end = stream.wait();
        (end, stream.log_of("error"))
    };
    assert_eq!(run("{\"id\":1}\n{\"id\":2}"), (End::Status(0), vec![]));
    assert_eq!(fs::read_to_string(world.dir.join("got")).unwrap(), "{\"id\":1}\n{\"id\":2}\n");
    let (end, told) = run("{\"id\":3}\n{\"id\":");
    assert!(end == End::Status(1) && told[0].starts_with("line 2 of stdin is not JSON"), "{told:?}");
    assert_eq!((world.kafka.count(&topic), delayed(&world, &topic).len()), (2, 2));
}

#[test]
fn what_others_change_meanwhile_changes_nothing_about_whom_a_chunk_announces() {
    let world = World::new("changed-meanwhile");
    for primary in block_on(primaries("faults_meanwhile")) {
        products_of(&primary, 30);
        block_on(primary.execute("DELETE FROM products WHERE id = 15"));
        let (topic, gate) = (new_topic(&world), world.gate());
        let action = world.script(&format!("cat > /dev/null; await {gate}"));
        let source = format!("--database {} --table products --where 'price = 0' --chunk-size 10", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} -- {action}"));
        world.eventually("the first chunk is at its action", || delayed(&world, &topic).len() == 20);
        // Of the chunk under way, and of the last one, which is not read yet: one that is gone, and one that the condition
        // leaves out. And some that come in before all, among those that are read already, and behind.
        block_on(primary.execute("DELETE FROM products WHERE id IN (3, 23)"));
        block_on(primary.execute("UPDATE products SET price = 1 WHERE id IN (4, 24)"));
        block_on(primary.execute("INSERT INTO products VALUES (-1, 0), (15, 0), (31, 0)"));
        gate.open();
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        let ids: Vec<_> =
            (1..=31).filter(|id| ![15, 23, 24].contains(id)).map(|id| format!("{{\"id\":{id}}}")).collect();
        let instant: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!((&delayed(&world, &topic), &instant), (&ids, &ids), "{primary:?}");
    }
}

#[test]
fn what_others_change_while_a_statement_waits_changes_nothing_about_whom_its_chunk_announces() {
    let world = World::new("changed-beside");
    for primary in block_on(primaries("faults_beside")) {
        products_of(&primary, 30);
        let topic = new_topic(&world);
        let mut other = Other::of(&primary);
        other.run(match primary.dialect {
            // Nobody else can write then.
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            // All that it is going to change, so that the statement has none of these before it waits.
            Dialect::Postgres | Dialect::MySql => "BEGIN; SELECT id FROM products WHERE id <= 5 FOR UPDATE",
        });
        let source = format!("--database {} --table products --where 'price = 0' --chunk-size 10", primary.url);
        let update = "--chunk-time 1h --sql 'UPDATE products SET price = 2 WHERE id IN (:keys) AND price = 0'";
        let mut stream = world.stream(&format!("-t {topic} {source} {update}"));
        world.eventually("the first chunk is at its statement", || delayed(&world, &topic).len() == 20);
        // One is gone, one that the statement passes over, one that has another key now, and one that is new.
        other.run(
            "DELETE FROM products WHERE id = 3;
             UPDATE products SET price = 1 WHERE id = 4;
             UPDATE products SET id = 40 WHERE id = 5;
             INSERT INTO products VALUES (31, 0);
             COMMIT",
        );
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        let ids: Vec<_> = (1..=31).chain([40]).map(|id| format!("{{\"id\":{id}}}")).collect();
        let instant: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!((&delayed(&world, &topic), &instant), (&ids, &ids), "{primary:?}");
        let priced = |price: u32| format!("SELECT id FROM products WHERE price = {price} ORDER BY id");
        let [passed_over, changed] = [1, 2].map(|price| block_on(primary.texts(&priced(price))));
        let expected: Vec<_> = [1, 2].into_iter().chain(6..=31).chain([40]).map(|id| id.to_string()).collect();
        assert_eq!((passed_over, changed), (vec!["4".to_owned()], expected), "{primary:?}");
    }
}

#[test]
fn a_null_that_comes_into_the_key_meanwhile_ends_the_run_where_it_is_read() {
    let world = World::new("null-meanwhile");
    for primary in block_on(primaries("faults_null")) {
        block_on(primary.execute("CREATE TABLE pairs (a INTEGER NOT NULL, b INTEGER)"));
        block_on(primary.execute("INSERT INTO pairs VALUES (1, 1), (1, 2), (2, 1), (2, 2)"));
        let (topic, gate) = (new_topic(&world), world.gate());
        let action = world.script(&format!("cat > /dev/null; await {gate}"));
        let source = format!("--database {} --table pairs --key a,b --chunk-size 2 --chunk-time 1h", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} --read-ahead 0 -- {action}"));
        world.eventually("the first chunk is at its action", || delayed(&world, &topic).len() == 2);
        // Before all that is read, and behind the next chunk.
        block_on(primary.execute("INSERT INTO pairs VALUES (0, NULL), (3, NULL)"));
        gate.open();
        assert_eq!(stream.wait(), End::Status(78), "{primary:?}: {:?}", stream.log());
        let told = "table pairs has rows whose a, b is NULL; ";
        assert!(stream.says(&["error: ", told]), "{primary:?}: {:?}", stream.log());
        assert_eq!((world.kafka.count(&topic), delayed(&world, &topic).len()), (2, 2), "{primary:?}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_before_its_first_message() {
    let world = World::new("disk-full");
    let [primary, ..] = block_on(primaries("faults_disk"));
    products_of(&primary, 5);
    let topic = new_topic(&world);
    let action = world.script("cat > /dev/null; touch acted");
    let source = format!("--database '{}' --table products --checkpoint checkpoint", primary.url);
    let command = format!("{} -t {topic} {source} -- {action}", env!("CARGO_BIN_EXE_ksync-stream"));
    // No file may have a byte, as if the disk was full.
    let mut stream = world.start("sh", &format!("-c \"trap '' XFSZ; ulimit -f 0; exec {command}\""), &[]);
    assert_eq!(stream.wait(), End::Status(78), "{:?}", stream.log());
    assert!(stream.says(&["error: cannot write ", "checkpoint", "File too large"]), "{:?}", stream.log());
    assert_eq!((world.dir.join("acted").exists(), delayed(&world, &topic).len()), (false, 0));
}

#[test]
fn a_disk_that_is_full_in_mid_run_ends_it_behind_a_whole_chunk_and_the_next_run_goes_on() {
    let world = World::new("disk-filled");
    let [primary, ..] = block_on(primaries("faults_filled"));
    products_of(&primary, 30);
    let topic = new_topic(&world);
    let [small, kept] = ["small", "kept"].map(|name| world.dir.join(name));
    fs::create_dir(&small).unwrap();
    let action =
        world.script("cat > /dev/null; echo >> acted; [ $(wc -l < acted) != 2 ] || cat /dev/zero > small/all || true");
    let source = format!("--database '{}' --table products --chunk-size 10 --checkpoint small/kept", primary.url);
    let stream = format!("{} -t {topic} {source} -- {action}", env!("CARGO_BIN_EXE_ksync-stream"));
    // A disk of its own, which others do not see.
    let command = format!("mount -t tmpfs -o size=64k none small; {stream}; is=$?; cp small/kept kept; exit $is");
    let mut full = world.start("unshare", &format!("-m sh -c \"{command}\""), &[]);
    assert_eq!(full.wait(), End::Status(1), "{:?}", full.log());
    assert!(full.says(&["error: cannot write ", "small/kept", "No space left on device"]), "{:?}", full.log());
    assert_eq!(world.kafka.count(&topic), 20);
    fs::copy(&kept, small.join("kept")).unwrap();
    let mut next = world.start("sh", &format!("-c \"{stream}\""), &[]);
    assert_eq!(next.wait(), End::Status(0), "{:?}", next.log());
    // The chunk whose end could not be written comes again.
    assert!(next.says(&["going on behind key 10: 10 rows were done"]), "{:?}", next.log());
    assert_eq!(world.kafka.count(&topic), 40);
}

#[test]
fn a_queue_that_is_full_all_the_time_holds_up_the_source_and_takes_no_memory() {
    let world = World::new("queue-full");
    // More than it may hold, by their number or by their size.
    let (many, large) = ((10_000_000, 0), (100_000, 1000));
    let action = world.script("cat > /dev/null");
    let runs = [(if is_full() { many } else { large }, String::new()), (large, format!("-- {action}"))];
    for ((count, size), action) in runs {
        let topic = new_topic(&world);
        let mut stream = world.stream(&format!("- -t {topic} -X queue.buffering.max.messages=1000 {action}"));
        let line = |id: usize| format!("{{\"id\":{id},\"pad\":\"{}\"}}", "x".repeat(size));
        for ids in (0..count).collect::<Vec<_>>().chunks(10_000) {
            stream.tell(ids.iter().map(|id| line(*id) + "\n").collect::<String>());
        }
        // It still waits for more: what it has needed at most until now is for all of these.
        let limit = Duration::from_secs(120);
        world.within(limit, "all are sent", || world.kafka.count(&topic) == count as i64);
        let most = stream.most_memory();
        assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
        assert!(most < 64 << 20, "{action}: {} MiB", most >> 20);
        let records = world.kafka.records(&topic);
        assert_eq!(records.len(), count, "{action}");
        let is_it = |(id, record): (usize, &Record)| record.value.as_ref() == Some(&line(id));
        assert!(records.iter().enumerate().all(is_it), "{action}: in their order");
    }
}

#[test]
fn rows_that_are_large_take_no_more_memory_the_more_of_them_there_are() {
    let world = World::new("large-rows");
    for primary in block_on(primaries("faults_large")) {
        if primary.dialect == Dialect::Sqlite && !is_full() {
            continue;
        }
        block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER, text TEXT)"));
        let insert = format!("INSERT INTO products SELECT n, 0, '{}' FROM numbers", "x".repeat(50_000));
        block_on(primary.execute(&numbers(&insert, 2_000)));
        for action in ["", "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'"] {
            let topic = new_topic(&world);
            let source = format!("--database {} --table products --payload row", primary.url);
            let mut stream = world.stream(&format!("-t {topic} {source} {action}"));
            let mut most = 0;
            world.within(Duration::from_secs(240), "it has ended", || {
                most = most.max(stream.memory().unwrap_or_default());
                !stream.is_running()
            });
            assert_eq!(stream.wait(), End::Status(0), "{primary:?} {action}: {:?}", stream.log());
            assert!(most < 64 << 20, "{primary:?} {action}: {} MiB", most >> 20);
            assert_eq!(world.kafka.count(&topic), 2_000);
        }
        // A hundred megabytes.
        block_on(primary.execute("DROP TABLE products"));
    }
}
