//! ksync-stream as it is looked at and steered over a socket while it is at work.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::stream::delayed;
use crate::support::{Client, End, Process, World, block_on, primaries};
use crate::throttle::lines;

/// A run that is steered by a socket of its own.
fn steered(world: &World, command: &str) -> (Process, PathBuf, Client) {
    let path = world.file("control");
    let stream = world.stream(&format!("{command} --control unix:{}", path.display()));
    let client = Client::to(world, &path);
    (stream, path, client)
}

#[test]
fn a_run_is_looked_at_and_steered_while_it_is_at_work() {
    let world = World::new("control");
    let topic = world.topic("products", 1);
    let (mut stream, path, mut client) = steered(&world, &format!("- -t {topic} --chunk-size 5"));
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    stream.tell(lines(1..=5));
    world.eventually("they are counted", || client.ask("status").starts_with("5 rows in 1 chunks, "));
    let status = client.ask("status");
    assert!(
        status.starts_with("5 rows in 1 chunks, ") && status.contains("; last key 5; rate off; not paused"),
        "{status}"
    );

    assert_eq!(client.ask("pause"), "pausing after the chunk under way, until resume");
    stream.tell(lines(6..=10));
    world.eventually("it is paused", || client.ask("status").contains("; paused since 2"));
    stream.tell(lines(11..=15));
    // Rows are counted when they are sent, and may arrive later.
    let mut sent = 0;
    world.eventually("what is counted has arrived", || {
        sent = world.kafka.count(&topic);
        client.ask("status").starts_with(&format!("{sent} rows in "))
    });
    world.for_a_while(Duration::from_millis(300), "nothing goes on", || world.kafka.count(&topic) == sent);
    let mut other = Client::to(&world, &path);
    assert!(other.ask("status").contains("Z: asked to by --control; pauses so far: control "));
    assert_eq!(other.ask("resume"), "going on");
    world.eventually("they are sent", || world.kafka.count(&topic) == 15);

    assert_eq!(client.ask("rate 0.01"), "the rate is 0.01/s");
    stream.tell(lines(16..=30));
    world.eventually("it waits for the rate", || other.ask("status").contains("; rate 0.01/s; paused since 2"));
    assert!(client.ask("status").contains("Z: the rate is 0.01/s; pauses so far: control "));
    assert_eq!(client.ask("rate off"), "the rate is off");
    world.eventually("they are counted", || other.ask("status").starts_with("30 rows in 6 chunks, "));

    let help = client.ask("help");
    assert_eq!(client.ask("rate fast"), "error: 'fast' is not a rate: it is written as 500/s, 500, or off");
    assert_eq!(client.ask("halt"), format!("error: 'halt' is none of: {help}"));
    for command in ["status", "pause", "resume", "rate N", "stop", "help"] {
        assert!(help.contains(command), "{help}");
    }
    client.say(b"\x00\xff\xfe\nstatus\r\n");
    assert_eq!(client.answer(), format!("error: '\\0\u{fffd}\u{fffd}' is none of: {help}"));
    assert!(client.answer().starts_with("30 rows in 6 chunks, "));
    client.say(&[b'x'; 5000]);
    assert_eq!(client.answer(), "error: a line has less than 1024 bytes");
    // What it has not read of the line may make this an error.
    assert!(client.is_closed());

    // Of many clients some wait; whoever leaves makes room.
    let mut idle: Vec<_> = (0..15).map(|_| Client::to(&world, &path)).collect();
    let mut late = Client::to(&world, &path);
    late.say(b"status\n");
    assert!(late.is_silent_for(Duration::from_millis(200)));
    idle.pop();
    assert!(late.answer().starts_with("30 rows in 6 chunks, "));

    assert_eq!(other.ask("stop"), "ending after the chunk under way");
    world.within(Duration::from_secs(10), "it has ended", || !stream.is_running());
    assert_eq!(stream.wait(), End::Status(75));
    assert!(!path.exists());
    let asked = stream.log_of("info").into_iter().filter(|line| line.starts_with("control: ")).collect::<Vec<_>>();
    assert_eq!(asked[0], "control: pause: pausing after the chunk under way, until resume");
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[test]
fn stop_finishes_the_chunk() {
    let world = World::new("control-stop");
    let topic = world.topic_with_delay("products", 1);
    let gate = world.gate();
    let action = world.script(&format!("cat > /dev/null; touch {gate}.begun; await {gate}"));
    let path = world.file("control");
    let command = format!("- -t {topic} --chunk-size 2 --control unix:{} -- {action}", path.display());
    let mut stream = world.stream_lines(&command, lines(1..=6));
    let begun = format!("{gate}.begun");
    world.eventually("the action runs", || Path::new(&begun).exists());
    let mut client = Client::to(&world, &path);
    client.ask("pause");
    assert!(client.ask("status").ends_with("; pauses after the chunk under way"));
    assert_eq!(client.ask("stop"), "ending after the chunk under way");
    gate.open();
    assert_eq!(stream.wait(), End::Status(75));
    assert_eq!((world.kafka.count(&topic), world.kafka.count(&format!("{topic}-delay"))), (2, 2));
}

#[test]
fn a_control_path_that_is_in_use_is_refused_and_a_stale_one_is_replaced() {
    let world = World::new("control-path");
    let topic = world.topic("products", 1);
    let run =
        |path: &Path| world.stream_lines(&format!("- -t {topic} --control unix:{}", path.display()), lines(1..=1));
    let (file, used) = (world.file("file"), world.file("used"));
    std::fs::write(&file, "precious").unwrap();
    let listener = UnixListener::bind(&used).unwrap();
    for (path, status, why) in
        [(&file, 78, "it is there already, and is no socket"), (&used, 4, "another process listens there")]
    {
        let mut stream = run(path);
        assert_eq!(stream.wait(), End::Status(status));
        assert_eq!(stream.log_of("error"), [format!("--control: cannot listen at {}: {why}", path.display())]);
    }
    assert_eq!((std::fs::read_to_string(&file).unwrap(), world.kafka.count(&topic)), ("precious".to_owned(), 0));
    for (option, status, why) in [
        ("/run/x", 2, "a control socket is written as unix:PATH"),
        ("unix:/nowhere/x", 78, "--control: cannot listen at /nowhere/x: No such file or directory (os error 2)"),
        (&format!("unix:{}", "x".repeat(200)), 78, "path must be shorter than SUN_LEN"),
    ] {
        let mut stream = world.stream(&format!("- -t {topic} --control {option}"));
        assert_eq!(stream.wait(), End::Status(status), "{option}");
        assert!(stream.says(&[why]), "{option}: {:?}", stream.log());
    }

    drop(listener);
    assert_eq!(run(&used).wait(), End::Status(0));
    assert!(!used.exists());

    let (mut killed, stale, _) = steered(&world, &format!("- -t {topic}"));
    killed.kill();
    assert!(stale.exists());
    assert_eq!(run(&stale).wait(), End::Status(0));
    assert!(!stale.exists());

    // What another process has put there meanwhile is its own.
    let (mut first, path, _) = steered(&world, &format!("- -t {topic}"));
    std::fs::remove_file(&path).unwrap();
    let _second = UnixListener::bind(&path).unwrap();
    assert_eq!((first.wait(), path.exists()), (End::Status(0), true));
}

#[test]
fn sigterm_ends_a_pause_that_was_asked_for() {
    let world = World::new("control-term");
    let topic = world.topic("products", 1);
    let (mut stream, _, mut client) = steered(&world, &format!("- -t {topic}"));
    client.ask("pause");
    stream.tell(lines(1..=1));
    world.eventually("it pauses", || client.ask("status").contains("; paused since "));
    stream.signal(Signal::TERM);
    world.within(Duration::from_secs(10), "it has ended", || !stream.is_running());
    assert_eq!(stream.wait(), End::Status(75));
}

#[test]
fn lines_that_come_in_a_pause_wait_for_its_end_with_an_action_too() {
    let world = World::new("control-lines");
    let topic = world.topic_with_delay("products", 1);
    let action = world.script("cat > /dev/null");
    let path = world.file("control");
    let mut stream = world.stream(&format!("- -t {topic} --control unix:{} -- {action}", path.display()));
    let mut client = Client::to(&world, &path);
    stream.tell(lines(1..=1));
    world.eventually("it is sent", || world.kafka.count(&topic) == 1);
    client.ask("pause");
    stream.tell(lines(2..=3));
    world.eventually("it pauses", || client.ask("status").contains("; paused since "));
    assert_eq!(world.kafka.count(&format!("{topic}-delay")), 1);
    client.ask("resume");
    world.eventually("they are sent", || world.kafka.count(&topic) == 3);
    assert_eq!(stream.wait(), End::Status(0));
}

#[test]
fn what_was_read_ahead_is_read_again_after_a_pause() {
    let world = World::new("control-ahead");
    for primary in block_on(primaries("control_ahead")) {
        block_on(primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)"));
        block_on(primary.execute("INSERT INTO products VALUES (1, 0), (2, 0), (3, 0), (4, 0)"));
        let topic = world.topic_with_delay(&format!("products-{:06x}", rand::random::<u32>()), 1);
        let gate = world.gate();
        let action = world.script(&format!("cat > /dev/null; await {gate}"));
        let source = format!("--database {} --table products --where 'price < 2'", primary.url);
        let path = world.file("control");
        let options = format!("--payload id,price --chunk-size 1 --control unix:{}", path.display());
        let mut stream = world.stream(&format!("-t {topic} {source} {options} -- {action}"));
        world.eventually("the action runs, and the next row is covered", || delayed(&world, &topic).len() == 2);
        let mut client = Client::to(&world, &path);
        assert_eq!(client.ask("pause"), "pausing after the chunk under way, until resume");
        gate.open();
        world.eventually("it is paused", || client.ask("status").contains("; paused since 2"));
        assert_eq!(world.kafka.count(&topic), 1, "{primary:?}");
        block_on(primary.execute("UPDATE products SET price = 1 WHERE id = 2"));
        block_on(primary.execute("UPDATE products SET price = 2 WHERE id = 3"));
        assert_eq!(client.ask("resume"), "going on");
        assert_eq!(stream.wait(), End::Status(0), "{primary:?}: {:?}", stream.log());
        let records = world.kafka.records(&topic);
        let instant: Vec<_> = records.into_iter().map(|record| record.value.unwrap()).collect();
        let [one, two, four] = [(1, 0), (2, 1), (4, 0)].map(|(id, price)| format!("{{\"id\":{id},\"price\":{price}}}"));
        assert_eq!(instant, [&one, &two, &four].map(String::clone), "{primary:?}");
        let old = "{\"id\":2,\"price\":0}".to_owned();
        assert_eq!(delayed(&world, &topic), [one, old, two, four], "{primary:?}");
    }
}
