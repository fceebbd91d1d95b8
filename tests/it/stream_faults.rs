//! ksync-stream while Kafka, its database or itself goes away, and while others change the rows that it reads.

use std::fs;
use std::time::Duration;

use ksync::database::Dialect;
use rustix::process::{Signal, kill_process};

use crate::database::numbers;
use crate::stream::delayed;
use crate::support::{End, Primary, Record, World, block_on, is_full, primaries};

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
    let topic = new_topic(&world);
    let count: usize = if is_full() { 10_000_000 } else { 300_000 };
    let mut stream = world.stream(&format!("- -t {topic} -X queue.buffering.max.messages=1000"));
    let mut most = 0;
    for ids in (0..count).collect::<Vec<_>>().chunks(10_000) {
        stream.tell(ids.iter().map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>());
        most = most.max(stream.most_memory());
    }
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    assert!(most < 64 << 20, "{} MiB", most >> 20);
    let records = world.kafka.records(&topic);
    assert_eq!(records.len(), count);
    let is_it = |(id, record): (usize, &Record)| record.value.as_deref() == Some(&format!("{{\"id\":{id}}}"));
    assert!(records.iter().enumerate().all(is_it), "in their order");
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
