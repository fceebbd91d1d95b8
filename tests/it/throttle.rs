//! What holds ksync-stream up between two chunks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::support::{End, Mode, Primary, Proxy, World, block_on, primaries};

pub fn lines(ids: std::ops::RangeInclusive<u32>) -> String {
    ids.map(|id| format!("{{\"id\":{id}}}\n")).collect()
}

/// A table `products` with so many rows.
fn products_of(primary: &Primary, rows: u32) {
    block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
    let rows: Vec<String> = (1..=rows).map(|id| format!("({id}, 0)")).collect();
    block_on(primary.execute(&format!("INSERT INTO products VALUES {}", rows.join(", "))));
}

/// When each record was written, in ms, by the clock of this machine.
fn times(world: &World, topic: &str) -> Vec<i64> {
    world.kafka.records(topic).iter().map(|record| record.timestamp_ms).collect()
}

#[test]
fn a_rate_holds_over_time_with_an_action_and_without_and_not_behind_the_last_chunk() {
    let world = World::new("rate");
    let action = world.script("cat > /dev/null");
    let [.., sqlite] = block_on(primaries("throttle_rate"));
    products_of(&sqlite, 24);
    let source = format!("--database {} --table products --chunk-size 8", sqlite.url);
    for (action, sent) in [(String::new(), 1), (format!("-- {action}"), 2)] {
        let topic = world.topic_with_delay(&format!("products-{sent}"), 1);
        let mut stream = world.stream(&format!("-t {topic} {source} --rate 1/s --chunk-time 1h {action}"));
        assert_eq!(stream.wait(), End::Status(0), "{action}");
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        // By which messages a chunk begins.
        let times = times(&world, &if action.is_empty() { topic } else { format!("{topic}-delay") });
        // A chunk each 8 s; one that is late makes up for 1 s. The first message of a topic takes longer to arrive.
        for (from, to, least) in [(0, 8, 2500), (8, 16, 2000), (0, 16, 10_500)] {
            let apart = times[to] - times[from];
            assert!((least..40_000).contains(&apart), "{action}: {apart} ms from {from} to {to}");
        }
        assert!(times[7] - times[0] < 5000, "{action}: a chunk is sent at once");
        let rest = ended - times[23];
        assert!(rest < 6000, "{action}: {rest} ms behind the last");
    }
}

#[test]
fn a_pause_lies_between_instant_and_delay_messages_and_nowhere_else() {
    let world = World::new("pause");
    let topic = world.topic_with_delay("products", 1);
    let action = world.script("cat > /dev/null");
    let command = format!("- -t {topic} --chunk-size 2 --pause 8s -- {action}");
    let mut stream = world.stream_lines(&command, lines(1..=6));
    assert_eq!(stream.wait(), End::Status(0));
    let (delay, instant) = (times(&world, &format!("{topic}-delay")), times(&world, &topic));
    for chunk in 0..3 {
        let (first, last) = (2 * chunk, 2 * chunk + 1);
        let within = instant[last] - delay[first];
        assert!(within < 7900, "{within} ms within a chunk");
        if chunk > 0 {
            let apart = delay[first] - instant[first - 1];
            assert!(apart >= 7980, "{apart} ms between two chunks");
        }
    }
    let topic = world.topic_with_delay("short", 1);
    let mut stream =
        world.stream_lines(&format!("- -t {topic} --chunk-size 2 --pause 100ms -- {action}"), lines(1..=6));
    assert_eq!(stream.wait(), End::Status(0));
    assert!(!stream.says(&["paused"]), "no line for a short pause: {:?}", stream.log());
}

#[test]
fn consumers_are_waited_for_that_are_too_far_behind() {
    let world = World::new("lag");
    for (number, limit) in ["20", "20,idle=off", "indexer=20,off"].into_iter().enumerate() {
        let topic = world.topic(&format!("products-{number}"), 2);
        let gate = world.gate();
        let handler = world.handler(&format!("await {gate}"));
        let _consumer = world.consume(&format!("-t {topic} -n indexer --batch-size 5 -- {handler}"));
        world.eventually("it has begun", || {
            (0..2).all(|partition| world.seat(&topic, partition, "indexer").offset() == Some(0))
        });
        let zookeeper = world.zookeeper();
        let command = format!("- -q -t {topic} --zookeeper {zookeeper} --chunk-size 10 --max-lag {limit}");
        let mut stream = world.stream_lines(&command, lines(1..=50));
        world.eventually("it says what it waits for", || {
            stream.ask();
            stream.says(&["; paused since 2", "Z: lag of indexer is 30, more than 20; pauses so far: lag "])
        });
        let look = Duration::from_millis(if number == 0 { 1200 } else { 0 });
        world.for_a_while(look, "as far as a chunk over the limit", || world.kafka.count(&topic) == 30);
        gate.open();
        assert_eq!(stream.wait(), End::Status(0), "{limit}");
        assert_eq!(world.kafka.count(&topic), 50);
    }
}

#[test]
fn a_consumer_at_work_that_is_more_than_100_000_records_behind_is_waited_for_where_no_option_says_so() {
    let world = World::new("lag-default");
    let topic = world.topic("products", 1);
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let _consumer = world.consume(&format!("-t {topic} -n indexer -- {handler}"));
    world.eventually("it has begun", || world.seat(&topic, 0, "indexer").offset() == Some(0));
    // Without --zookeeper nobody is seen.
    let mut unseen = world.stream_lines(&format!("- -q -t {topic}"), lines(1..=100_000));
    assert_eq!(unseen.wait(), End::Status(0));
    let command = format!("- -q -t {topic} --zookeeper {} --chunk-size 10", world.zookeeper());
    let mut stream = world.stream_lines(&command, lines(100_001..=100_030));
    world.eventually("it says what it waits for", || {
        stream.ask();
        stream.says(&["; paused since 2", "Z: lag of indexer is 100010, more than 100000; pauses so far: lag "])
    });
    assert_eq!(world.kafka.count(&topic), 100_010);
    gate.open();
    assert_eq!(stream.wait(), End::Status(0));
    assert_eq!(world.kafka.count(&topic), 100_030);
}

#[test]
fn with_an_action_too_no_chunk_is_covered_while_consumers_are_too_far_behind() {
    let world = World::new("lag-action");
    let [primary, ..] = block_on(primaries("throttle_lag"));
    products_of(&primary, 50);
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let _consumer = world.consume(&format!("-t {topic} -n indexer --batch-size 5 -- {handler}"));
    world.eventually("it has begun", || world.seat(&topic, 0, "indexer").offset() == Some(0));
    let source = format!("--database '{}' --table products --chunk-size 10", primary.url);
    let action = "--sql 'UPDATE products SET price = 1 WHERE id IN (:keys)'";
    let limit = format!("--zookeeper {} --max-lag 20", world.zookeeper());
    let mut stream = world.stream(&format!("-q -t {topic} {source} {limit} {action}"));
    world.eventually("it says what it waits for", || {
        stream.ask();
        stream.says(&["Z: lag of indexer is 30, more than 20"])
    });
    let delay_topic = format!("{topic}-delay");
    assert_eq!((world.kafka.count(&topic), world.kafka.count(&delay_topic)), (30, 30));
    gate.open();
    assert_eq!(stream.wait(), End::Status(0));
    assert_eq!((world.kafka.count(&topic), world.kafka.count(&delay_topic)), (50, 50));
}

#[test]
fn a_reindex_that_tells_more_than_keys_tells_what_is_there_after_a_pause() {
    let world = World::new("reindex-pause");
    for primary in block_on(primaries("throttle_reindex")) {
        products_of(&primary, 4);
        block_on(primary.execute("CREATE TABLE gate (held INTEGER); INSERT INTO gate VALUES (1)"));
        let topic = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let source = format!("--database {} --table products --payload id,price --chunk-size 1", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} --throttle-query 'SELECT held FROM gate'"));
        world.eventually("it waits", || {
            stream.ask();
            stream.says(&["Z: the throttle query says 1"])
        });
        block_on(primary.execute("UPDATE products SET price = 7"));
        block_on(primary.execute("UPDATE gate SET held = 0"));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        let records = world.kafka.records(&topic);
        let told: Vec<_> = records.into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!(told, [1, 2, 3, 4].map(|id| format!("{{\"id\":{id},\"price\":7}}")), "{primary:?}");
    }
}

#[test]
fn only_a_consumer_that_is_at_work_or_named_holds_a_run_up() {
    let world = World::new("no-lag");
    let topic = world.topic("products", 1);
    // It has read nothing of the log, and nobody is at work.
    let seat = world.seat(&topic, 0, "indexer");
    seat.write("offset", "0");
    let stream = |options: &str| world.stream_lines(&format!("- -t {topic} {options} --chunk-size 1"), lines(1..=2));
    let zookeeper = format!("--zookeeper {}", world.zookeeper());
    for options in ["", "--max-lag 0", "--max-lag indexer=off,0", "--max-lag off"] {
        assert_eq!(stream(&format!("{zookeeper} {options}")).wait(), End::Status(0), "{options}");
    }
    let sent = world.kafka.count(&topic);
    let mut named = stream(&format!("{zookeeper} --max-lag indexer={}", sent - 1));
    world.eventually("it waits", || {
        named.ask();
        named.says(&[&format!("lag of indexer is {sent}, more than {}", sent - 1)])
    });
    seat.write("offset", "2");
    assert_eq!(named.wait(), End::Status(0));

    for (options, status, why) in [
        (
            format!("{zookeeper} --max-lag cacher=5"),
            78,
            format!("--max-lag: nobody has ever read topic {topic} as cacher"),
        ),
        ("--max-lag 5".to_owned(), 2, "--max-lag can see consumers only by --zookeeper".to_owned()),
    ] {
        let mut stream = stream(&options);
        assert_eq!((stream.wait(), stream.log_of("error")), (End::Status(status), vec![why]), "{options}");
    }
    assert_eq!(world.kafka.count(&topic), sent + 2);
}

#[test]
fn a_zookeeper_that_is_away_is_waited_for_where_a_limit_was_asked_for_and_else_told() {
    let world = World::new("lag-away");
    let topic = world.topic("products", 1);
    world.seat(&topic, 0, "indexer").write("offset", "0");
    let nowhere = format!("- -t {topic} --zookeeper 127.0.0.1:9");
    let mut asked = world.stream_lines(&format!("{nowhere} --max-lag 5"), lines(1..=1));
    let mut default = world.stream_lines(&nowhere, lines(1..=1));
    let proxy = block_on(Proxy::to(world.services.get("KSYNC_ZOOKEEPER")));
    let options = format!("--zookeeper {}/{} --max-lag indexer=1000", proxy.address, world.id);
    let mut stream = world.stream(&format!("- -t {topic} {options}"));
    stream.tell(lines(1..=1));
    world.eventually("it is at work", || world.kafka.count(&topic) > 0);
    proxy.set(Mode::Frozen);

    assert_eq!(asked.wait(), End::Status(75));
    let away = "ZooKeeper at 127.0.0.1:9 has not answered within 3s: deadline has elapsed";
    assert_eq!(asked.log_of("error"), [away]);
    assert_eq!(default.wait(), End::Status(0));
    assert_eq!(default.log_of("warn")[0], format!("--max-lag: {away}; going on without it"));

    stream.tell(lines(2..=2));
    world.eventually("it says so", || {
        stream.tell(lines(3..=3));
        stream.says(&[
            "warn: --max-lag: ZooKeeper at ",
            " has not answered within 3s",
            "; pausing until it can be seen",
        ])
    });
    let sent = world.kafka.count(&topic);
    world.for_a_while(Duration::from_millis(500), "nothing goes on", || world.kafka.count(&topic) == sent);
    proxy.set(Mode::Open);
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: --max-lag: it is seen again after "]));
    assert!(world.kafka.count(&topic) > sent);
}

#[test]
fn a_query_holds_a_run_up_while_its_number_is_above_0() {
    let world = World::new("query");
    for primary in block_on(primaries("throttle_query")) {
        products_of(&primary, 4);
        block_on(primary.execute("CREATE TABLE flags (n DECIMAL(9, 2)); INSERT INTO flags VALUES (3.5)"));
        let topic = world.topic(&format!("products-{:?}", primary.dialect), 1);
        let query = "--throttle-query 'SELECT n, 99 FROM flags ORDER BY n DESC;'";
        let mut stream = world.stream(&format!("-t {topic} --database {} --table products {query}", primary.url));
        world.eventually("it says what it waits for", || {
            stream.ask();
            stream.says(&["; paused since 2", "Z: the throttle query says 3.5"])
        });
        assert_eq!(world.kafka.count(&topic), 0, "{primary:?}");
        block_on(primary.execute("UPDATE flags SET n = 0"));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        // By another database than that of the rows: no row, NULL, and numbers that are not above 0.
        let go_on =
            ["SELECT n FROM flags WHERE n > 99", "SELECT NULL FROM flags", "SELECT -1", "SELECT n = 1 FROM flags"];
        let streams = go_on.map(|sql| {
            let query = format!("--throttle-database {} --throttle-query '{sql}'", primary.url);
            world.stream_lines(&format!("- -t {topic} {query}"), lines(5..=5))
        });
        for (mut stream, sql) in streams.into_iter().zip(go_on) {
            assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {sql}");
        }
        assert_eq!(world.kafka.count(&topic), 8, "{primary:?}");
    }
}

#[test]
fn a_query_that_fails_on_the_way_is_told_and_waited_for() {
    let world = World::new("query-fails");
    let topic = world.topic("products", 1);
    let [_, mariadb, _] = block_on(primaries("throttle_fails"));
    block_on(mariadb.execute("CREATE TABLE flags (n INTEGER)"));
    let query = format!("--throttle-database {} --throttle-query 'SELECT n FROM flags'", mariadb.url);
    let mut stream = world.stream(&format!("- -t {topic} {query} --chunk-size 1"));
    stream.tell(lines(1..=1));
    world.eventually("it is at work", || world.kafka.count(&topic) == 1);
    block_on(mariadb.execute("DROP TABLE flags"));
    world.eventually("it says so", || {
        stream.tell(lines(2..=2));
        stream.ask();
        stream.says(&["warn: --throttle-query: ", "flags' doesn't exist; pausing until it can be seen"])
            && stream.says(&["; paused since 2", "cannot be seen: the throttle query: ", "flags' doesn't exist"])
    });
    assert_eq!(stream.log_of("warn").len(), 1);
    block_on(mariadb.execute("CREATE TABLE flags (n INTEGER)"));
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: --throttle-query: it is seen again after "]));
}

#[test]
fn what_is_set_wrong_is_told_before_anything_is_sent() {
    let world = World::new("throttle-wrong");
    let topic = world.topic("products", 1);
    let [postgres, mariadb, sqlite] = block_on(primaries("throttle_wrong"));
    let query =
        |primary: &Primary, sql: &str| format!("--throttle-database {} --throttle-query \"{sql}\"", primary.url);
    for (options, status, why) in [
        (query(&postgres, "SELEC 1"), 1, "the throttle query: syntax error at or near \"SELEC\""),
        (query(&mariadb, "SELEC 1"), 1, "You have an error in your SQL syntax"),
        (query(&sqlite, "SELEC 1"), 1, "the throttle query: near \"SELEC\": syntax error"),
        (query(&postgres, "SELECT n FROM flags"), 78, "the throttle query: relation \"flags\" does not exist"),
        (query(&mariadb, "SELECT 'many'"), 1, "the throttle query: 'many' is not a number"),
        (query(&postgres, "SELECT 1; SELECT 2"), 2, "cannot use --throttle-query: it goes on after the ';'"),
        ("--throttle-query 'SELECT 1'".to_owned(), 2, "no database is named: set DATABASE_URL"),
        (
            "--throttle-database postgres://127.0.0.1:9/x --throttle-query 'SELECT 1'".to_owned(),
            75,
            "the throttle query: cannot connect to Postgres at 127.0.0.1:9: Connection refused",
        ),
        ("--throttle-database sqlite:x.db".to_owned(), 2, "--throttle-query <SQL>"),
        (
            "--throttle-database postgres://me:Canary@db/shop --throttle-query 'SELECT 1'".to_owned(),
            2,
            "a password in --throttle-database would be seen by everybody on this machine",
        ),
        ("--rate fast".to_owned(), 2, "'fast' is not a rate: it is written as 500/s, 500, or off"),
        ("--rate=-1".to_owned(), 2, "'-1' is not a rate: it is written as 500/s, 500, or off"),
        ("--pause soon".to_owned(), 2, "a duration is written as 5m, 300s or 500ms"),
        ("--max-lag indexer".to_owned(), 2, "'indexer' is not [NAME=]N, for example indexer=100000, or off"),
        ("--max-lag delayer=5".to_owned(), 2, "the delayer is always as far behind as its --delay has it"),
    ] {
        let mut stream = world.stream_lines(&format!("- -t {topic} {options}"), "");
        assert_eq!(stream.wait(), End::Status(status), "{options}: {:?}", stream.log());
        assert!(stream.says(&[why]) && !stream.says(&["Canary"]), "{options}: {:?}", stream.log());
    }
    assert_eq!(world.kafka.count(&topic), 0);
}

#[test]
fn sigterm_ends_a_pause_at_once() {
    let world = World::new("throttle-term");
    let topic = world.topic("products", 1);
    let [.., sqlite] = block_on(primaries("throttle_term"));
    let query = format!("--throttle-database {} --throttle-query 'SELECT 1'", sqlite.url);
    for options in ["--rate 0.001/s", "--pause 1h", &query] {
        let mut stream = world.stream_lines(&format!("- -t {topic} --chunk-size 1 {options}"), lines(1..=3));
        world.eventually("it pauses", || {
            stream.ask();
            stream.says(&["; paused since "])
        });
        stream.signal(Signal::TERM);
        world.within(Duration::from_secs(10), "it has ended", || !stream.is_running());
        assert_eq!(stream.wait(), End::Status(75), "{options}");
        assert!(stream.says(&["info: asked to end before the end of the source"]), "{options}");
    }
}

#[test]
fn a_run_ends_at_its_time_of_day_behind_the_chunk_that_is_under_way() {
    let world = World::new("until");
    let [.., sqlite] = block_on(primaries("throttle_until"));
    products_of(&sqlite, 6);
    let (topic, clock, gate) = (world.topic_with_delay("products", 1), world.clock(), world.gate());
    let begun = world.file("begun");
    let action = world.script(&format!("cat > /dev/null; touch {}; await {gate}", begun.display()));
    let until = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3600)).to_string();
    let source = format!("-t {topic} --database {} --table products --chunk-size 2 --until {until}", sqlite.url);
    let mut stream =
        world.start(env!("CARGO_BIN_EXE_ksync-stream"), &format!("{source} -- {action}"), &clock.environment());
    world.eventually("a chunk is under way", || begun.exists());
    let over = format!("info: the time is over (--until {until}): finishing what is under way");
    assert!(!stream.says(&[&over]), "{:?}", stream.log());
    clock.set(3600.0);
    world.eventually("its time is over", || stream.says(&[&over]));
    assert!(stream.is_running());
    gate.open();
    assert_eq!(stream.wait(), End::Status(75), "{:?}", stream.log());
    assert!(stream.says(&["info: asked to end before the end of the source"]), "{:?}", stream.log());
    assert_eq!(world.kafka.count(&topic), 2);
}

#[test]
fn progress_tells_of_a_long_pause() {
    let world = World::new("throttle-progress");
    let topic = world.topic("products", 1);
    let run =
        |options: &str| world.stream_lines(&format!("- -t {topic} --chunk-size 1 --pause 1h {options}"), lines(1..=2));
    let streams = [run(""), run("--progress json")];
    world.eventually("both tell", || {
        streams[0].says(&["info: 1 rows so far, 0 a second; paused: 1h between two chunks"])
            && streams[1].says(&[r#""paused":"1h between two chunks""#])
    });
}
