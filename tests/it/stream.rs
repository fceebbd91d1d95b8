//! ksync-stream: what it reads, what it sends of that and where to, and how it ends.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::support::{End, Primary, Record, World, block_on, primaries};

/// `products` with ids 1 to 25; every third is old.
pub fn products_of(primary: &Primary) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER, old INTEGER)"));
    let rows: Vec<String> = (1..=25).map(|id| format!("({id}, 0, {})", i32::from(id % 3 == 0))).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

fn lines(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).iter().map(|record| record.line()).collect()
}

/// The payloads in a delay topic, in their order.
pub fn delayed(world: &World, topic: &str) -> Vec<String> {
    let records = world.kafka.records(&format!("{topic}-delay"));
    let payload = |value: &str| {
        value.split_once("\"payload\": ").unwrap().1.rsplit_once(", \"created_at\"").unwrap().0.to_owned()
    };
    records.iter().map(|record| payload(record.value.as_ref().unwrap())).collect()
}

/// When a delay message was made, by what it says itself: it may be on its way to the broker for long.
pub fn made_at(message: &Record) -> f64 {
    let (_, time) = message.value.as_ref().unwrap().rsplit_once("\"created_at\": ").unwrap();
    time.trim_end_matches('}').parse().unwrap()
}

/// A broker refuses a batch that is larger than its topic allows, though it would take each of the messages in it.
#[test]
fn a_topic_that_takes_small_batches_only_gets_all_messages() {
    let world = World::new("small-batches");
    let products = format!("products-{}", world.id);
    for topic in [&products, &format!("{products}-delay")] {
        world.kafka.create(topic, 1, &[("max.message.bytes", "20000")]);
    }
    let mut rng = StdRng::seed_from_u64(1);
    // Which no compression makes smaller.
    let lines: String =
        (1..=1000u32).map(|id| format!("{{\"id\":{id},\"noise\":\"{:032x}\"}}\n", rng.random::<u128>())).collect();
    for options in ["-- wc", "--only instant", "-X batch.size=20000 -- wc"] {
        let mut stream = world.stream_lines(&format!("- -t {products} --delay 5s {options}"), &lines);
        assert_eq!(stream.wait(), End::Status(0), "{options}");
    }
    let sent = |topic: &str| world.kafka.records(topic).len();
    assert_eq!((sent(&products), sent(&format!("{products}-delay"))), (3000, 2000));
    let mut stream = world.stream_lines(&format!("- -t {products} --only instant -X batch.size=1000000"), &lines);
    assert_eq!(stream.wait(), End::Status(1));
    assert!(stream.says(&["cannot write to topic", "Message size too large"]));
}

#[test]
fn the_rows_of_a_table_or_of_a_part_of_it_or_of_a_query_are_announced() {
    let world = World::new("rows");
    for primary in block_on(primaries("stream_rows")) {
        products_of(&primary);
        for (source, ids) in [
            ("--table products", (1..=25).collect::<Vec<_>>()),
            ("--table products --where 'old = 1'", (1..=8).map(|n| 3 * n).collect()),
            ("--query 'SELECT id FROM products WHERE price = 0 AND id < 4' --key id", vec![1, 2, 3]),
            ("--table products --where 'id > 99'", vec![]),
        ] {
            let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
            let command = format!("-t {topic} --database {} {source} --chunk-size 10", primary.url);
            assert_eq!(world.stream(&command).wait(), End::Status(0), "{primary:?}: {source}");
            let expected: Vec<String> = ids.iter().map(|id| format!("{id}|{{\"id\":{id}}}")).collect();
            assert_eq!(lines(&world, &topic), expected, "{primary:?}: {source}");
        }
    }
}

#[test]
fn the_payload_is_the_key_or_columns_or_the_row_as_it_is_before_the_action() {
    let world = World::new("payload");
    for primary in block_on(primaries("stream_payload")) {
        products_of(&primary);
        for (payload, expected) in
            [("key", r#"3|{"id":3}"#), ("old,id", r#"3|{"old":1,"id":3}"#), ("row", r#"3|{"id":3,"price":0,"old":1}"#)]
        {
            let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
            let sql = "UPDATE products SET price = price + 1 WHERE id IN (:keys)";
            let source = format!("--database {} --table products --where 'id = 3' --payload {payload}", primary.url);
            let mut stream = world.stream(&format!("-t {topic} {source} --sql '{sql}'"));
            assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
            assert_eq!(lines(&world, &topic), [expected], "{primary:?}");
            assert_eq!(delayed(&world, &topic), [expected.split_once('|').unwrap().1], "{primary:?}");
            block_on(primary.execute("UPDATE products SET price = 0"));
        }
    }
}

#[test]
fn a_command_gets_a_line_for_each_row_whatever_its_json_looks_like() {
    let world = World::new("one-line");
    let [primary, ..] = block_on(primaries("stream_one_line"));
    block_on(primary.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body JSON)"));
    block_on(primary.execute("INSERT INTO notes VALUES (1, E'{\\n  \"a\": 1\\r\\n}'), (2, '[]')"));
    let topic = world.topic_with_delay("notes", 1);
    let action = world.script("cat >> got");
    let source = format!("--database {} --table notes --payload row", primary.url);
    assert_eq!(world.stream(&format!("-t {topic} {source} -- {action}")).wait(), End::Status(0));
    let got = std::fs::read_to_string(world.dir.join("got")).unwrap();
    assert_eq!(got, "{\"id\":1,\"body\":{   \"a\": 1  }}\n{\"id\":2,\"body\":[]}\n");
}

#[test]
fn a_chunk_of_lines_or_rows_ends_where_it_has_so_many_bytes_and_a_large_line_is_one_by_itself() {
    let world = World::new("chunk-bytes");
    let [.., sqlite] = block_on(primaries("stream_bytes"));
    products_of(&sqlite);
    let topic = world.topic_with_delay("products", 1);
    let large = format!("{{\"id\":100,\"text\":\"{}\"}}\n", "x".repeat(100));
    let small = (1..=9).map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>();
    let rows = format!("--database {} --table products --where 'id < 10'", sqlite.url);
    // Five payloads; those of rows with their keys.
    for (source, lines, bytes, sizes) in
        [("-", large + &small, 5 * 8, "1\n5\n4\n"), (&*rows, String::new(), 5 * 9, "5\n4\n")]
    {
        let got = world.file("got");
        let action = world.script(&format!("cat > /dev/null; echo $KSYNC_BATCH_COUNT >> {}", got.display()));
        let limits = format!("--chunk-bytes {bytes} --chunk-wait 1m --chunk-time 1h");
        let mut stream = world.stream_lines(&format!("{source} -t {topic} {limits} -- {action}"), lines);
        assert_eq!(stream.wait(), End::Status(0), "{source}: {:?}", stream.log());
        assert_eq!(std::fs::read_to_string(&got).unwrap(), sizes, "{source}");
    }
}

#[test]
fn only_delay_and_only_instant_send_only_these() {
    let world = World::new("only");
    let action = world.script("cat > /dev/null");
    for (only, delay, instant) in [("delay", 2, 0), ("instant", 0, 2)] {
        for action in [String::new(), format!("-- {action}")] {
            let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
            let lines = "{\"id\":1}\n{\"id\":2}\n";
            let mut stream = world.stream_lines(&format!("- -t {topic} --only {only} {action}"), lines);
            assert_eq!(stream.wait(), End::Status(0), "{only} {action}");
            let counts = (world.kafka.count(&format!("{topic}-delay")), world.kafka.count(&topic));
            assert_eq!(counts, (delay, instant), "{only} {action}");
        }
    }
}

#[test]
fn sigterm_ends_after_the_chunk_with_status_75() {
    let world = World::new("stream-term");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let begun = world.file("begun");
    let action = world.script(&format!("cat >> {}; await {gate}", begun.display()));
    let lines: String = (1..=6).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let mut stream = world.stream_lines(&format!("- -t {topic} --chunk-size 2 -- {action}"), lines);
    world.eventually("the action runs", || begun.exists());
    stream.signal(Signal::TERM);
    world.eventually("the end was asked for", || stream.says(&["asked to end"]));
    gate.open();
    assert_eq!(stream.wait(), End::Status(75));
    assert_eq!(std::fs::read_to_string(&begun).unwrap(), "{\"id\":1}\n{\"id\":2}\n");
    assert_eq!((world.kafka.count(&topic), delayed(&world, &topic).len()), (2, 2));
}

#[test]
fn sigterm_ends_a_stream_that_waits_for_lines() {
    let world = World::new("stream-idle");
    let topic = world.topic("products", 1);
    let mut stream = world.stream(&format!("- -t {topic}"));
    stream.tell("{\"id\":1}\n");
    world.eventually("the line is sent", || world.kafka.count(&topic) == 1);
    stream.signal(Signal::TERM);
    world.eventually("it has ended", || !stream.is_running());
    assert_eq!(stream.wait(), End::Status(75));
}

#[test]
fn a_stream_keeps_to_the_partitions_that_it_is_told() {
    let world = World::new("partitions");
    let topic = world.topic("products", 4);
    let lines: String = (1..=40).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    assert_eq!(world.stream_lines(&format!("- -t {topic} -p 0,2"), lines).wait(), End::Status(0));
    let used: BTreeSet<i32> = world.kafka.records(&topic).iter().map(|record| record.partition).collect();
    assert_eq!(used, BTreeSet::from([0, 2]));
}

#[test]
fn a_composite_key_is_a_json_array_from_a_table_as_from_stdin() {
    let world = World::new("composite");
    for primary in block_on(primaries("stream_composite")) {
        block_on(primary.execute("CREATE TABLE parts (a INTEGER, b VARCHAR(9), PRIMARY KEY (a, b))"));
        block_on(primary.execute("INSERT INTO parts VALUES (1, 'x'), (2, 'y')"));
        let (rows, stdin) = (
            world.topic(&format!("rows-{:06x}", rand::random::<u32>()), 1),
            world.topic(&format!("stdin-{:06x}", rand::random::<u32>()), 1),
        );
        let mut stream = world.stream(&format!("-t {rows} --database {} --table parts", primary.url));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        let payloads = "{\"a\":1,\"b\":\"x\"}\n{\"a\":2,\"b\":\"y\"}\n";
        assert_eq!(world.stream_lines(&format!("- -t {stdin} --key a,b"), payloads).wait(), End::Status(0));
        let expected = [r#"[1,"x"]|{"a":1,"b":"x"}"#, r#"[2,"y"]|{"a":2,"b":"y"}"#];
        assert_eq!(
            (lines(&world, &rows), lines(&world, &stdin)),
            (expected.map(str::to_owned).to_vec(), lines(&world, &rows))
        );
    }
}

#[test]
fn an_empty_source_is_no_error_and_an_empty_stdin_is_told() {
    let world = World::new("empty");
    let topic = world.topic("products", 1);
    let mut stream = world.stream(&format!("- -t {topic}"));
    assert_eq!(stream.wait(), End::Status(0));
    assert_eq!(stream.log_of("warn"), ["there was no line on stdin"]);
}

#[test]
fn what_a_killed_stream_has_changed_reaches_the_handler_by_its_delay_messages() {
    let world = World::new("healed");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    // Killed when its action has committed, and before it knows.
    let action = world.script(&format!("cat > {gate}.committed; await {gate}"));
    let mut stream = world.stream_lines(&format!("- -t {topic} --delay 2s -- {action}"), "{\"id\":1}\n{\"id\":2}\n");
    let committed = format!("{gate}.committed");
    world.eventually("the action has committed", || {
        std::fs::read_to_string(&committed).is_ok_and(|text| text.lines().count() == 2)
    });
    stream.kill();
    assert_eq!(world.kafka.count(&topic), 0);
    let handler = world.handler("");
    let _delayer = world.delayer(&format!("-t {topic} --delay 2s"));
    let _consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
    let both = BTreeSet::from([r#"{"id":1}"#.to_owned(), r#"{"id":2}"#.to_owned()]);
    world.within(Duration::from_secs(2 + 30), "the handler gets both", || {
        BTreeSet::from_iter(handler.payloads()) == both
    });
}
