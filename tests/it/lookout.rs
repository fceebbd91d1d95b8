//! What threatens the partitions that a process leads, told while there is time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ksync::election::Seat;
use ksync::kafka::{Admin, Check, Cluster, Pair};
use ksync::lead::Lookout;
use ksync::topic::{Name, Offset, Topic};

use crate::support::{Message, World, block_on, value};

/// A record that was written so long ago, by its writer's clock.
fn ago(minutes: i64) -> Message {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    Message { timestamp_ms: Some(now - minutes * 60_000), ..value("1") }
}

/// Looks at a partition of the topic, or of its delay topic where there is a delay, whose offset stands somewhere; what it tells
/// then.
fn lookout(world: &World, topic: &str, delay: Option<Duration>) -> impl FnMut(i64) -> Vec<String> {
    let cluster = Cluster { bootstrap: world.services.get("KSYNC_BOOTSTRAP_SERVER").to_owned(), properties: vec![] };
    let topic: Topic = topic.parse().unwrap();
    let delay = delay.map(|delay| (topic.delay().unwrap(), delay));
    let seat = match &delay {
        Some((delay_topic, _)) => Seat { partition: delay_topic.partition(0), name: Name::delayer() },
        None => Seat { partition: topic.partition(0), name: "indexer".parse().unwrap() },
    };
    let admin = Admin::new(&cluster).unwrap();
    let check = block_on(Check::start(&admin, vec![Pair { topic, delay }], vec![])).unwrap();
    let mut lookout = Lookout::new(check, &cluster).unwrap();
    move |offset| block_on(lookout.look(&BTreeMap::from([(seat.clone(), Offset(offset))])))
}

/// What it tells at the first look that tells something: one that no broker answers in time changes nothing.
fn told(look: &mut impl FnMut(i64) -> Vec<String>, offset: i64) -> Vec<String> {
    (0..20).map(|_| look(offset)).find(|told| !told.is_empty()).unwrap_or_default()
}

#[test]
fn a_record_that_nobody_has_done_is_told_when_half_of_its_time_is_over() {
    let world = World::new("half");
    let products = world.topic("products", 1);
    world.kafka.set(&products, &[("retention.ms", "3600000")]);
    world.kafka.produce(&products, [ago(40), ago(31), ago(20)]);
    let mut look = lookout(&world, &products, None);
    let first = told(&mut look, 0);
    let expected = format!(
        "{products}/0 as indexer: what comes at offset 0 is older than 30m, and topic {products} deletes what is older than 1h, \
         done or not; let it keep more, if that may take longer: mend it with: kafka-configs.sh --bootstrap-server {} --alter \
         --topic {products} --add-config retention.ms=7200000",
        world.services.get("KSYNC_BOOTSTRAP_SERVER")
    );
    assert_eq!(first, [expected]);
    assert_eq!(look(0), [""; 0], "once");
    assert_eq!(look(2), [""; 0], "it is younger");
    assert_eq!(told(&mut look, 1).len(), 1, "it begins anew");
    assert_eq!(look(3), [""; 0], "all is done");
}

#[test]
fn where_all_that_is_left_is_old_it_is_told_too_by_the_process_itself() {
    let world = World::new("old");
    let products = world.topic("products", 1);
    world.kafka.set(&products, &[("retention.ms", "3600000")]);
    world.kafka.produce(&products, [ago(40)]);
    let handler = world.handler("exit 1");
    let consumer = world.consume(&format!("-t {products} -n indexer -- {handler}"));
    world.eventually("it is told", || consumer.says(&["warn: ", "what comes at offset 0 is older than 30m"]));
}

#[test]
fn in_a_delay_topic_it_is_half_of_the_time_after_the_delay_and_the_delayer_tells_it() {
    let world = World::new("half-delayed");
    // By the clock of their writer.
    let settings = [("retention.ms", "3600000"), ("message.timestamp.type", "CreateTime")];
    let products = world.pair("products", [&[], &settings]);
    let delay_topic = format!("{products}-delay");
    // None of them is a delay message, so that the delayer halts at the first one.
    world.kafka.produce(&delay_topic, [ago(41), ago(35), ago(20)]);
    let mut look = lookout(&world, &products, Some(Duration::from_secs(20 * 60)));
    let expected =
        format!("{delay_topic}/0 as delayer: what comes at offset 0 is older than 40m, and topic {delay_topic}");
    let first = told(&mut look, 0);
    assert!(first.len() == 1 && first[0].starts_with(&expected), "{first:?}");
    assert_eq!(look(1), [""; 0], "it is younger");
    let delayer = world.delayer(&format!("-t {products} --delay 20m"));
    world.eventually("it is told", || delayer.says(&["warn: ", &expected]));
}

#[test]
fn a_transaction_that_nobody_ends_is_told() {
    let world = World::new("unended");
    let products = world.topic("products", 1);
    world.kafka.produce(&products, [value("1")]);
    let mut look = lookout(&world, &products, None);
    assert_eq!(look(1), [""; 0], "nothing is to be done");
    let open = world.kafka.transaction(&products, [value("2"), value("3")]);
    world.kafka.produce(&products, [value("4")]);
    assert_eq!(look(1), [""; 0], "it may have begun just now");
    assert_eq!([look(0), look(0)], [[""; 0]; 2], "what comes next can be read");
    assert_eq!(look(1), [""; 0], "it may have got there just now");
    let expected = format!(
        "{products}/0 as indexer: a transaction that is not over holds back what comes at offset 1, and all that was written \
         after it, up to offset 4: if its writer is gone, kafka-transactions.sh finds it (find-hanging) and ends it (abort)"
    );
    assert_eq!(told(&mut look, 1), [expected]);
    assert_eq!(look(1), [""; 0], "once");
    open.commit();
    world.eventually("it is over", || world.kafka.log(&products, 0).1 == 5);
    assert_eq!([look(1), look(1)], [[""; 0]; 2]);
}
