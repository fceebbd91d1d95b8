//! ksync-stream as it serves many: large transactions, many connections.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::serve::{OK, instant, ok, request, serving};
use crate::stream::delayed;
use crate::support::{Client, World};

#[test]
fn a_transaction_of_twenty_thousand_records_is_kept_as_a_whole() {
    let world = World::new("serve-many");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    for first in (0..20_000).step_by(500) {
        // One by one, as applications save their records.
        let lines: String = (first..first + 500).map(|id| request(id, "delay", &[id]) + "\n").collect();
        client.say(lines.as_bytes());
        assert!((0..500).all(|_| client.answer().ends_with(OK)));
    }
    assert_eq!(client.ask(&request(1, "instant", &[])), ok(1));
    assert_eq!((instant(&world, &topic).len(), stream.log_of("warn")), (20_000, vec![]));
}

#[test]
fn what_there_is_room_for_is_covered_to_the_end_where_more_has_none() {
    let world = World::new("serve-rest");
    let (topic, other) = (world.topic_with_delay("products", 1), world.topic_with_delay("others", 1));
    let (_stream, path) = serving(&world, &format!("{topic},{other}"), "--delay 8s");
    let (mut client, mut many) = (Client::to(&world, &path), Client::to(&world, &path));
    let ask = |id: u32, tx: &str, topic: &str, text: &str| {
        let message = format!(r#"{{"topic":"{topic}","payload":{{"id":{id},"text":"{text}"}}}}"#);
        format!(r#"{{"id":{id},"tx":"{tx}","op":"delay","messages":[{message}]}}"#)
    };
    assert_eq!(client.ask(&ask(1, "t1", &topic, "")), ok(1));
    let text = "x".repeat(900_000);
    for id in 0..80 {
        assert_eq!(many.ask(&ask(id, "t2", &other, &text)), ok(id));
    }
    assert_eq!(client.ask(&ask(2, "t1", &topic, &text)), ok(2));
    let count = |id: u32| {
        let begin = format!("{{\"id\":{id},");
        delayed(&world, &topic).iter().filter(|payload| payload.starts_with(&begin)).count()
    };
    world.eventually("the first one is covered again and again", || count(1) >= 3);
    assert_eq!(count(2), 1);
    let unknown = client.ask(&request(3, "instant", &[]));
    assert!(unknown.contains("the transaction is not known as a whole; send its messages along"), "{unknown}");
}

#[test]
fn applications_may_be_as_many_as_the_hard_limit_of_open_files_allows_and_others_wait() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let world = World::new("serve-crowd");
    let topic = world.topic_with_delay("products", 1);
    let path = world.file("serve");
    let command = format!("{} -t {topic} --serve {}", env!("CARGO_BIN_EXE_ksync-stream"), path.display());
    let stream = world.start("sh", &format!("-c \"ulimit -Sn 256; exec {command}\""), &[]);
    let mut first = Client::to(&world, &path);
    let crowd: Vec<_> = (1..1000).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let told = "1000 applications are connected: others wait until one of them leaves";
    let times = || stream.log_of("warn").iter().filter(|line| *line == told).count();
    world.eventually("it is told", || times() == 1);
    let mut waiting = Client::to(&world, &path);
    waiting.say((request(1, "delay", &[1]) + "\n").as_bytes());
    assert!(waiting.is_silent_for(Duration::from_secs(1)));
    assert_eq!(first.ask(&request(2, "delay", &[2])), ok(2));
    drop(crowd);
    assert_eq!(waiting.answer(), ok(1));
    assert_eq!(times(), 1);
}
