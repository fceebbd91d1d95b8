//! Applications, and the ksync-stream that serves them, are killed between any two steps of a change: it is announced if it was
//! committed, at the latest by its delay message.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ksync::database::Dialect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{
    Application, Client, Hold, Language, Moment, Primary, Process, World, block_on, is_full, primaries,
};

/// What a transaction takes that is held, from the last delay message to its commit, is far less than half of it.
pub const DELAY: Duration = Duration::from_secs(20);
/// What a long transaction takes, and how little a delay message holds beside that.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(3);
/// The changes are always the same.
const SEED: u64 = 13;

/// What has become of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing was committed, nothing was sent.
    Nothing,
    /// Nothing was committed; its delay message does no harm.
    Covered,
    /// Committed, and announced by its delay message alone.
    Healed,
    /// Committed, and announced by an instant message, too.
    Announced,
}

/// What becomes of what is held when somebody was killed.
#[derive(Clone, Copy, Debug)]
enum Held {
    Lost,
    GoesOn,
}

/// The application is killed: at this moment, or else when it has done all.
type Killed = (Option<Moment>, Held, End);

const KILLED: [Killed; 5] = [
    (Some(Moment::Changed), Held::Lost, End::Nothing),
    (Some(Moment::Commit), Held::Lost, End::Covered),
    (Some(Moment::Commit), Held::GoesOn, End::Healed),
    (Some(Moment::Committed), Held::Lost, End::Healed),
    (None, Held::GoesOn, End::Announced),
];

#[derive(Clone, Copy, Debug)]
enum Side {
    /// Until the application has come to an end with its change.
    Away,
    /// Started again before the application goes on.
    Again,
}

/// ksync-stream is killed at this moment. What cannot be covered is not committed, what is committed does not fail.
type Bereft = (Moment, Side, End);

const BEREFT: [Bereft; 6] = [
    (Moment::Changed, Side::Away, End::Nothing),
    (Moment::Commit, Side::Away, End::Healed),
    (Moment::Committed, Side::Away, End::Healed),
    (Moment::Changed, Side::Again, End::Announced),
    (Moment::Committed, Side::Again, End::Announced),
    (Moment::Commit, Side::Again, End::Announced),
];

/// A change of one product, and what has become of it.
#[derive(Debug)]
struct Change {
    id: u32,
    command: String,
    /// The price; none where there is no such product.
    before: Option<u32>,
    after: Option<u32>,
    end: End,
}

impl Change {
    fn new(id: u32, rng: &mut StdRng) -> Change {
        let (old, new) = (rng.random_range(1..1000), rng.random_range(1..1000));
        let (command, before, after) = match rng.random_range(0..3) {
            0 => (format!("create {id} {new}"), None, Some(new)),
            1 => (format!("update {id} {new}"), Some(old), Some(new)),
            _ => (format!("destroy {id}"), Some(old), None),
        };
        Change { id, command, before, after, end: End::Nothing }
    }

    fn now(&self) -> Option<(u32, u32)> {
        let is_committed = matches!(self.end, End::Healed | End::Announced);
        Some((self.id, if is_committed { self.after? } else { self.before? }))
    }
}

#[test]
fn of_what_was_committed_nothing_is_lost_whoever_is_killed_between_any_two_steps_of_a_change() {
    // Each case at least once.
    let rounds = if is_full() { 100 } else { BEREFT.len().max(KILLED.len()) as u32 };
    let world = World::new("shops-killed");
    let [postgres, _, secondary] = block_on(primaries("application_faults"));
    let topics = Language::ALL.map(|language| world.topic_with_delay(&language.name(), 1));
    let mut rng = StdRng::seed_from_u64(SEED);
    // Two of each language in each round.
    let mut changes: Vec<Change> = (1..=rounds * 2 * topics.len() as u32).map(|id| Change::new(id, &mut rng)).collect();
    for primary in [&postgres, &secondary] {
        let before: Vec<_> = changes.iter().filter_map(Change::now).map(|row| format!("{row:?}")).collect();
        block_on(primary.execute(Application::TABLE));
        block_on(primary.execute(&format!("INSERT INTO products (id, price) VALUES {}", before.join(", "))));
    }
    let _copying = copying(&world, &topics, (&postgres, &secondary), DELAY);
    let mut stage = Stage::new(&world, &topics, &postgres, DELAY);

    let mut next = changes.iter_mut();
    for round in 0..rounds as usize {
        // All of a round at once: they take long to start.
        let shops = Language::ALL.map(|language| stage.start(language));
        for mut shop in shops {
            shop.wait_for_start(&world);
            let (first, second) = (next.next().unwrap(), next.next().unwrap());
            if shop.language != Language::Rust {
                stage.bereave(&mut shop, first, BEREFT[round % BEREFT.len()]);
            }
            // Half of them together with their ksync-stream.
            let alone = shop.language == Language::Rust || (round + shop.language as usize).is_multiple_of(2);
            stage.kill(shop, second, KILLED[round % KILLED.len()], alone);
        }
    }

    let killed = Instant::now();
    let expected: BTreeMap<u32, u32> = changes.iter().filter_map(Change::now).collect();
    world.eventually("the primary is as it was left", || rows(&postgres) == expected);
    let limit = (DELAY + Duration::from_secs(30)).saturating_sub(killed.elapsed());
    world.within(limit, "the secondary is as the primary", || rows(&secondary) == expected);
    for (n, topic) in topics.iter().enumerate() {
        are_announced(&world, topic, changes.chunks(2).skip(n).step_by(topics.len()).flatten());
    }
}

/// Its delay messages are sent on before its commit, and the ksync-stream that had sent them again is gone: only the application
/// knows of them then. In Rust there is no other process.
#[test]
fn a_transaction_longer_than_the_delay_is_announced_whoever_dies_in_it_and_after_its_commit() {
    let rounds = if is_full() { 10 } else { 1 };
    let languages = [Language::Ruby, Language::SqlAlchemy, Language::Django, Language::Node];
    let world = World::new("shops-long");
    let [postgres, _, secondary] = block_on(primaries("application_long"));
    let topics = languages.map(|language| world.topic_with_delay(&language.name(), 1));
    let ids: Vec<u32> = (1..=rounds * topics.len() as u32).collect();
    for primary in [&postgres, &secondary] {
        let before: Vec<_> = ids.iter().map(|id| format!("({id}, 1)")).collect();
        block_on(primary.execute(Application::TABLE));
        block_on(primary.execute(&format!("INSERT INTO products (id, price) VALUES {}", before.join(", "))));
    }
    let _copying = copying(&world, &topics, (&postgres, &secondary), SHORT);
    let mut stage = Stage::new(&world, &topics, &postgres, SHORT);

    for ids in ids.chunks(topics.len()) {
        let mut shops = languages.map(|language| stage.start(language));
        for (shop, id) in shops.iter_mut().zip(ids) {
            shop.wait_for_start(&world);
            stage.holds[shop.language as usize].at(Moment::Committed);
            shop.tell(&format!("long {id} 2 {}", LONG.as_secs()));
        }
        for (topic, id) in topics.iter().zip(ids) {
            let delay_topic = format!("{topic}-delay");
            world.eventually("its delay message is there", || counts(&world, &delay_topic).contains_key(id));
        }
        stage.stream.kill();
        stage.stream = serving(&world, &topics, &stage.socket, SHORT);
        for mut shop in shops {
            let hold = &stage.holds[shop.language as usize];
            let what = format!("{:?} has committed", shop.language);
            world.within(LONG + Duration::from_secs(30), &what, || hold.is_held());
            shop.process.kill();
            hold.lose();
        }
    }

    let expected: BTreeMap<u32, u32> = ids.iter().map(|id| (*id, 2)).collect();
    world.eventually("the primary is as it was left", || rows(&postgres) == expected);
    let limit = SHORT + Duration::from_secs(30);
    world.within(limit, "the secondary is as the primary", || rows(&secondary) == expected);
}

/// Each as it has ended.
fn are_announced<'a>(world: &World, topic: &str, changes: impl Iterator<Item = &'a Change>) {
    let delay_topic = format!("{topic}-delay");
    let seat = world.seat(&delay_topic, 0, "delayer");
    world.eventually("all are sent on", || seat.offset() == Some(world.kafka.count(&delay_topic)));
    let (delayed, all) = (counts(world, &delay_topic), counts(world, topic));
    for change in changes {
        let [delayed, all] = [&delayed, &all].map(|counts| counts.get(&change.id).copied().unwrap_or_default());
        // Each delay message has come into the topic; what is there besides were instant messages.
        let instant = all - delayed;
        let is_so = match change.end {
            End::Nothing => (delayed, instant) == (0, 0),
            End::Covered | End::Healed => delayed > 0 && instant == 0,
            End::Announced => delayed > 0 && instant == 1,
        };
        assert!(is_so, "{topic}: {change:?} has {delayed} delay messages and {instant} instant messages");
    }
}

/// A delayer, and a consumer that keeps the secondary.
pub fn copying(
    world: &World,
    topics: &[String],
    (primary, secondary): (&Primary, &Primary),
    delay: Duration,
) -> [Process; 2] {
    let topics = topics.join(" -t ");
    let file = |database: &Primary| database.url.strip_prefix("sqlite:").unwrap().to_owned();
    let (name, variable, place) = match primary.dialect {
        Dialect::Sqlite => ("products.py", "PRIMARY_DB", file(primary)),
        Dialect::Postgres | Dialect::MySql => ("products_of_server.py", "DATABASE_URL", primary.url.clone()),
    };
    let handler = format!("{}/examples/handlers/{name}", env!("CARGO_MANIFEST_DIR"));
    let copy = file(secondary);
    let environment = [(variable, place.as_str()), ("SECONDARY_DB", copy.as_str())];
    let consume = format!("-t {topics} -n copy --session-timeout 10s -- {handler}");
    [
        world.delayer(&format!("-t {topics} --session-timeout 10s --delay {}s", delay.as_secs())),
        world.start(env!("CARGO_BIN_EXE_ksync-consume"), &consume, &environment),
    ]
}

/// Each product's price.
fn rows(primary: &Primary) -> BTreeMap<u32, u32> {
    let rows = block_on(primary.texts("SELECT id || ' ' || price FROM products"));
    let pair = |row: &String| row.split_once(' ').map(|(id, price)| (id.parse().unwrap(), price.parse().unwrap()));
    rows.iter().map(|row| pair(row).unwrap()).collect()
}

/// How many messages there are of each product.
fn counts(world: &World, topic: &str) -> BTreeMap<u32, i64> {
    let mut counts = BTreeMap::new();
    for record in world.kafka.records(topic) {
        *counts.entry(record.key.unwrap().parse().unwrap()).or_default() += 1;
    }
    counts
}

/// What the applications have around them. Each has a topic, and a way to the database.
struct Stage<'a> {
    world: &'a World,
    topics: &'a [String],
    url: String,
    /// Where Postgres is.
    server: String,
    holds: Vec<Hold>,
    socket: PathBuf,
    delay: Duration,
    stream: Process,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World, topics: &'a [String], primary: &Primary, delay: Duration) -> Stage<'a> {
        let url = primary.url.clone();
        let server = url.strip_prefix("postgres://ksync@").unwrap().split_once('/').unwrap().0.to_owned();
        let holds = topics.iter().map(|_| Hold::before(&server)).collect();
        let socket = world.file("serve");
        let stream = serving(world, topics, &socket, delay);
        Stage { world, topics, url, server, holds, socket, delay, stream }
    }

    fn start(&self, language: Language) -> Application {
        let url = self.url.replace(&self.server, &self.holds[language as usize].address);
        Application::start(self.world, language, &url, &self.topics[language as usize], &self.socket)
    }

    /// Kills the ksync-stream of an application in the middle of a change.
    fn bereave(&mut self, shop: &mut Application, change: &mut Change, (at, side, end): Bereft) {
        self.hold(shop, change, at);
        change.end = end;
        self.stream.kill();
        if let Side::Again = side {
            self.stream = serving(self.world, self.topics, &self.socket, self.delay);
        }
        self.holds[shop.language as usize].let_go();
        let what = format!("{:?} comes to an end with {change:?}, {at:?} {side:?}", shop.language);
        self.world.eventually(&what, || shop.has_done(&change.command).is_some());
        let log = shop.process.log();
        assert_eq!(shop.has_done(&change.command), Some(end != End::Nothing), "{what}: {log:?}");
        if let Side::Away = side {
            self.stream = serving(self.world, self.topics, &self.socket, self.delay);
        }
    }

    /// Kills an application in the middle of a change, or right after it.
    fn kill(&mut self, mut shop: Application, change: &mut Change, (at, held, end): Killed, alone: bool) {
        match at {
            Some(moment) => self.hold(&mut shop, change, moment),
            None => shop.does(self.world, &change.command),
        }
        change.end = end;
        shop.process.kill();
        if !alone {
            self.stream.kill();
        }
        let hold = &self.holds[shop.language as usize];
        match held {
            Held::Lost => hold.lose(),
            Held::GoesOn => hold.let_go(),
        }
        if !alone {
            self.stream = serving(self.world, self.topics, &self.socket, self.delay);
        }
    }

    /// Has it begin with a change, up to that moment.
    fn hold(&self, shop: &mut Application, change: &Change, moment: Moment) {
        let (hold, topic) = (&self.holds[shop.language as usize], &self.topics[shop.language as usize]);
        hold.at(moment);
        shop.tell(&change.command);
        let what = format!("{:?} has come to {moment:?} of {}", shop.language, change.command);
        self.world.eventually(&what, || hold.is_held());
        let is_covered = counts(self.world, &format!("{topic}-delay")).contains_key(&change.id);
        assert_eq!(is_covered, moment != Moment::Changed, "{what}");
    }
}

/// Returns when it serves.
fn serving(world: &World, topics: &[String], socket: &Path, delay: Duration) -> Process {
    let options = format!("--delay {}s --serve {}", delay.as_secs(), socket.display());
    let stream = world.stream(&format!("-t {} {options}", topics.join(" -t ")));
    drop(Client::to(world, socket));
    stream
}
