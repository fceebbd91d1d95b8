//! Messages of all kinds: each record is one line, and its bytes reach the handler as they are.

use crate::support::{End, Message, World, value};

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

pub fn at_a_fixed_time(messages: impl IntoIterator<Item = Message>) -> impl Iterator<Item = Message> {
    messages.into_iter().map(|message| Message { timestamp_ms: Some(TIME), ..message })
}

/// The line of a record of partition 0; `members` is what comes after its time.
pub fn line(topic: &str, offset: usize, members: &str) -> String {
    format!(r#"{{"topic":"{topic}","partition":0,"offset":{offset},"ts":{TIME},{members}}}"#)
}

/// The line of a record with no key and no headers.
pub fn line_of(topic: &str, offset: usize, payload: &str) -> String {
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
pub fn assert_same(got: &[String], expected: &[String]) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let differs = got.bytes().zip(expected.bytes()).position(|(a, b)| a != b);
        assert_eq!((got.len(), differs), (expected.len(), None), "text {index}");
    }
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
