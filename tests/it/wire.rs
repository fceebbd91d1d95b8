//! What lies in Kafka, byte for byte, and in which partition.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::{End, World, value};

#[test]
fn a_change_is_announced_by_exactly_the_two_messages_of_the_design() {
    let world = World::new("bytes");
    let products = world.topic_with_delay("products", 3);
    let action = world.script("cat > /dev/null");
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let mut stream = world.stream_lines(&format!("- -t {products} -- {action}"), "{\"id\":7}\n");
    assert_eq!(stream.wait(), End::Status(0));
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();

    let instant = world.kafka.records(&products);
    let lines: Vec<String> = instant.iter().map(|record| record.line()).collect();
    assert_eq!(lines, [r#"7|{"id":7}"#]);
    let delayed = world.kafka.records(&format!("{products}-delay"));
    let [delayed] = &delayed[..] else { panic!("one delay message, not {delayed:?}") };
    let line: String = delayed.line().chars().filter(|c| *c != ' ').collect();
    let created_at = line
        .strip_prefix(r#"7|{"payload":{"id":7},"created_at":"#)
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or_else(|| panic!("not a delay message: {line}"));
    let created_at: f64 = created_at.parse().unwrap();
    assert!((before - 0.002..=after + 0.002).contains(&created_at), "made at {created_at}, not in {before} to {after}");
    assert_eq!((&instant[0].headers, &delayed.headers), (&vec![], &vec![]));
    assert_eq!(instant[0].partition, delayed.partition);
}

#[test]
fn a_key_belongs_to_the_partition_that_kafkas_own_java_producer_chooses() {
    let world = World::new("java");
    let (ours, javas) = (world.topic("ours", 7), world.topic("javas", 7));
    let keys: Vec<String> = (0..1000)
        .map(|i: u64| match i % 4 {
            0 => i.to_string(),
            1 => (i * 7_919 * 1_000_003).to_string(),
            2 => format!("{i}-{}", "x".repeat(i as usize % 50)),
            _ => format!("größe {i} 漢字"),
        })
        .collect();
    let lines: String = keys.iter().map(|key| format!("{}\n", json!({"id": key}))).collect();
    assert_eq!(world.stream_lines(&format!("- -t {ours}"), lines).wait(), End::Status(0));

    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/java/Partitions.java");
    let mut java = Command::new("java")
        .args(["-cp", world.services.get("KSYNC_KAFKA_CLASSPATH"), source])
        .args([world.services.get("KSYNC_BOOTSTRAP_SERVER"), &javas])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    java.stdin.take().unwrap().write_all((keys.join("\n") + "\n").as_bytes()).unwrap();
    let output = java.wait_with_output().unwrap();
    assert!(output.status.success(), "java: {}", output.status);
    let by_java: Vec<i32> = String::from_utf8(output.stdout).unwrap().lines().map(|p| p.parse().unwrap()).collect();

    let records = world.kafka.records(&ours);
    let by_ksync: HashMap<&str, i32> =
        records.iter().map(|record| (record.key.as_deref().unwrap(), record.partition)).collect();
    assert_eq!((records.len(), by_java.len()), (1000, 1000));
    let differ: Vec<_> = keys.iter().zip(&by_java).filter(|(key, p)| by_ksync[key.as_str()] != **p).collect();
    assert_eq!(differ, []);
}

#[test]
fn a_record_key_is_the_members_text_or_a_json_array_of_several() {
    let world = World::new("keys");
    for (member, line, key) in [
        ("id", r#"{"id":7}"#, Some("7")),
        ("id", r#"{"id":"a\"b"}"#, Some("a\"b")),
        ("id", r#"{"id":1.50}"#, Some("1.50")),
        ("id", r#"{"id":18446744073709551616}"#, Some("18446744073709551616")),
        ("sku", r#"{"id":7,"sku":"x"}"#, Some("x")),
        ("a,b", r#"{"b":"x","a":1}"#, Some(r#"[1,"x"]"#)),
        ("id", r#"{"no":7}"#, None),
        ("id", r#"{"id":null}"#, None),
        ("id", "7", None),
    ] {
        let products = world.topic(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let mut stream = world.stream_lines(&format!("- -t {products} --key {member}"), line);
        assert_eq!(stream.wait(), End::Status(0), "{line}");
        let records = world.kafka.records(&products);
        assert_eq!((records[0].key.as_deref(), records[0].value.as_deref()), (key, Some(line)), "{line}");
    }
}

#[test]
fn payload_bytes_stay_as_they_are_from_the_writer_through_the_delayer_to_the_handler() {
    let world = World::new("payload");
    let products = world.topic_with_delay("products", 1);
    let odd = [
        r#"{"id":18446744073709551616,"id":7,"x":1e400,"y":0.10000000000000000555}"#,
        r#"{ "id" : 1 , "text":"ä\u00e4\n\"</script>" }"#,
        r#"[]"#,
        r#"null"#,
        r#""text""#,
    ];
    let mut stream = world.stream_lines(&format!("- -t {products} --only delay"), odd.join("\n"));
    assert_eq!(stream.wait(), End::Status(0));
    let _delayer = world.delayer(&format!("-t {products} --delay 100ms"));
    world.eventually("all are sent on", || world.kafka.count(&products) == 5);
    let sent: Vec<_> = world.kafka.records(&products).into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(sent, odd);

    // A line break can only stand between two tokens; there a space means the same.
    world.kafka.produce(&products, [value("{\n\"id\":\r\n7 ,\n\"id\":1e400}\n")]);
    let handler = world.handler("");
    assert_eq!(world.consume(&format!("-t {products} -n indexer -e -- {handler}")).wait(), End::Status(0));
    let mut expected = odd.to_vec();
    expected.push("{ \"id\":  7 , \"id\":1e400} ");
    // What is around the value is not of the value.
    let got: Vec<String> = handler.payloads().iter().map(|payload| payload.trim().to_owned()).collect();
    let expected: Vec<&str> = expected.iter().map(|payload| payload.trim()).collect();
    assert_eq!(got, expected);
}
