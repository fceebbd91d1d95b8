//! Messages of all kinds: each record is one line, and its bytes reach the handler as they are.

use std::iter::repeat_n;

use crate::support::{End, Handler, Message, World, is_full, payload, value};

const TIME: i64 = 1_700_000_000_000;

/// What no reader of JSON takes; the last two are other programs': Avro with the number of its schema, and protobuf.
const NOT_JSON: [&[u8]; 14] = [
    b"",
    b" \t\r\n",
    b"{\"id\":",
    b"{} {}",
    b"{}x",
    b"NaN",
    b"-Infinity",
    b"'7'",
    b"01",
    b"\"\n\"",
    b"\xef\xbb\xbf{}",
    b"\"\xff\"",
    b"\0\0\0\0\x07\x0e\x0cwidget",
    b"\x08\x07\x12\x06widget",
];

fn at_a_fixed_time(messages: impl IntoIterator<Item = Message>) -> impl Iterator<Item = Message> {
    messages.into_iter().map(|message| Message { timestamp_ms: Some(TIME), ..message })
}

/// The line of a record of partition 0; `members` is what comes after its time.
fn line(topic: &str, offset: usize, members: &str) -> String {
    format!(r#"{{"topic":"{topic}","partition":0,"offset":{offset},"ts":{TIME},{members}}}"#)
}

/// The line of a record with no key and no headers.
fn line_of(topic: &str, offset: usize, payload: &str) -> String {
    line(topic, offset, &format!(r#""key":null,"headers":[],"payload":{payload}"#))
}

/// Produces the messages, lets a handler have all that is in the topic, and gives the lines that it got.
fn given(world: &World, topic: &str, messages: impl IntoIterator<Item = Message>, options: &str) -> Vec<String> {
    world.kafka.produce(topic, at_a_fixed_time(messages));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {topic} -n indexer -e {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0), "{:?}", consumer.log());
    handler.runs().into_iter().flat_map(|run| run.lines).collect()
}

/// Compares long texts without printing them.
fn assert_same(got: &[String], expected: &[String]) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let differs = got.bytes().zip(expected.bytes()).position(|(a, b)| a != b);
        assert_eq!((got.len(), differs), (expected.len(), None), "text {index}");
    }
}

/// A topic that takes records of `size` bytes.
fn topic_of_large(world: &World, size: usize) -> String {
    let topic = format!("products-{}", world.id);
    let size = size.to_string();
    world.kafka.create(&topic, 1, &[("max.message.bytes", &size)]);
    world.kafka.create(&format!("{topic}-delay"), 1, &[("max.message.bytes", &size)]);
    topic
}

#[test]
fn each_kind_of_value_that_is_not_json_halts_its_own_partition_behind_what_was_done() {
    let world = World::new("not-json");
    let products = world.topic("products", NOT_JSON.len() as i32);
    let messages = NOT_JSON.iter().zip(0..).flat_map(|(bad, p)| [value("1").to(p), value(bad).to(p), value("2").to(p)]);
    world.kafka.produce(&products, messages);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1));
    assert_eq!(handler.payloads(), ["1"; NOT_JSON.len()]);
    let mut begins: Vec<String> = (0..NOT_JSON.len())
        .map(|p| {
            let why = if p == 0 { "it is empty" } else { "it is not JSON: " };
            let what = "the value at offset 1 cannot be given to the handler";
            format!("{products}/{p} as indexer: halted at offset 1: {what}: {why}")
        })
        .collect();
    let mut errors = consumer.log_of("error");
    begins.sort();
    errors.sort();
    assert_eq!(errors.len(), begins.len(), "{errors:?}");
    let other: Vec<_> = errors.iter().zip(&begins).filter(|(error, begin)| !error.starts_with(*begin)).collect();
    assert_eq!(other, []);
    let offsets: Vec<_> = (0..NOT_JSON.len() as i32).map(|p| world.seat(&products, p, "indexer").offset()).collect();
    assert_eq!(offsets, [Some(1); NOT_JSON.len()]);
}

#[test]
fn a_value_that_is_not_json_is_given_as_base64_where_that_is_wanted() {
    let world = World::new("raw");
    let products = world.topic("products", 1);
    let messages = NOT_JSON.iter().map(value).chain([value("{}")]);
    let got = given(&world, &products, messages, "--on-invalid raw");
    let base64 = [
        "",
        "IAkNCg==",
        "eyJpZCI6",
        "e30ge30=",
        "e314",
        "TmFO",
        "LUluZmluaXR5",
        "Jzcn",
        "MDE=",
        "Igoi",
        "77u/e30=",
        "Iv8i",
        "AAAAAAcODHdpZGdldA==",
        "CAcSBndpZGdldA==",
    ];
    let mut expected: Vec<String> = (0..)
        .zip(base64)
        .map(|(offset, text)| line(&products, offset, &format!(r#""key":null,"headers":[],"payload_b64":"{text}""#)))
        .collect();
    expected.push(line_of(&products, NOT_JSON.len(), "{}"));
    assert_eq!(got, expected);
}

#[test]
fn a_delayer_cannot_be_told_to_send_raw_messages_on() {
    let world = World::new("delayer-raw");
    let mut delayer = world.delayer("-t products --on-invalid raw");
    assert_eq!(delayer.wait(), End::Status(2));
    assert!(delayer.says(&["invalid value 'raw'"]) && delayer.says(&["[possible values: halt, dead-letter]"]));
}

#[test]
fn a_tombstone_is_not_an_empty_value() {
    let world = World::new("tombstone");
    let products = world.topic("products", 1);
    let messages = [Message::default().key("7"), value("").key("7"), value("\"\"").key("7")];
    let got = given(&world, &products, messages, "--on-invalid raw");
    let keyed = |offset, payload: &str| line(&products, offset, &format!(r#""key":"7","headers":[],{payload}"#));
    assert_eq!(got, [keyed(0, r#""payload":null"#), keyed(1, r#""payload_b64":"""#), keyed(2, r#""payload":"""#)]);
}

#[test]
fn text_of_all_kinds_stays_as_it_is_on_a_line_of_its_own() {
    let world = World::new("text");
    let products = world.topic("products", 1);
    let values = [
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\u0000""#,
        "\"\u{2028}\u{2029}\u{85}\u{feff}\u{7f}\u{9b}31m\u{202e}\"",
        "\"\u{10ffff}ä\\u00e4\\/\"",
        r#"{"\ud800":"\n"}"#,
    ];
    let got = given(&world, &products, values.map(value), "");
    let expected: Vec<_> = (0..).zip(values).map(|(offset, value)| line_of(&products, offset, value)).collect();
    assert_eq!(got, expected);
}

#[test]
fn a_line_break_in_a_value_becomes_a_space() {
    let world = World::new("breaks");
    let products = world.topic("products", 1);
    let values = ["{\n  \"id\": 7,\r\n\t\"a\": [\n]\r}", "\r\n[1,\n2]\n\n", "{\"text\":\"a\\nb\"}"];
    let got = given(&world, &products, values.map(value), "");
    let payloads = ["{   \"id\": 7,  \t\"a\": [ ] }", "[1, 2]", "{\"text\":\"a\\nb\"}"];
    let expected: Vec<_> = (0..).zip(payloads).map(|(offset, payload)| line_of(&products, offset, payload)).collect();
    assert_eq!(got, expected);
}

#[test]
fn numbers_stay_as_they_are_written() {
    let world = World::new("numbers");
    let products = world.topic("products", 1);
    let numbers = [
        "9007199254740993",
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
        "-0",
        "-0.0",
        "1.0",
        "1E+2",
        "0.100000000000000005551115123125",
        "3.14159265358979323846264338327950288",
    ];
    let got = given(&world, &products, numbers.map(value), "");
    let expected: Vec<_> = (0..).zip(numbers).map(|(offset, number)| line_of(&products, offset, number)).collect();
    assert_eq!(got, expected);
}

#[test]
fn records_of_1_and_8_mib_arrive_and_one_larger_than_a_batch_goes_alone() {
    let world = World::new("large");
    let products = topic_of_large(&world, 10 << 20);
    let text = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    let values = ["1".to_owned(), text(1 << 20), "2".to_owned(), text(8 << 20), "3".to_owned(), "4".to_owned()];
    world.kafka.produce(&products, at_a_fixed_time(values.iter().map(value)));
    let handler = world.handler("");
    let options = "-e --batch-wait 20s --batch-bytes 2MiB";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let batches: Vec<_> = runs.iter().map(|run| (run.first, run.last, run.count)).collect();
    assert_eq!(batches, [(0, 2, 3), (3, 3, 1), (4, 5, 2)]);
    let lines: Vec<String> = runs.into_iter().flat_map(|run| run.lines).collect();
    let expected: Vec<_> = (0..).zip(&values).map(|(offset, value)| line_of(&products, offset, value)).collect();
    assert_same(&lines, &expected);
}

#[test]
fn a_record_of_100_mib_is_given_if_a_broker_takes_it() {
    let world = World::new("huge");
    for (compression, size) in [("lz4", 100 << 20), ("none", 99 << 20)] {
        let products = format!("products-{compression}-{}", world.id);
        world.kafka.create(&products, 1, &[("max.message.bytes", "125829120")]);
        let values = ["1".to_owned(), format!("\"{}\"", "x".repeat(size - 2)), "2".to_owned()];
        let kafka = world.kafka.with("compression.type", compression);
        kafka.produce(&products, at_a_fixed_time(values.iter().map(value)));
        assert_eq!(world.kafka.count(&products), 3);
        let handler = world.handler("");
        let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{compression}");
        let runs = handler.runs();
        let batches: Vec<_> = runs.iter().map(|run| (run.first, run.last)).collect();
        assert_eq!(batches, [(0, 0), (1, 1), (2, 2)]);
        let lines: Vec<String> = runs.into_iter().flat_map(|run| run.lines).collect();
        let expected: Vec<_> = (0..).zip(&values).map(|(offset, value)| line_of(&products, offset, value)).collect();
        assert_same(&lines, &expected);
        assert_eq!(consumer.log_of("warn"), Vec::<String>::new());
        world.kafka.delete(&products);
    }
}

#[test]
fn a_message_of_100_mib_is_refused_by_ksync_stream() {
    let world = World::new("huge-stream");
    let products = topic_of_large(&world, 120 << 20);
    let huge = format!("\"{}\"", "x".repeat((100 << 20) - 2));
    for (only, suffix) in [("instant", ""), ("delay", "-delay")] {
        let mut stream = world.stream_lines(&format!("- -t {products} --only {only}"), &huge);
        assert_eq!(stream.wait(), End::Status(1), "{only}");
        let told =
            format!("cannot write to topic {products}{suffix}: Kafka did not take the record: MessageSizeTooLarge");
        assert!(stream.says(&["error: ", &told]), "{:?}", stream.log());
        assert_eq!(world.kafka.count(&format!("{products}{suffix}")), 0);
    }
}

#[test]
fn a_bad_record_of_100_mib_that_cannot_be_put_aside_halts_its_partition() {
    let world = World::new("huge-letter");
    let products = topic_of_large(&world, 120 << 20);
    let dead = world.topic("dead", 1);
    let huge = format!("\"{}\"", "x".repeat((100 << 20) - 2));
    world.kafka.with("compression.type", "lz4").produce(&products, [value("1"), value(huge), value("2")]);
    let handler = world.handler("[ $KSYNC_BATCH_FIRST_OFFSET -ne 1 ] || exit 65");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --dead-letter={dead} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1), "{:?}", consumer.log());
    let told =
        format!("halted at offset 1: cannot write to {dead}: Kafka did not take the record: MessageSizeTooLarge");
    assert!(consumer.says(&["error: ", &told]), "{:?}", consumer.log());
    assert_eq!((world.seat(&products, 0, "indexer").offset(), world.kafka.count(&dead)), (Some(1), 0));
    assert!(!consumer.says(&["are in the dead-letter topic"]));
    world.kafka.delete(&products);
}

#[test]
fn a_batch_is_closed_before_the_record_that_would_make_it_too_large() {
    let world = World::new("bytes");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, at_a_fixed_time(repeat_n(value("{}"), 7)));
    let size = line_of(&products, 0, "{}").len() + 1;
    for (name, bytes, counts) in [
        ("below", 3 * size - 1, vec![2, 2, 2, 1]),
        ("exact", 3 * size, vec![3, 3, 1]),
        ("above", 3 * size + 1, vec![3, 3, 1]),
        ("tiny", 1, vec![1; 7]),
    ] {
        let handler = world.handler("");
        let options = format!("-e --batch-wait 20s --batch-bytes {bytes}");
        let mut consumer = world.consume(&format!("-t {products} -n {name} {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0), "{name}");
        let got: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((got, offsets(&handler)), (counts, (0..7).collect()), "{name}");
    }
}

/// The offsets of all lines that the handler got, in that order.
fn offsets(handler: &Handler) -> Vec<i64> {
    let offset = |line: &str| {
        let (_, rest) = line.split_once("\"offset\":").unwrap();
        rest.split_once(',').unwrap().0.parse().unwrap()
    };
    handler.runs().iter().flat_map(|run| &run.lines).map(|line| offset(line)).collect()
}

#[test]
fn depth_and_a_million_members_are_no_matter_from_the_writer_through_the_delayer_to_the_handler() {
    let world = World::new("depth");
    let products = topic_of_large(&world, 30 << 20);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    // Were the time not linear, this would take hours.
    let members: Vec<String> = (0..1_000_000).map(|member| format!("\"member-{member}\":1")).collect();
    let values = [
        nested(127),
        nested(128),
        nested(10_000),
        nested(1_000_000),
        objects(1_000_000),
        r#"{"__proto__":{"a":1},"":2,"a":3,"a":4,"constructor":5}"#.to_owned(),
        format!("{{{}}}", members.join(",")),
    ];
    let mut stream = world.stream_lines(&format!("- -t {products} --only delay"), values.join("\n"));
    assert_eq!(stream.wait(), End::Status(0), "{:?}", stream.log());
    let _delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    world.eventually("all are sent on", || world.kafka.count(&products) == values.len() as i64);
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0), "{:?}", consumer.log());
    let got: Vec<String> = handler.runs().iter().flat_map(|run| &run.lines).map(|line| payload(line)).collect();
    assert_same(&got, &values);
}

#[test]
fn keys_and_headers_of_all_kinds_are_kept_apart() {
    let world = World::new("keys");
    let products = world.topic("products", 1);
    let long = "x".repeat(300_000);
    let mut odd = value("4").header("", "").header("a", b"\xff").header("a", r#"{"b64":"/w=="}"#);
    odd.headers.push(("a".to_owned(), None));
    let many = (0..1000).fold(value("6"), |message, number| message.header("n", number.to_string()));
    let messages = [
        value("0"),
        value("1").key(""),
        value("2").key("null"),
        value("3").key(b"\xff\x00"),
        odd,
        value("5").key("a\0\"\\\u{2028}").header("long", &long),
        many,
    ];
    let got = given(&world, &products, messages, "");
    let many: Vec<_> = (0..1000).map(|number| format!(r#"["n","{number}"]"#)).collect();
    let expected = [
        r#""key":null,"headers":[],"payload":0"#.to_owned(),
        r#""key":"","headers":[],"payload":1"#.to_owned(),
        r#""key":"null","headers":[],"payload":2"#.to_owned(),
        r#""key_b64":"/wA=","headers":[],"payload":3"#.to_owned(),
        r#""key":null,"headers":[["",""],["a",{"b64":"/w=="}],["a","{\"b64\":\"/w==\"}"],["a",null]],"payload":4"#
            .to_owned(),
        format!("\"key\":\"a\\u0000\\\"\\\\\u{2028}\",\"headers\":[[\"long\",\"{long}\"]],\"payload\":5"),
        format!(r#""key":null,"headers":[{}],"payload":6"#, many.join(",")),
    ];
    let expected: Vec<_> = (0..).zip(&expected).map(|(offset, members)| line(&products, offset, members)).collect();
    assert_same(&got, &expected);
}

#[test]
fn batches_are_contiguous_at_their_edges() {
    let world = World::new("edges");
    for (count, counts) in [(99, vec![99]), (100, vec![100]), (101, vec![100, 1]), (200, vec![100, 100])] {
        let products = world.topic(&format!("products-{count}"), 1);
        world.kafka.produce(&products, repeat_n(value("{}"), count));
        let handler = world.handler("");
        let options = "-e --batch-size 100 --batch-wait 20s";
        let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
        assert_eq!(consumer.wait(), End::Status(0));
        let got: Vec<_> = handler.runs().iter().map(|run| run.count).collect();
        assert_eq!((got, offsets(&handler)), (counts, (0..count as i64).collect()), "{count}");
        assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(count as i64));
    }
}

#[test]
fn many_tiny_records_arrive_once_and_in_their_order() {
    let world = World::new("tiny");
    let products = world.topic("products", 1);
    let count = if is_full() { 1_000_000 } else { 50_000 };
    world.kafka.produce(&products, repeat_n(value("1"), count));
    let handler = world.handler("");
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e --batch-size 9999 -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let offsets = offsets(&handler);
    let first_gap = (0..).zip(&offsets).find(|(expected, offset)| expected != *offset);
    assert_eq!((offsets.len(), first_gap), (count, None));
}

#[test]
fn of_records_with_the_same_key_only_the_last_is_given_where_that_is_wanted() {
    let world = World::new("coalesce");
    let products = world.topic("products", 1);
    let messages = [
        value("1").key("a"),
        value("[7]"),
        value("2").key("b"),
        value("3").key("a"),
        value("[8]"),
        value("[7]"),
        Message::default().key("b"),
        value("4").key("c"),
        value("5").key("c"),
    ];
    world.kafka.produce(&products, at_a_fixed_time(messages));
    let handler = world.handler("");
    let options = "-e --coalesce --batch-size 8 --batch-wait 20s";
    let mut consumer = world.consume(&format!("-t {products} -n indexer {options} -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(0));
    let runs = handler.runs();
    let keyed = |offset, key: &str, payload: &str| {
        line(&products, offset, &format!(r#""key":"{key}","headers":[],"payload":{payload}"#))
    };
    let batches: Vec<_> = runs.iter().map(|run| (run.count, run.first, run.last, run.lines.clone())).collect();
    let first = vec![
        keyed(3, "a", "3"),
        line_of(&products, 4, "[8]"),
        line_of(&products, 5, "[7]"),
        keyed(6, "b", "null"),
        keyed(7, "c", "4"),
    ];
    assert_eq!(batches, [(5, 3, 7, first), (1, 8, 8, vec![keyed(8, "c", "5")])]);
    assert_eq!(world.seat(&products, 0, "indexer").offset(), Some(9));
}

#[test]
fn what_a_message_says_reaches_no_shell_no_argument_no_environment_and_no_terminal() {
    let world = World::new("hostile");
    let products = world.topic("products", 1);
    let pwned = world.file("pwned");
    let mark = "Canary";
    let hostile = format!(
        "{mark}\u{1b}[31m\r\n\u{7f}\u{9b}2J\u{202e}%n%s$(touch {0})`touch {0}`; touch {0}\n| touch {0}",
        pwned.display()
    );
    let json = serde_json::to_string(&hostile).unwrap();
    let message = |value: &str| self::value(value).key(&hostile).header(&hostile, &hostile);
    world.kafka.produce(&products, at_a_fixed_time([message(&json), message(&hostile)]));
    // The handler writes to both of its outputs what it was given, as it was before it became JSON.
    let handler = world.handler(
        r#"tr '\0' '\n' < /proc/$$/cmdline > "$run.seen"; env >> "$run.seen"; printf '%b' "$(cat "$run")" | tee /dev/stderr"#,
    );
    let mut consumer = world.consume(&format!("-t {products} -n indexer -e -vv -- {handler}"));
    assert_eq!(consumer.wait(), End::Status(1));
    let runs = handler.runs();
    let [run] = &runs[..] else { panic!("one run, not {runs:?}") };
    let members = format!(r#""key":{json},"headers":[[{json},{json}]],"payload":{json}"#);
    assert_eq!(run.lines, [line(&products, 0, &members)]);
    let seen = std::fs::read_to_string(world.dir.join("handler-2/runs").join(format!("{}.seen", run.id))).unwrap();
    assert!(seen.contains("KSYNC_BATCH_COUNT=1") && !seen.contains(mark), "{seen}");
    assert!(!pwned.exists());

    let log = consumer.log();
    assert!(log.iter().filter(|line| line.contains(mark)).count() >= 2, "{log:?}");
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let obeyed: Vec<_> = log.iter().filter(|line| line.contains(steers)).collect();
    assert_eq!(obeyed, Vec::<&String>::new());
    assert!(log.iter().any(|line| line.contains("halted at offset 1")), "{log:?}");
    assert!(log.iter().all(|line| !line.contains("halted") || !line.contains(mark)), "{log:?}");
}
