//! Actions of ksync-stream: their order with the messages, and what follows where one fails or takes long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::stream::{delayed, made_at, products_of};
use crate::support::{End, World, block_on, primaries};

#[test]
fn a_statement_changes_the_rows_between_their_delay_and_their_instant_messages() {
    let world = World::new("sql");
    for primary in block_on(primaries("stream_sql")) {
        products_of(&primary);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let sql = "UPDATE products SET price = price + 1, old = 2 WHERE id IN (:keys)";
        let source = format!("--database {} --table products --where 'old = 1'", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} --chunk-size 3 --sql '{sql}'"));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        let changed = block_on(primary.texts("SELECT id FROM products WHERE old = 2 AND price = 1 ORDER BY id"));
        assert_eq!(changed, ["3", "6", "9", "12", "15", "18", "21", "24"], "{primary:?}");
        let announced: Vec<String> = changed.iter().map(|id| format!("{{\"id\":{id}}}")).collect();
        let instant: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!((instant, delayed(&world, &topic)), (announced.clone(), announced), "{primary:?}");
    }
}

#[test]
fn a_statement_that_is_refused_changes_nothing_and_gives_no_instant_messages() {
    let world = World::new("refused");
    for primary in block_on(primaries("stream_refused")) {
        products_of(&primary);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let sql = "UPDATE products SET price = 1 WHERE id IN (:keys) OR id > 0";
        let source = format!("--database {} --table products", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} --chunk-size 10 --sql '{sql}'"));
        assert_eq!(stream.wait(), End::Status(1), "{primary:?}");
        assert!(
            stream.says(&["error: ", "the statement touched 25 rows for 10 keys and was rolled back"]),
            "{primary:?}"
        );
        let changed = block_on(primary.texts("SELECT id FROM products WHERE price = 1"));
        assert_eq!((changed.len(), world.kafka.count(&topic)), (0, 0), "{primary:?}");
        // Those of the next chunk may have been under way.
        assert!((10..=20).contains(&delayed(&world, &topic).len()), "{primary:?}");
    }
}

#[test]
fn a_command_works_on_each_chunk_of_rows() {
    let world = World::new("command-rows");
    for primary in block_on(primaries("stream_command")) {
        products_of(&primary);
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let got = world.file("got");
        let action = world.script(&format!("cat >> {}; echo $KSYNC_BATCH_COUNT >> {}", got.display(), got.display()));
        let source = format!("--database {} --table products", primary.url);
        let mut stream = world.stream(&format!("-t {topic} {source} --chunk-size 10 --chunk-time 1h -- {action}"));
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}");
        let chunk = |ids: std::ops::RangeInclusive<u32>| {
            let count = ids.clone().count();
            ids.map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>() + &format!("{count}\n")
        };
        let expected = chunk(1..=10) + &chunk(11..=20) + &chunk(21..=25);
        assert_eq!(std::fs::read_to_string(&got).unwrap(), expected, "{primary:?}");
        assert_eq!(world.kafka.count(&topic), 25);
    }
}

#[test]
fn the_delay_messages_are_there_before_the_action_begins_and_the_instant_ones_not_before_its_end() {
    let world = World::new("order");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let action = world.script(&format!("cat > /dev/null; touch {0}.begun; await {0}", gate));
    let lines = "{\"id\":1}\n{\"id\":2}\n";
    let mut stream = world.stream_lines(&format!("- -t {topic} -- {action}"), lines);
    let begun = format!("{gate}.begun");
    world.eventually("the action runs", || std::path::Path::new(&begun).exists());
    assert_eq!(delayed(&world, &topic), [r#"{"id":1}"#, r#"{"id":2}"#]);
    world.for_a_while(Duration::from_millis(300), "no instant message", || world.kafka.count(&topic) == 0);
    gate.open();
    assert_eq!(stream.wait(), End::Status(0));
    assert_eq!(world.kafka.count(&topic), 2);
}

#[test]
fn a_failed_action_gives_no_instant_messages_and_its_status_is_told() {
    let world = World::new("failed");
    for (body, status, why) in [
        ("exit 1", 1, "exit status 1"),
        ("exit 3", 1, "exit status 3"),
        // Of a handler these would have single records tried, and put aside.
        ("exit 65", 1, "exit status 65"),
        ("exit 100", 1, "exit status 100"),
        ("exit 75", 75, "exit status 75"),
        ("exit 111", 75, "exit status 111"),
        ("exit 77", 78, "exit status 77"),
        ("exit 78", 78, "exit status 78"),
        ("exit 126", 78, "exit status 126"),
        ("exit 127", 78, "exit status 127"),
        ("kill -9 $$", 1, "signal 9 (SIGKILL)"),
        ("unread", 1, "exit status 0 with 36 bytes of its input unread"),
    ] {
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let runs = world.file("runs");
        let noted = format!("echo $KSYNC_BATCH_COUNT >> {}", runs.display());
        let action = match body {
            "unread" => world.script(&noted),
            body => world.script(&format!("cat > /dev/null\n{noted}\n{body}")),
        };
        let lines = ["{\"id\":1}", "{\"id\":2}", "{\"id\":3}", "{\"id\":4}"];
        let mut stream = world.stream_lines(&format!("- -t {topic} -- {action}"), lines.join("\n") + "\n");
        assert_eq!(stream.wait(), End::Status(status), "{body}");
        let text = format!("the action failed: {why}; the delay messages of its chunk are sent");
        assert_eq!(stream.log_of("error"), [text], "{body}");
        // Once, and with all of them: it is not tried again, nor with fewer.
        assert_eq!(std::fs::read_to_string(&runs).unwrap(), "4\n", "{body}");
        let sent = (world.kafka.count(&topic), delayed(&world, &topic));
        assert_eq!(sent, (0, lines.map(str::to_owned).to_vec()), "{body}");
    }
}

#[test]
fn an_action_longer_than_half_the_delay_has_its_delay_messages_sent_again() {
    let world = World::new("renewed");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let action = world.script(&format!("cat > /dev/null; await {gate}"));
    let lines = "{\"id\":1}\n{\"id\":2}\n";
    let mut stream = world.stream_lines(&format!("- -t {topic} --delay 12s -- {action}"), lines);
    world.eventually("they were sent three times", || world.kafka.count(&format!("{topic}-delay")) >= 6);
    let made = world.kafka.records(&format!("{topic}-delay"));
    let apart = made_at(&made[4]) - made_at(&made[2]);
    assert!((5.0..11.0).contains(&apart), "sent again after {apart} s");
    gate.open();
    assert_eq!(stream.wait(), End::Status(0));
    assert!(stream.says(&["info: ", "the action is still at work: sending its 2 delay messages again"]));
    let payloads: BTreeSet<String> = delayed(&world, &topic).into_iter().collect();
    assert_eq!(payloads, BTreeSet::from([r#"{"id":1}"#.to_owned(), r#"{"id":2}"#.to_owned()]));
    assert_eq!(world.kafka.count(&topic), 2);
}

#[test]
fn an_action_whose_delay_messages_cannot_be_sent_again_is_ended_and_its_statement_rolled_back() {
    let world = World::new("not-renewed");
    let [primary, ..] = block_on(primaries("stream_not_renewed"));
    products_of(&primary);
    let begun = world.file("begun");
    let command = world.script(&format!("cat > /dev/null; touch {}; exec sleep 600", begun.display()));
    let statement = "UPDATE products SET price = 1 WHERE id IN (:keys) AND pg_sleep(0.6) IS NOT NULL";
    let source = format!("--database {} --table products", primary.url);
    for action in [format!("{source} --sql '{statement}'"), format!("{source} -- {command}")] {
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let delay_topic = format!("{topic}-delay");
        let mut stream = world.stream(&format!("-t {topic} --delay 6s {action}"));
        world.eventually("the delay messages are there", || world.kafka.count(&delay_topic) >= 25);
        world.kafka.set(&delay_topic, &[("max.message.bytes", "20")]);
        assert_eq!(stream.wait(), End::Status(1), "{action}");
        let text = "cannot send delay messages again; the action was ended";
        assert!(stream.says(&["error: ", text, "Message size too large"]), "{:?}", stream.log());
        let changed = block_on(primary.texts("SELECT id FROM products WHERE price = 1"));
        assert_eq!((changed.len(), world.kafka.count(&topic)), (0, 0), "{action}");
        world.eventually("no process is left", || world.processes() == 0);
    }
    assert!(begun.exists());
}

#[test]
fn an_action_longer_than_the_delay_is_told_at_the_end_with_both_times() {
    let world = World::new("long-action");
    let action = world.script("cat > /dev/null; sleep 1.2");
    for (delay, is_told, options) in
        [("1s", true, ""), ("60s", false, ""), ("1s", true, "--only delay"), ("1s", false, "--only instant")]
    {
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let command = format!("- -t {topic} --delay {delay} {options} --chunk-size 1 -- {action}");
        let mut stream = world.stream_lines(&command, "{\"id\":1}\n{\"id\":2}\n");
        assert_eq!(stream.wait(), End::Status(0), "{delay} {options}");
        let told: Vec<_> = stream.log_of("warn").into_iter().filter(|line| line.contains("longest action")).collect();
        assert_eq!(told.len(), usize::from(is_told), "{delay} {options}: {told:?}");
        for line in told {
            let times = line.strip_prefix("the longest action took ").unwrap().split_once(" s, the delay is 1s: ");
            let seconds: f64 = times.expect("both times are told").0.parse().unwrap();
            assert!((1.2..20.0).contains(&seconds), "{line}");
        }
    }
}
