//! Brokers that answer late, or not for long, while it is to be proven that a topic is still the same; by librdkafka's own mock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync::shutdown::Shutdown;
use ksync::topic::Topic;

use crate::mock::{Mock, Take, leading};
use crate::support::{World, block_on, log_lines, value};

#[test]
fn brokers_that_take_long_for_each_answer_tell_the_id_of_a_topic_all_the_same_and_commits_go_on() {
    let world = World::new("slow");
    let topic = format!("products-{}", world.id);
    let mock = Mock::new(&topic);
    let (trigger, shutdown) = Shutdown::new();
    let (work, leading) = (Take(Arc::default()), block_on(leading(&world, &mock)));
    let ids = leading.reader.ids().clone();
    let daemon = std::thread::spawn(move || block_on(leading.run(work, &shutdown)));
    let offset = || world.seat(&topic, 0, "indexer").offset();
    mock.produce("1");
    world.eventually("it leads", || offset() == Some(1));
    let topic: Topic = topic.parse().unwrap();
    let ask = || block_on(ids.ask(&topic)).ok().flatten();
    let mut id = None;
    world.eventually("it is told", || {
        id = ask();
        id.is_some()
    });
    // Two answers together take longer than one question may.
    mock.broker.broker_round_trip_time(-1, Duration::from_millis(2600)).unwrap();
    for _ in 0..2 {
        world.eventually("it is told late", || ask() == id);
    }
    mock.write(["2", "3"].map(value));
    world.eventually("one after the other is committed", || offset() == Some(3));
    trigger.request();
    daemon.join().unwrap().unwrap();
}

#[test]
fn that_nothing_can_be_committed_is_told_after_ten_seconds_without_an_answer_and_when_that_is_over() {
    let world = World::new("silent");
    let topic = format!("products-{}", world.id);
    let mock = Mock::new(&topic);
    let told = || log_lines(&format!("WARN nothing can be committed: cannot read the id of topic {topic}: "));
    let over = || log_lines(&format!("INFO topic {topic}: Kafka answers for its id again after "));
    assert_eq!((told(), over()), (vec![], vec![]));
    let (trigger, shutdown) = Shutdown::new();
    let (work, leading) = (Take(Arc::default()), block_on(leading(&world, &mock)));
    let daemon = std::thread::spawn(move || block_on(leading.run(work, &shutdown)));
    let offset = || world.seat(&topic, 0, "indexer").offset();
    mock.produce("1");
    world.eventually("it leads", || offset() == Some(1));

    let begun = Instant::now();
    mock.broker.broker_down(1).unwrap();
    world.eventually("it is told", || told().len() == 1);
    // One question may have been under way.
    assert!(begun.elapsed() >= Duration::from_secs(9), "told after {:?}", begun.elapsed());
    mock.broker.broker_up(1).unwrap();
    world.eventually("its end is told", || over().len() == 1);
    mock.produce("2");
    world.eventually("the next is done", || offset() == Some(2));
    assert_eq!((told().len(), over().len()), (1, 1));
    trigger.request();
    daemon.join().unwrap().unwrap();
}
