//! ksync-stream as it serves: applications that leave much unended, Kafka away, settings that are wrong.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::serve::{OK, instant, ok, request, serving};
use crate::stream::delayed;
use crate::support::{Client, End, World};

#[test]
fn transactions_whose_ends_are_not_told_are_too_many_some_day() {
    let world = World::new("serve-leak");
    let topic = world.topic_with_delay("products", 1);
    let (_stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    let ask = |id: u32| request(id, "delay", &[id]).replace("t1", &id.to_string()) + "\n";
    for first in (0..10_000).step_by(500) {
        client.say((first..first + 500).map(ask).collect::<String>().as_bytes());
        assert!((0..500).all(|_| client.answer().ends_with(OK)));
    }
    let refused = client.ask(ask(10_000).trim_end());
    assert!(refused.contains("10000 transactions are under way on this connection"), "{refused}");
    assert_eq!(client.ask(ask(7).trim_end()), ok(7), "it is known");
    assert_eq!(client.ask(&request(8, "forget", &[]).replace("t1", "8")), ok(8));
    assert_eq!(client.ask(ask(10_000).trim_end()), ok(10_000));
}

#[test]
fn a_request_that_is_not_ended_holds_nobody_up() {
    let world = World::new("serve-long");
    let topic = world.topic_with_delay("products", 1);
    let (_stream, path) = serving(&world, &topic, "");
    let ids: Vec<u32> = (0..12_000).collect();
    let long = format!("{}\n", request(1, "delay", &ids));
    assert!(long.len() > 250_000);
    let (begin, end) = long.split_at(200_000);
    let mut stalled: Vec<_> = (0..3).map(|_| Client::to(&world, &path)).collect();
    stalled.iter_mut().for_each(|client| client.say(begin.as_bytes()));
    let mut client = Client::to(&world, &path);
    for id in 0..100 {
        assert_eq!(client.ask(&request(id, "delay", &[id])), ok(id));
    }
    for client in &mut stalled {
        client.say(end.as_bytes());
        assert_eq!(client.answer(), ok(1));
        assert_eq!(client.ask(&request(2, "forget", &[])), ok(2));
    }
    assert_eq!(world.kafka.count(&format!("{topic}-delay")), 36_100);
}

#[test]
fn what_cannot_be_kept_is_covered_all_the_same_and_brings_its_messages_along() {
    let world = World::new("serve-full");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "");
    let (mut many, mut client) = (Client::to(&world, &path), Client::to(&world, &path));
    let text = "x".repeat(900_000);
    // 64 MiB and more, of which the last are not kept.
    for id in 0..400 {
        let text = if id < 80 { text.as_str() } else { "" };
        let message = format!(r#"{{"payload":{{"id":{id},"text":"{text}"}}}}"#);
        assert_eq!(many.ask(&format!(r#"{{"id":{id},"tx":{id},"op":"delay","messages":[{message}]}}"#)), ok(id));
    }
    world.eventually("it tells how much it keeps", || {
        stream.ask();
        stream.says(&[" transactions under way, 65"])
    });
    assert_eq!(client.ask(&request(1, "delay", &[1])), ok(1));
    let unknown = client.ask(&request(2, "instant", &[]));
    assert!(unknown.contains("is not known here, or not any more; send its messages along"), "{unknown}");
    assert_eq!(client.ask(&request(3, "instant", &[1])), ok(3));
    assert_eq!(instant(&world, &topic), [r#"{"id":1}"#]);
    // What nothing is kept of stays so, also when there is room again.
    assert_eq!(client.ask(&request(6, "delay", &[3])), ok(6));
    drop(many);
    world.eventually("nothing is kept", || {
        stream.ask();
        stream.says(&[" 0 transactions under way, 0 KiB"])
    });
    assert_eq!(client.ask(&request(7, "delay", &[4])), ok(7));
    let unknown = client.ask(&request(8, "instant", &[]));
    assert!(unknown.contains("is not known here, or not any more; send its messages along"), "{unknown}");
    world.eventually("there is room again", || {
        client.ask(&request(4, "delay", &[2]));
        client.ask(&request(5, "instant", &[])) == ok(5)
    });
}

#[test]
fn while_kafka_is_away_nobody_waits_for_it() {
    let world = World::alone("serve-away");
    let topic = world.topic_with_delay("products", 1);
    let (mut stream, path) = serving(&world, &topic, "--ack-timeout 3s");
    let mut client = Client::to(&world, &path);
    assert_eq!(client.ask(&request(1, "delay", &[1])), ok(1));
    let mut other = Client::to(&world, &path);
    assert_eq!(other.ask(&request(1, "delay", &[5])), ok(1));
    let broker = world.services.pid("kafka-1");
    kill_process(broker, Signal::STOP).unwrap();
    let asked = Instant::now();
    let answer = client.ask(&request(2, "instant", &[]));
    assert!(answer.contains("Kafka has not acknowledged the messages within 3s"), "{answer}");
    assert!(answer.contains("the delay messages cover the change"), "{answer}");
    assert!((2900..6000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let answer = other.ask(&request(2, "instant", &[]));
    assert!(answer.contains("the delay messages cover the change: Kafka is away for "), "{answer}");
    let answers: Vec<_> = (3..13).map(|id| client.ask(&request(id, "delay", &[2]))).collect();
    assert!(answers.iter().all(|answer| answer.contains("Kafka is away for ")), "{answers:?}");
    assert!(asked.elapsed() < Duration::from_millis(2900), "{:?}", asked.elapsed());
    kill_process(broker, Signal::CONT).unwrap();
    world.eventually("it is back", || client.ask(&request(20, "delay", &[3])) == ok(20));
    // Its transaction is under way, and may be committed all the same.
    world.eventually("what was refused is covered", || delayed(&world, &topic).contains(&r#"{"id":2}"#.to_owned()));
    assert_eq!(client.ask(&request(21, "instant", &[])), ok(21));
    world.eventually("all is told", || instant(&world, &topic).len() == 3);
    // What is under way is answered before the end.
    kill_process(broker, Signal::STOP).unwrap();
    client.say(format!("{}\n", request(22, "delay", &[4])).as_bytes());
    world.eventually("it is asked", || {
        stream.ask();
        stream.says(&["2 applications, 1 transactions under way"])
    });
    stream.signal(Signal::TERM);
    let answer = client.answer();
    assert!(answer.starts_with(r#"{"id":22,"ok":false,"error":"cannot send the delay messages"#), "{answer}");
    assert_eq!((client.answer().as_str(), stream.wait()), ("", End::Status(0)));
    kill_process(broker, Signal::CONT).unwrap();
}

#[test]
fn what_is_set_wrong_is_told_before_anybody_is_served() {
    let world = World::new("serve-set");
    let topic = world.topic_with_delay("products", 1);
    let file = world.file("file");
    fs::write(&file, "").unwrap();
    let file = file.display();
    for (options, status, told) in [
        (
            format!("-t {topic} --serve {file}"),
            78,
            format!("cannot listen at {file}: it is there already, and is no socket"),
        ),
        (format!("-t {topic} --serve /no/such/folder/s"), 78, "cannot listen at /no/such/folder/s: ".to_owned()),
        (format!("-t missing-{topic} --serve x"), 78, format!("topic missing-{topic} does not exist")),
        (format!("-t {topic} --serve x -"), 2, "the argument '--serve <PATH|->' cannot be used with".to_owned()),
        (format!("-t {topic} --serve x -- cat"), 2, "the argument '--serve <PATH|->' cannot be used with".to_owned()),
    ] {
        let mut stream = world.stream(&options);
        assert_eq!(stream.wait(), End::Status(status), "{options}: {:?}", stream.log());
        assert!(stream.says(&["error: ", &told]), "{options}: {:?}", stream.log());
    }
    let (_stream, path) = serving(&world, &topic, "");
    let _client = Client::to(&world, &path);
    let mut second = world.stream(&format!("-t {topic} --serve {}", path.display()));
    assert_eq!(second.wait(), End::Status(4));
    // Others may use the lock of a folder, too.
    let folder = world.file("locked");
    fs::create_dir(&folder).unwrap();
    let held = File::open(&folder).unwrap();
    held.lock().unwrap();
    let mut third = world.stream(&format!("-t {topic} --serve {}/s", folder.display()));
    assert_eq!(third.wait(), End::Status(4));
    assert!(third.says(&["error: ", "another process has had a lock of"]), "{:?}", third.log());
}
