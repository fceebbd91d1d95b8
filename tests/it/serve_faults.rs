//! ksync-stream as it serves: applications that leave much unended or unread, Kafka away, settings that are wrong.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::serve::{OK, instant, ok, request, serving};
use crate::stream::delayed;
use crate::support::{Client, End, World, is_full};

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
    // More than is read without a turn, and no more than a socket takes of the one that has none.
    let (begin, end) = long.split_at(100_000);
    let mut stalled: Vec<_> = (0..3).map(|_| Client::to(&world, &path)).collect();
    let begun = Instant::now();
    stalled.iter_mut().for_each(|client| client.say(begin.as_bytes()));
    let said = begun.elapsed();
    let mut client = Client::to(&world, &path);
    for id in 0..20 {
        assert_eq!(client.ask(&request(id, "delay", &[id])), ok(id));
    }
    // They have 30 s; how long it took tells what held them up.
    let answered = begun.elapsed();
    assert!(answered < Duration::from_secs(25), "begun within {said:?}, the others answered within {answered:?}");
    for client in &mut stalled {
        client.say(end.as_bytes());
        assert_eq!(client.answer(), ok(1));
        assert_eq!(client.ask(&request(2, "forget", &[])), ok(2));
    }
    assert_eq!(world.kafka.count(&format!("{topic}-delay")), 36_020);
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
    let told = "the transactions that are under way take 64 MiB: what has no room is announced, but not once more while its \
                transaction lasts";
    assert_eq!(stream.log_of("warn"), [told]);
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
fn transactions_that_nobody_ends_take_no_more_memory_than_is_kept_of_them() {
    let world = World::new("serve-unended");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "");
    let text = "x".repeat(24_000);
    let line = |id: u32| {
        let message = format!(r#"{{"payload":{{"id":{id},"text":"{text}"}}}}"#);
        format!(r#"{{"id":{id},"tx":{id},"op":"delay","messages":[{message}]}}"#) + "\n"
    };
    let begin = |count: u32| {
        let mut client = Client::to(&world, &path);
        for first in (0..count).step_by(100) {
            client.say((first..first + 100).map(&line).collect::<String>().as_bytes());
            assert!((0..100).all(|_| client.answer().ends_with(OK)));
        }
        client
    };
    let _kept = begin(3000);
    world.eventually("it keeps as much as it may", || {
        stream.ask();
        stream.says(&["1 applications, ", " transactions under way, 65"])
    });
    let before = stream.most_memory();
    // 100 MB more, of which nothing is kept.
    let _unkept = begin(4000);
    let more = stream.most_memory() - before;
    assert!(more < 32 << 20, "{before} bytes and {more} more");
}

#[test]
fn an_application_that_reads_no_answers_is_not_read_either_and_takes_no_memory() {
    let world = World::new("serve-deaf");
    let topic = world.topic_with_delay("products", 1);
    let (stream, path) = serving(&world, &topic, "");
    let mut client = Client::to(&world, &path);
    assert_eq!(client.ask(&request(1, "delay", &[1])), ok(1));
    let before = stream.most_memory();
    // As long as an id may be: so are the answers.
    let (id, text) = ("i".repeat(1000), "x".repeat(10_000));
    let (mut one, mut other) = (Client::to(&world, &path), Client::to(&world, &path));
    let forgets = (0..100_000).map(|_| format!(r#"{{"id":"{id}","tx":1,"op":"forget"}}"#));
    let delays = (0..10_000).map(|tx| {
        let message = format!(r#"{{"payload":{{"id":{tx},"text":"{text}"}}}}"#);
        format!(r#"{{"id":"{id}","tx":{tx},"op":"delay","messages":[{message}]}}"#)
    });
    let heard = [one.say_while_heard(forgets), other.say_while_heard(delays)];
    // A thousand may wait for their answers to be read.
    assert!(heard.iter().all(|count| (1000..8000).contains(count)), "{heard:?}");
    assert_eq!(client.ask(&request(2, "instant", &[])), ok(2));
    let more = stream.most_memory() - before;
    assert!(more < 64 << 20, "{before} bytes and {more} more");
    // After 30 s.
    if is_full() {
        world.eventually("they are sent away", || {
            stream.ask();
            stream.says(&["1 applications, "])
        });
        assert!(stream.says(&["an application is gone: it does not read its answers"]), "{:?}", stream.log());
        assert_eq!(client.ask(&request(3, "forget", &[])), ok(3));
    }
}

#[test]
fn of_a_transaction_that_lasts_for_more_than_an_hour_nothing_is_kept_any_more() {
    let world = World::new("serve-hour");
    let topic = world.topic_with_delay("products", 1);
    let (path, clock) = (world.file("serve"), world.clock());
    let command = format!("-t {topic} --serve {}", path.display());
    let stream = world.start(env!("CARGO_BIN_EXE_ksync-stream"), &command, &clock.environment());
    let mut client = Client::to(&world, &path);
    assert_eq!(client.ask(&request(1, "delay", &[1])), ok(1));
    assert_eq!(client.ask(&request(2, "delay", &[2]).replace("t1", "t2")), ok(2));
    clock.pass(1800.0);
    // Each half of the delay.
    world.eventually("both are covered again", || {
        stream.ask();
        delayed(&world, &topic).len() >= 4
    });
    assert!(!stream.says(&["warn: "]), "{:?}", stream.log());
    clock.pass(1800.0);
    let told = "a transaction has no end after 1h: its delay messages are not sent again any more";
    world.eventually("it is told of both", || stream.log_of("warn").iter().filter(|line| *line == told).count() == 2);
    let answer = client.ask(&request(3, "instant", &[]));
    assert!(answer.contains("the transaction is not known as a whole; send its messages along"), "{answer}");
    assert_eq!(client.ask(&request(4, "instant", &[1])), ok(4));
    assert_eq!(client.ask(&request(5, "instant", &[2]).replace("t1", "t2")), ok(5));
    assert_eq!(instant(&world, &topic), [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[test]
fn while_kafka_is_away_nobody_waits_for_it() {
    let world = World::alone("serve-away");
    let topic = world.topic_with_delay("products", 1);
    let (mut stream, path) = serving(&world, &topic, "--ack-timeout 8s");
    let mut client = Client::to(&world, &path);
    assert_eq!(client.ask(&request(1, "delay", &[1])), ok(1));
    let mut other = Client::to(&world, &path);
    assert_eq!(other.ask(&request(1, "delay", &[5])), ok(1));
    let broker = world.services.pid("kafka-1");
    kill_process(broker, Signal::STOP).unwrap();
    let asked = Instant::now();
    let answer = client.ask(&request(2, "instant", &[]));
    assert!(answer.contains("Kafka has not acknowledged the messages within 8s"), "{answer}");
    assert!(answer.contains("the delay messages cover the change"), "{answer}");
    assert!((7900..14_000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    let answer = other.ask(&request(2, "instant", &[]));
    assert!(answer.contains("the delay messages cover the change: Kafka "), "{answer}");
    // One a second tries whether it is back: on a busy machine this one; then what it has sent arrives later.
    let has_tried = !answer.contains("Kafka is away for ");
    let mut many = Client::to(&world, &path);
    let ask = |id: u32| request(id, "delay", &[2]).replace("t1", &id.to_string()) + "\n";
    let asked = Instant::now();
    // At once: whoever asks after one that has tried comes more than a second later.
    many.say((3..13).map(ask).collect::<String>().as_bytes());
    let answers: Vec<_> = (3..13).map(|_| many.answer()).collect();
    let tried = answers.iter().filter(|answer| !answer.contains("Kafka is away for ")).count() as u32;
    assert!(tried <= 2, "{answers:?}");
    assert!(asked.elapsed() < Duration::from_millis(7900) * (1 + tried), "{:?}", asked.elapsed());
    drop(many);
    let answer = client.ask(&request(13, "delay", &[2]));
    assert!(answer.contains(r#""ok":false"#), "{answer}");
    kill_process(broker, Signal::CONT).unwrap();
    world.eventually("it is back", || client.ask(&request(20, "delay", &[3])) == ok(20));
    // Its transaction is under way, and may be committed all the same.
    world.eventually("what was refused is covered", || delayed(&world, &topic).contains(&r#"{"id":2}"#.to_owned()));
    assert_eq!(client.ask(&request(21, "instant", &[])), ok(21));
    world.eventually("all is told", || instant(&world, &topic).len() == 3 + usize::from(has_tried));
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
