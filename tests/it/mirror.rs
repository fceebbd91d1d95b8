//! Offsets that are shown to Kafka's own tools, as those of a group (`--mirror-group`).

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

use crate::consume::ids;
use crate::support::{End, Process, World, pause};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than between two times that offsets are shown.
const SHOWN: Duration = Duration::from_millis(2500);

/// A group as another program has it.
struct Group {
    name: String,
    client: BaseConsumer,
}

impl Group {
    fn new(world: &World, name: &str) -> Group {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
        config.set("group.id", name).set("enable.auto.commit", "false");
        Group { name: name.to_owned(), client: config.create().unwrap() }
    }

    /// The offset of the topic's only partition, and what was committed with it.
    fn committed(&self, topic: &str) -> Option<(i64, String)> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, 0);
        let (begun, ask) = (Instant::now(), || self.client.committed_offsets(asked.clone(), TIMEOUT));
        let mut answer = ask();
        // The broker that is the group's coordinator may not know yet that it is.
        while answer.is_err() && begun.elapsed() < Duration::from_secs(60) {
            pause();
            answer = ask();
        }
        let answer = answer.unwrap();
        let element = &answer.elements()[0];
        match element.offset() {
            Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
            _ => None,
        }
    }

    /// As `kafka-consumer-groups.sh --reset-offsets` does.
    fn commit(&self, world: &World, topic: &str, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
        world.eventually("it is committed", || self.client.commit(&list, CommitMode::Sync).is_ok());
    }

    fn join(&self, world: &World, topic: &str) {
        self.client.subscribe(&[topic]).unwrap();
        world.eventually("it is a member", || {
            drop(self.client.poll(Duration::ZERO));
            self.client.assignment().unwrap().count() > 0
        });
    }

    fn warning(&self, why: &str) -> String {
        format!("the offsets are not shown as those of group {}: {why} (--mirror-group)", self.name)
    }
}

fn ours(offset: i64) -> Option<(i64, String)> {
    Some((offset, "ksync".to_owned()))
}

fn end(mut process: Process) {
    process.signal(Signal::TERM);
    assert_eq!(process.wait(), End::Status(0));
}

#[test]
fn offsets_are_shown_as_those_of_the_group_of_the_name_or_of_the_one_that_is_said_or_of_none() {
    let world = World::new("shown");
    let products = world.topic("products", 1);
    let handler = world.handler("");
    let consume = |options: &str| world.consume(&format!("-t {products} {options} -- {handler}"));
    world.kafka.produce(&products, ids(0..5));
    let (default, named) = (Group::new(&world, "ksync.indexer"), Group::new(&world, &format!("named-{}", world.id)));
    let mut consumer = consume("-n indexer");
    world.eventually("they are shown", || default.committed(&products) == ours(5));
    world.kafka.produce(&products, ids(5..7));
    world.eventually("so are the next ones", || default.committed(&products) == ours(7));
    let seat = world.seat(&products, 0, "indexer");
    let mut last = 7;
    for round in 1.. {
        world.kafka.produce(&products, ids(last..last + 2));
        last += 2;
        world.eventually("more is done", || seat.offset() == Some(last.into()));
        // Its end does not wait for the next time, nor for longer than a second where the broker is busy.
        end(consumer);
        if default.committed(&products) == ours(last.into()) {
            break;
        }
        assert!(round < 4, "the last ones are not shown");
        consumer = consume("-n indexer");
    }
    let last = i64::from(last);

    let consumers =
        [consume(&format!("-n named --mirror-group {}", named.name)), consume("-n hidden --mirror-group off")];
    world.eventually("they are shown there", || named.committed(&products) == ours(last));
    let hidden = world.seat(&products, 0, "hidden");
    world.eventually("the other one has done its work, too", || hidden.offset() == Some(last));
    let others = ["ksync.named", "ksync.hidden", "off"].map(|name| Group::new(&world, name));
    world.for_a_while(SHOWN, "nothing is shown elsewhere", || {
        others.iter().all(|group| group.committed(&products).is_none())
    });
    consumers.into_iter().for_each(end);
}

#[test]
fn a_group_that_is_another_programs_stays_as_it_is_with_one_warning_and_nothing_is_read_from_it() {
    let world = World::new("foreign");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, ids(0..5));
    let handler = world.handler("");
    let [busy, moved, meanwhile] =
        ["busy", "moved", "meanwhile"].map(|name| Group::new(&world, &format!("{name}-{}", world.id)));
    let consume = |name: &str, group: &Group| {
        world.consume(&format!("-t {products} -n {name} --mirror-group {} -- {handler}", group.name))
    };
    let [consumer, mirroring] =
        [("moved", &moved), ("meanwhile", &meanwhile)].map(|(name, group)| consume(name, group));
    world.eventually("it is shown", || [&moved, &meanwhile].iter().all(|group| group.committed(&products) == ours(5)));
    end(consumer);
    // Somebody else's from now on, as far as anybody can see.
    [&moved, &meanwhile].iter().for_each(|group| group.commit(&world, &products, 2));
    busy.join(&world, &products);

    let [moved_on, queued] = [("moved", &moved), ("busy", &busy)].map(|(name, group)| (name, consume(name, group)));
    let consumers = [moved_on, queued, ("meanwhile", mirroring)];
    let seats = ["moved", "busy", "meanwhile"].map(|name| world.seat(&products, 0, name));
    let mut end = 5;
    let not_ours = format!("{products}/0 has an offset there that ksync did not write");
    let warnings = [
        moved.warning(&not_ours),
        busy.warning("it has members, so it is another program's"),
        meanwhile.warning(&not_ours),
    ];
    // Each look at a group comes with a commit.
    for _ in 0..2 {
        world.kafka.produce(&products, ids(end..end + 5));
        end += 5;
        world.eventually("the work goes on", || seats.iter().all(|seat| seat.offset() == Some(i64::from(end))));
        world.eventually("all tell", || {
            consumers.iter().zip(&warnings).all(|((_, consumer), warning)| consumer.says(&[warning.as_str()]))
        });
    }
    let foreign = Some((2, String::new()));
    world.for_a_while(SHOWN, "all stay as they are", || {
        [&moved, &busy, &meanwhile].map(|group| group.committed(&products)) == [foreign.clone(), None, foreign.clone()]
    });
    for ((name, consumer), warning) in consumers.iter().zip(warnings) {
        assert_eq!(consumer.log_of("warn"), [warning], "{name}");
    }
    // Each name has had each record once: what stands in the group does not count.
    let expected = (0..end).flat_map(|id| [id; 3]).map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>();
    let mut done = handler.payloads();
    done.sort_by_key(|payload| payload[6..payload.len() - 1].parse::<u32>().unwrap());
    assert_eq!(done, expected);
}
