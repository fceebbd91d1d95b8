//! What applications have in Kafka for each change is what the gem kafka_sync 0.1.0 has there for it (research: the gem, run for
//! real), up to the white space of JSON: ksync adds the key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Application, Client, Language, Primary, Record, World, block_on, primaries};

/// A change, and the records that the gem has sent delay messages and instant messages of.
type Case = (&'static str, &'static [u32], &'static [u32]);

const OF_THE_GEM: [Case; 6] = [
    ("create 1 5", &[1], &[1]),
    ("touch 2", &[2], &[2]),
    ("destroy 3", &[3], &[3]),
    ("twice 4", &[4, 4], &[4]),
    ("rollback 5 5", &[5], &[]),
    ("bulk 6 7 8", &[6, 7, 8], &[6, 7, 8]),
];

/// Here delay messages are sent by the commit (design, 6.3): of a record one, and none of what is rolled back.
const IN_RUST: [Case; 2] = [("twice 4", &[4], &[4]), ("rollback 5 5", &[], &[])];

/// Only ActiveRecord and Django have a save of what has not changed.
const UNCHANGED: Case = ("save 2", &[2], &[2]);
/// `update_column` of ActiveRecord calls nobody.
const UNTOLD: Case = ("column 2 5", &[], &[]);

/// Two records in one transaction. In Rust this is tested with its models.
const BOTH: Case = ("both 9 10", &[9, 10], &[9, 10]);

/// What is there in the end of the products that have a price.
fn rows(language: Language) -> Vec<&'static str> {
    match language {
        Language::Ruby => vec!["1 5", "2 5", "4 1", "6 7", "7 7", "8 7", "9 3", "10 3"],
        Language::Rust => vec!["1 5", "4 0", "6 7", "7 7", "8 7"],
        _ => vec!["1 5", "4 1", "6 7", "7 7", "8 7", "9 3", "10 3"],
    }
}

#[test]
fn each_change_of_an_application_is_on_the_wire_as_by_the_gem() {
    let world = World::new("wire-shops");
    let [postgres, mariadb, _] = block_on(primaries("application_wire"));
    let mut shops: Vec<(Language, &Primary)> = Language::ALL.map(|language| (language, &postgres)).into();
    shops.push((Language::Node, &mariadb));
    let topics: Vec<String> = (0..shops.len()).map(|n| world.topic_with_delay(&format!("products-{n}"), 1)).collect();
    let socket = world.file("serve");
    let _stream = world.stream(&format!("-t {} --serve {}", topics.join(" -t "), socket.display()));
    drop(Client::to(&world, &socket));
    for primary in [&postgres, &mariadb] {
        block_on(primary.execute(Application::TABLE));
    }
    // They take long to start.
    let start = |((language, primary), topic): (&(Language, &Primary), &String)| {
        Application::start(&world, *language, &primary.url, topic, &socket)
    };
    let started: Vec<Application> = shops.iter().zip(&topics).map(start).collect();
    for ((mut shop, topic), (language, primary)) in started.into_iter().zip(&topics).zip(shops) {
        shop.wait_for_start(&world);
        block_on(primary.execute("DELETE FROM products"));
        block_on(primary.execute("INSERT INTO products (id) VALUES (2), (3), (4), (5), (6), (7), (8), (9), (10)"));
        let in_rust = |case: Case| IN_RUST.into_iter().find(|other| language == Language::Rust && other.0 == case.0);
        let mut cases: Vec<Case> = OF_THE_GEM.iter().map(|case| in_rust(*case).unwrap_or(*case)).collect();
        match language {
            Language::Ruby => cases.splice(1..1, [UNCHANGED, UNTOLD]).for_each(drop),
            Language::Django => cases.insert(1, UNCHANGED),
            _ => {}
        }
        if language != Language::Rust {
            cases.push(BOTH);
        }
        let mut wire = Wire { world: &world, topic, seen: (0, 0) };
        for (command, delayed, instant) in cases {
            shop.does(&world, command);
            wire.wait_for(delayed.len());
            let payloads = |ids: &[u32]| ids.iter().map(|id| (id.to_string(), format!("{{\"id\":{id}}}"))).collect();
            let told: [Vec<Said>; 2] = [payloads(delayed), payloads(instant)];
            assert_eq!(wire.said(), told, "{command}: {language:?} {primary:?}");
        }
        if language == Language::Ruby {
            // Values as the gem writes them.
            shop.does(&world, "detailed 2");
            let payload = r#"{"id":2,"at":"2020-09-13 12:26:40 UTC","on":"2020-01-02","cost":"1.5","kind":"new","no":null,"name":"größe"}"#;
            let told = vec![("2".to_owned(), payload.to_owned())];
            assert_eq!(wire.said(), [told.clone(), told]);
        }
        let found = "SELECT CONCAT(id, ' ', price) FROM products WHERE price IS NOT NULL ORDER BY id";
        assert_eq!(block_on(primary.texts(found)), rows(language), "{language:?} {primary:?}");
    }
}

/// A key and a payload.
type Said = (String, String);

/// What has come into a topic and its delay topic.
struct Wire<'a> {
    world: &'a World,
    topic: &'a str,
    seen: (usize, usize),
}

impl Wire<'_> {
    /// Until so many delay messages have come: who rolls back does not wait for Kafka.
    fn wait_for(&self, delayed: usize) {
        let delay_topic = format!("{}-delay", self.topic);
        let count = i64::try_from(self.seen.0 + delayed).unwrap();
        self.world.eventually("the delay messages are there", || self.world.kafka.count(&delay_topic) >= count);
    }

    /// The delay messages and the instant messages that have come since, these after those.
    fn said(&mut self) -> [Vec<Said>; 2] {
        let new = |topic: &str, seen: &mut usize| {
            let records = self.world.kafka.records(topic).split_off(*seen);
            *seen += records.len();
            assert!(records.iter().all(|record| record.headers.is_empty()), "{records:?}");
            records
        };
        let delayed = new(&format!("{}-delay", self.topic), &mut self.seen.0);
        let instant = new(self.topic, &mut self.seen.1);
        let last = delayed.iter().map(|record| record.timestamp_ms).max();
        assert!(
            instant.iter().all(|record| last.is_some_and(|last| record.timestamp_ms >= last)),
            "{instant:?} {last:?}"
        );
        let said = |records: Vec<Record>, value: fn(&str) -> String| {
            records.into_iter().map(|record| (record.key.unwrap(), value(&record.value.unwrap()))).collect()
        };
        [said(delayed, payload_of), said(instant, compact)]
    }
}

/// Of a delay message, which says besides when it was made, in seconds since 1970.
fn payload_of(delay_message: &str) -> String {
    let text = compact(delay_message);
    let members = text.strip_prefix("{\"payload\":").and_then(|rest| rest.strip_suffix('}'));
    let (payload, created_at) = members.and_then(|members| members.rsplit_once(",\"created_at\":")).unwrap();
    let (seconds, fraction) = created_at.split_once('.').unwrap();
    assert!([seconds, fraction].iter().all(|digits| digits.bytes().all(|b| b.is_ascii_digit())), "{text}");
    let made = UNIX_EPOCH + Duration::from_secs(seconds.parse().unwrap());
    assert!(SystemTime::now().duration_since(made).unwrap() < Duration::from_secs(600), "{text}");
    payload.to_owned()
}

/// Without the white space between tokens.
fn compact(json: &str) -> String {
    let (mut is_text, mut is_escaped) = (false, false);
    let is_kept = |c: &char| {
        let is_end = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_text ^= is_end;
        is_text || !c.is_ascii_whitespace()
    };
    json.chars().filter(is_kept).collect()
}
