//! ksync-stream as it serves applications: what they ask, what they are answered, and what becomes of their messages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::stream::delayed;
use crate::support::{Client, End, Passage, Process, Way, World};

pub const OK: &str = r#""ok":true}"#;

/// One that serves these topics, and where.
pub fn serving(world: &World, topics: &str, options: &str) -> (Process, PathBuf) {
    let path = world.file("serve");
    let stream = world.stream(&format!("-t {topics} --serve {} {options}", path.display()));
    (stream, path)
}

/// The line that asks for this, for a transaction `t1`.
pub fn request(id: u32, op: &str, ids: &[u32]) -> String {
    let messages: Vec<_> = ids.iter().map(|id| format!("{{\"payload\":{{\"id\":{id}}}}}")).collect();
    let messages = if ids.is_empty() { String::new() } else { format!(",\"messages\":[{}]", messages.join(",")) };
    format!("{{\"id\":{id},\"tx\":\"t1\",\"op\":\"{op}\"{messages}}}")
}

pub fn ok(id: u32) -> String {
    format!("{{\"id\":{id},{OK}")
}

pub fn instant(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).into_iter().map(|record| record.value.unwrap()).collect()
}

#[test]
fn delay_messages_are_there_before_the_answer_and_instant_ones_when_it_is_committed_each_once() {
    let world = World::new("serve");
    let topic = world.topic_with_delay("products", 1);
    let (mut stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
    assert_eq!(client.ask(&request(1, "delay", &[7, 8, 7])), ok(1));
    assert_eq!(delayed(&world, &topic), [r#"{"id":7}"#, r#"{"id":8}"#]);
    // Of the same transaction.
    assert_eq!(client.ask(&request(2, "delay", &[8, 9])), ok(2));
    assert_eq!(delayed(&world, &topic)[2..], [r#"{"id":8}"#, r#"{"id":9}"#]);
    assert_eq!(world.kafka.count(&topic), 0);
    assert_eq!(client.ask(&request(3, "instant", &[])), ok(3));
    let mut told = instant(&world, &topic);
    told.sort();
    assert_eq!(told, [r#"{"id":7}"#, r#"{"id":8}"#, r#"{"id":9}"#]);
    let keys: Vec<_> = world.kafka.records(&topic).into_iter().map(|record| record.key.unwrap()).collect();
    assert!(keys.contains(&"7".to_owned()), "{keys:?}");
    // It has ended, and its name may be used again.
    let unknown = client.ask(&request(4, "instant", &[]));
    assert!(unknown.starts_with(r#"{"id":4,"ok":false,"error":"tx \"t1\" is not known here"#), "{unknown}");
    assert_eq!(client.ask(&request(5, "delay", &[10])), ok(5));
    assert_eq!(client.ask(&request(6, "forget", &[])), ok(6));
    assert_eq!((world.kafka.count(&topic), delayed(&world, &topic).len()), (3, 5));
    // Without delay messages, of which nothing is kept.
    assert_eq!(client.ask(&request(7, "instant", &[11, 11])), ok(7));
    assert_eq!(instant(&world, &topic)[3..], [r#"{"id":11}"#]);
    stream.signal(Signal::TERM);
    assert_eq!((stream.wait(), path.exists()), (End::Status(0), false));
}

#[test]
fn a_message_names_its_topic_its_key_and_any_payload() {
    let world = World::new("serve-topics");
    let [products, orders] = ["products", "orders"].map(|name| world.topic_with_delay(name, 1));
    let (_stream, path) = serving(&world, &format!("{products} -t {orders}"), "");
    let mut client = Client::to(&world, &path);
    let messages = [
        format!(r#"{{"topic":"{products}","key":"a\"b","payload":[1e3, {{"x":18446744073709551616}}]}}"#),
        format!(r#"{{"topic":"{orders}","key":null,"payload":{{"id":"é"}}}}"#),
        format!(r#"{{"topic":"{orders}","payload":null}}"#),
    ];
    let ask = |id: &str, op: &str| format!(r#"{{"op":"{op}","tx":[1],"id":{id},"messages":[{}]}}"#, messages.join(","));
    assert_eq!(client.ask(&ask(r#""a b""#, "delay")), format!(r#"{{"id":"a b",{OK}"#));
    assert_eq!(client.ask(r#"{"id":1.50,"op":"instant","tx":[1]}"#), format!("{{\"id\":1.50,{OK}"));
    let records = |topic: &str| {
        let records = world.kafka.records(topic).into_iter();
        records.map(|record| (record.key, record.value.unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(records(&products), [(Some("a\"b".into()), r#"[1e3, {"x":18446744073709551616}]"#.to_owned())]);
    assert_eq!(records(&orders), [(Some("é".into()), r#"{"id":"é"}"#.to_owned()), (None, "null".to_owned())]);
    assert_eq!(delayed(&world, &orders).len(), 2);
}

#[test]
fn a_record_that_is_told_twice_is_announced_as_it_was_told_last() {
    let world = World::new("serve-twice");
    let topic = world.topic_with_delay("products", 1);
    let (_stream, path) = serving(&world, &topic, "--key id,part");
    let mut client = Client::to(&world, &path);
    for price in 1..=3 {
        let messages = format!(r#"{{"payload":{{"id":7,"part":"a","price":{price}}}}}"#);
        let asked = format!(r#"{{"id":{price},"tx":"t1","op":"delay","messages":[{messages},{messages}]}}"#);
        assert_eq!(client.ask(&asked), ok(price));
    }
    assert_eq!(client.ask(&request(4, "instant", &[])), ok(4));
    let records: Vec<_> = world.kafka.records(&topic).iter().map(|record| record.line()).collect();
    assert_eq!(records, [r#"[7,"a"]|{"id":7,"part":"a","price":3}"#]);
    assert_eq!(delayed(&world, &topic).len(), 3);
}

#[test]
fn what_is_no_request_is_told_and_the_next_one_is_served() {
    let world = World::new("serve-wrong");
    let topic = world.topic_with_delay("products", 1);
    let (_stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    for (line, told) in [
        ("nonsense", "{\"id\":null,\"ok\":false,\"error\":\"this is not a request: "),
        (r#"{"id":7}"#, r#"{"id":7,"ok":false,"error":"this is not a request: missing field `op`"#),
        (r#"{"id":7,"op":"commit"}"#, r#"{"id":7,"ok":false,"error":"op is delay, instant or forget, not \"commit\""#),
        (r#"{"id":7,"op":"delay","tx":"t"}"#, r#"{"id":7,"ok":false,"error":"a delay request needs messages""#),
        (
            r#"{"id":7,"op":"delay","messages":[{"payload":{"id":1}}]}"#,
            r#"{"id":7,"ok":false,"error":"a delay request needs a tx""#,
        ),
        (r#"{"id":7,"op":"instant"}"#, r#"{"id":7,"ok":false,"error":"an instant request needs a tx, or messages""#),
        (
            r#"{"id":7,"op":"delay","tx":"t","messages":[{"topic":"other","payload":1}]}"#,
            r#"{"id":7,"ok":false,"error":"topic other is not served, only products-"#,
        ),
        (
            r#"{"id":7,"op":"delay","tx":"t","messages":[{"topic":"other"}]}"#,
            r#"{"id":7,"ok":false,"error":"this is not a"#,
        ),
    ] {
        let answer = client.ask(line);
        assert!(answer.starts_with(told), "{line}: {answer}");
    }
    // What is repeated has an end.
    let long = "é".repeat(1_000_000);
    for line in [format!(r#"{{"id":7,"op":"{long}"}}"#), format!(r#"{{"id":"{long}","op":1}}"#)] {
        let answer = client.ask(&line);
        assert!(answer.len() < 2000 && answer.contains(r#","ok":false,"error":""#), "{answer}");
    }
    assert_eq!(client.ask(&request(8, "delay", &[1])), ok(8));
    let (_two, two) = serving(&world, &format!("{topic} -t {}", world.topic_with_delay("orders", 1)), "");
    let answer = Client::to(&world, &two).ask(&request(9, "delay", &[1]));
    assert!(answer.contains("a message has to name its topic, since 2 are served"), "{answer}");
    // Too long to be read: nobody knows where the next one begins.
    let mut long = Client::to(&world, &path);
    long.say(format!("\"{}", "x".repeat((16 << 20) - 1)).as_bytes());
    assert_eq!(long.answer(), r#"{"id":null,"ok":false,"error":"a request is longer than 16777216 bytes"}"#);
    assert!(long.is_closed());
    assert_eq!(client.ask(&request(10, "forget", &[])), ok(10));
}

#[test]
fn delay_messages_are_sent_again_until_the_end_of_the_transaction_is_told() {
    let world = World::new("serve-again");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "--delay 1s");
    let mut client = Client::to(&world, &path);
    let count = || world.kafka.count(&format!("{topic}-delay"));
    // What it has told last: a transaction has ended when nothing of it is on its way any more.
    let has = |transactions: u32| {
        stream.ask();
        stream.log().last().is_some_and(|line| line.contains(&format!(" {transactions} transactions under way")))
    };
    for (ids, op) in [(1, "instant"), (2, "forget"), (3, "")] {
        assert_eq!(client.ask(&request(1, "delay", &[ids])), ok(1));
        let before = count();
        world.eventually("they are sent again and again", || count() >= before + 3);
        world.eventually("it is under way", || has(1));
        if op.is_empty() {
            client = Client::to(&world, &path);
        } else {
            assert_eq!(client.ask(&request(2, op, &[])), ok(2));
        }
        world.eventually("it has ended", || has(0));
        let after = count();
        world.for_a_while(Duration::from_millis(1500), "and then no more", || count() == after);
    }
    assert_eq!(instant(&world, &topic), [r#"{"id":1}"#]);
}

#[test]
fn a_transaction_belongs_to_its_application() {
    let world = World::new("serve-two");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "");
    let (mut one, mut other) = (Client::to(&world, &path), Client::to(&world, &path));
    assert_eq!(one.ask(&request(1, "delay", &[1])), ok(1));
    assert_eq!(other.ask(&request(1, "delay", &[2])), ok(1));
    world.eventually("it tells of them", || {
        stream.ask();
        stream.says(&["2 applications, 2 transactions under way"])
    });
    drop(one);
    world.eventually("it tells of the end of one", || {
        stream.ask();
        stream.says(&["1 applications, 1 transactions under way"])
    });
    assert_eq!(other.ask(&request(2, "instant", &[])), ok(2));
    assert_eq!(instant(&world, &topic), [r#"{"id":2}"#]);
}

#[test]
fn requests_may_be_many_at_once() {
    let world = World::new("serve-many");
    let topic = world.topic_with_delay("products", 4);
    let (_stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    let count = 5000;
    let ask = |id: u32, op: &str, ids: &[u32]| request(id, op, ids).replace("t1", &id.to_string()) + "\n";
    for (op, sent) in [("delay", format!("{topic}-delay")), ("instant", topic.clone())] {
        let ids = |id| if op == "delay" { vec![id] } else { vec![] };
        let lines: String = (0..count).map(|id| ask(id, op, &ids(id))).collect();
        let mut answers: Vec<u32> = std::thread::scope(|scope| {
            let mut teller = client.teller();
            scope.spawn(move || teller.say(lines.as_bytes()));
            let id = |answer: String| {
                answer.strip_prefix("{\"id\":").unwrap().strip_suffix(&format!(",{OK}")).unwrap().parse().unwrap()
            };
            (0..count).map(|_| id(client.answer())).collect()
        });
        answers.sort();
        assert!(answers.iter().copied().eq(0..count));
        assert_eq!(world.kafka.count(&sent), i64::from(count));
    }
}

#[test]
fn one_application_may_talk_over_stdin_and_stdout() {
    let world = World::new("serve-stdio");
    let topic = world.topic_with_delay("products", 1);
    let said = world.file("said");
    let lines = [request(1, "delay", &[1]), request(2, "instant", &[])].join("\n");
    let serve = format!("{} -t {topic} --serve -", env!("CARGO_BIN_EXE_ksync-stream"));
    let mut stream = world.start("sh", &format!("-c \"exec {serve} > {}\"", said.display()), &[]);
    stream.tell(lines);
    assert_eq!(stream.wait(), End::Status(0));
    let mut answers: Vec<String> = fs::read_to_string(said).unwrap().lines().map(str::to_owned).collect();
    answers.sort();
    assert_eq!(answers, [ok(1), ok(2)]);
    assert_eq!(instant(&world, &topic), [r#"{"id":1}"#]);
}

#[test]
fn the_socket_may_be_one_that_systemd_has_made() {
    let world = World::new("serve-systemd");
    let topic = world.topic_with_delay("products", 1);
    let (path, way) = (world.file("activated"), Way::to(world.services.get("KSYNC_BOOTSTRAP_SERVER")));
    let activate = world.script_of(
        "#!/usr/bin/env python3\n\
         import os, socket, sys\n\
         listener = socket.socket(socket.AF_UNIX)\n\
         listener.bind(sys.argv[1])\n\
         listener.listen()\n\
         os.dup2(listener.fileno(), 3)\n\
         os.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
         os.execv(sys.argv[2], sys.argv[2:])\n",
    );
    let stream = env!("CARGO_BIN_EXE_ksync-stream");
    let command = format!("{} {stream} -t {topic} --serve /not/used --ack-timeout 5s", path.display());
    // Requests that come earlier wait in the socket, but not for a Kafka that is away.
    way.set(1, Passage::Frozen);
    let started = Instant::now();
    let mut stream = world.start(&activate, &command, &[("KSYNC_BOOTSTRAP_SERVER", &way.bootstrap)]);
    let mut client = Client::to(&world, &path);
    let asked = Instant::now();
    let answer = client.ask(&request(1, "delay", &[1]));
    assert_eq!(
        answer,
        r#"{"id":1,"ok":false,"error":"ksync-stream was started and waits for Kafka; nothing was sent"}"#
    );
    // Its time begins with its start, which this test may see later.
    assert!(started.elapsed() >= Duration::from_millis(4900), "{:?}", started.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    way.set(1, Passage::Open);
    assert!(client.is_closed(), "it is not to believe that it is turned away for ever");
    let mut client = Client::to(&world, &path);
    world.eventually("it serves", || client.ask(&request(1, "delay", &[1])) == ok(1));
    stream.signal(Signal::TERM);
    // It stays systemd's.
    assert_eq!((stream.wait(), path.exists()), (End::Status(0), true));
}
