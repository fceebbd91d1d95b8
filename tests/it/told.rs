//! What a daemon tells of itself to whoever sends SIGUSR1.

use crate::consume::ids;
use crate::support::{Process, World, value};

/// Waits until this is what the process answers to SIGUSR1; times, terms and this host's name are written so.
fn answers(world: &World, process: &Process, expected: &[String]) {
    world.eventually(&format!("it answers {expected:#?}"), || {
        process.ask();
        let log = process.log_of("info");
        let last = &log[log.len().saturating_sub(expected.len())..];
        last.iter().map(|line| masked(line)).eq(expected.iter().cloned())
    });
}

fn masked(line: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut masked: Vec<&str> = vec![];
    for word in line.split(' ') {
        masked.push(match masked.last() {
            Some(&"term") => "TERM",
            Some(&"since") => "TIME,",
            Some(&"behind") if word == host.trim() => "HOST",
            _ if word.contains('.') && word.parse::<f64>().is_ok() => "N",
            _ => word,
        });
    }
    masked.join(" ")
}

#[test]
fn sigusr1_tells_what_each_partition_waits_for_even_with_quiet() {
    let world = World::new("asked");
    let products = world.topic("products", 4);
    let gate = world.gate();
    let handler = world.handler(&format!("[ $KSYNC_BATCH_PARTITION -ne 1 ] || await {gate}"));
    let consumer = world.consume(&format!("-q -j 1 -t {products} -n indexer -- {handler}"));
    let at = |partition: i32, state: &str| format!("{products}/{partition} as indexer: {state}");
    let leading = |partition: i32, state: &str| at(partition, &format!("leading term TERM since TIME, {state}"));
    let idle = |partition| leading(partition, "offset 0; waits for records, N s so far");
    let all = "leading 4 of 4 partitions".to_owned();
    answers(&world, &consumer, &[all, idle(0), idle(1), idle(2), idle(3)]);

    world.kafka.produce(&products, ids(1..=5).map(|message| message.to(0)));
    world.eventually("they are done", || world.seat(&products, 0, "indexer").offset() == Some(5));
    world.kafka.produce(&products, [value("{").to(3)]);
    world.eventually("it halts", || !consumer.log_of("error").is_empty());
    world.kafka.produce(&products, ids(1..=3).map(|message| message.to(1)));
    world.eventually("the handler runs", || handler.runs().len() == 2);
    world.kafka.produce(&products, ids(1..=1).map(|message| message.to(2)));
    let halted = consumer.log_of("error")[0].split_once("halted at offset 0: ").unwrap().1.to_owned();
    answers(
        &world,
        &consumer,
        &[
            "leading 4 of 4 partitions, 1 halted".to_owned(),
            leading(0, "offset 5; waits for records, N s so far"),
            leading(1, "offset 0; the handler has offsets 0 to 2, attempt 1, for N s so far"),
            leading(2, "offset 0; waits for a handler to be free (-j), N s so far"),
            leading(3, &format!("offset 0; halted: {halted}; tries again in N s")),
        ],
    );

    let standby = world.consume(&format!("-q -p 0 -t {products} -n indexer -- {handler}"));
    answers(&world, &standby, &["leading 0 of 1 partitions".to_owned(), at(0, "standby, behind HOST")]);
    gate.open();
}

#[test]
fn sigusr1_tells_of_pauses_shares_and_delay_messages() {
    let world = World::new("asked-more");
    let products = world.topic_with_delay("products", 1);
    world.kafka.produce(&products, ids(1..=2));
    let one = "leading 1 of 1 partitions".to_owned();
    let leading = |topic: &str, name: &str, state: &str| {
        format!("{topic}/0 as {name}: leading term TERM since TIME, offset 0; {state}")
    };
    let failing = world.consume(&format!("-q -t {products} -n fails --retry-pause 1h --retry-pause-max 1h -- false"));
    answers(&world, &failing, &[one.clone(), leading(&products, "fails", "tries again in N s")]);

    let gate = world.gate();
    let handler = world.handler(&format!("await {gate}"));
    let by_key = world.consume(&format!("-q -j 2 --by-key -t {products} -n splits -- {handler}"));
    world.eventually("both run", || handler.runs().len() == 2);
    let runs = handler.runs();
    let shares: Vec<_> = runs.iter().map(|run| (run.first, run.last)).collect();
    let at =
        |(first, last): (i64, i64)| format!("the handler has offsets {first} to {last}, attempt 1, for N s so far");
    // The reading was begun before them, or after: by what came first.
    world.eventually("both are told", || {
        by_key.ask();
        let told = by_key.log_of("info");
        let line = told.last().map(|line| masked(line)).unwrap_or_default();
        shares.iter().all(|share| line.contains(&at(*share))) && line.contains("waits for records")
    });
    gate.open();

    world.kafka.produce(&format!("{products}-delay"), [value(r#"{"payload": 1, "created_at": 9e9}"#)]);
    let delayer = world.delayer(&format!("-q -t {products} --delay 1h"));
    let due = leading(&format!("{products}-delay"), "delayer", "the message at offset 0 is due in N s");
    answers(&world, &delayer, &[one, due]);
}
