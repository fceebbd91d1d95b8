//! ksync-stream that is killed at random, and the runs that go on, while a delayer and a handler keep a copy.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::slice;
use std::time::{Duration, Instant, SystemTime};

use ksync::database::Dialect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::application_faults::copying;
use crate::moments_stream::Row;
use crate::support::{Application, End, Primary, Process, World, block_on, is_full, primaries};

const ROWS: u32 = 300;
const CHUNK: usize = 5;
/// Of the moments of the plain form.
const SEED: u64 = 6;
/// What a transaction takes is far less than half of it.
const DELAY: Duration = Duration::from_secs(5);

/// A table, its topic, and its copy.
struct Shop {
    primary: Primary,
    copy: Primary,
    topic: String,
    copying: [Process; 2],
}

impl Shop {
    fn open(world: &World, primary: Primary) -> Shop {
        block_on(primary.execute(Application::TABLE));
        block_on(primary.execute("ALTER TABLE products ADD COLUMN changed_ms BIGINT NOT NULL DEFAULT 0"));
        let (topic, copy) = (world.topic_with_delay(&format!("{primary:?}").to_lowercase(), 1), new_copy(world));
        let copying = copying(world, slice::from_ref(&topic), (&primary, &copy), DELAY);
        Shop { primary, copy, topic, copying }
    }

    /// A job on rows that are made for it, which keeps how far it is by this option.
    fn job<'a>(&'a self, world: &'a World, ids: RangeInclusive<u32>, keep: &str) -> Job<'a> {
        let rows: Vec<_> = ids.clone().map(|id| format!("({id}, 0)")).collect();
        block_on(self.primary.execute(&format!("INSERT INTO products (id, price) VALUES {}", rows.join(", "))));
        let now_ms = match self.primary.dialect {
            Dialect::Postgres => "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT)",
            Dialect::MySql => "UNIX_TIMESTAMP(SYSDATE(3)) * 1000",
            Dialect::Sqlite => "CAST(ROUND(unixepoch('subsec') * 1000) AS INTEGER)",
        };
        let (first, last) = (ids.start(), ids.end());
        let rows = format!("--table products --where 'id BETWEEN {first} AND {last}' --chunk-size {CHUNK} {keep}");
        let sql = format!("UPDATE products SET price = price + 1, changed_ms = {now_ms} WHERE id IN (:keys)");
        let source = format!("-t {} --delay {}s --database {}", self.topic, DELAY.as_secs(), self.primary.url);
        Job { world, shop: self, ids, command: format!("{source} {rows} --sql \"{sql}\""), killed_ms: vec![], hits: 0 }
    }
}

/// One job that is killed at random until it is through.
struct Job<'a> {
    world: &'a World,
    shop: &'a Shop,
    ids: RangeInclusive<u32>,
    command: String,
    killed_ms: Vec<i64>,
    /// How many of those that were killed had changed rows.
    hits: usize,
}

impl Job<'_> {
    /// Kills it at most so often.
    fn run(&mut self, kills: usize, random: &mut StdRng) {
        loop {
            let before = self.times();
            let mut stream = self.world.stream(&self.command);
            if self.killed_ms.len() < kills {
                let mut latest = 400;
                if self.killed_ms.len().is_multiple_of(2) {
                    // Where most of the moments are that matter.
                    self.world.eventually("it is at work", || self.times() > before || !stream.is_running());
                    latest = 50;
                }
                let moment = Instant::now() + Duration::from_millis(random.random_range(0..latest));
                self.world.eventually("the moment comes", || Instant::now() >= moment || !stream.is_running());
                if stream.is_running() {
                    stream.signal(Signal::KILL);
                }
            }
            match stream.wait() {
                End::By(Signal::KILL) => {
                    self.killed_ms.push(now_ms());
                    self.hits += usize::from(self.times() > before);
                    self.check_covered();
                }
                // It was done a moment before.
                End::Status(0) => return,
                // The session of the one that was killed is not at its end.
                End::Status(4) => {}
                other => panic!("{other:?}: {:?}", stream.log()),
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let its = format!("id BETWEEN {} AND {}", self.ids.start(), self.ids.end());
        let select = format!("SELECT concat_ws(' ', id, price, changed_ms) FROM products WHERE {its} ORDER BY id");
        Row::all(&self.shop.primary, &select)
    }

    /// How often its rows were changed.
    fn times(&self) -> u32 {
        self.rows().iter().map(|row| row.times).sum()
    }

    /// How many of the kills were before this.
    fn kills_before(&self, ms: i64) -> usize {
        self.killed_ms.partition_point(|killed| *killed < ms)
    }

    /// Each change has a delay message from before it that the same run has sent: those of runs before may be sent on already.
    fn check_covered(&self) {
        let rows = self.rows();
        let delayed = written_ms(self.world, &format!("{}-delay", self.shop.topic));
        for Row { id, changed_ms, .. } in rows.into_iter().filter(|row| row.times > 0) {
            let begun = self.killed_ms[..self.kills_before(changed_ms)].last().copied().unwrap_or(0);
            let written = delayed.get(&id).cloned().unwrap_or_default();
            let is_covered = written.iter().any(|ms| (begun..=changed_ms).contains(ms));
            let about = format!("{:?}: row {id}, changed at {changed_ms}, by a run since {begun}", self.shop.primary);
            assert!(is_covered, "{about}, is not covered: {written:?}");
        }
    }

    fn check(&self, keep: &str) {
        self.check_covered();
        let (rows, kills) = (self.rows(), self.killed_ms.len());
        let about = format!("{:?} {keep}", self.shop.primary);
        assert!(rows.len() == ROWS as usize && rows.iter().all(|row| row.times > 0), "{about}: not all are changed");
        let [told, delayed] = ["", "-delay"].map(|end| written_ms(self.world, &format!("{}{end}", self.shop.topic)));
        // By the number of kills that were before their change.
        let mut untold = vec![0; kills + 1];
        for row in &rows {
            let [told, delayed] = [&told, &delayed].map(|written| written.get(&row.id).cloned().unwrap_or_default());
            if !instant_ms(&told, &delayed).iter().any(|ms| *ms >= row.changed_ms) {
                untold[self.kills_before(row.changed_ms)] += 1;
            }
        }
        assert_eq!(untold.pop(), Some(0), "{about}: without an instant message from a run that came to its end");
        let times = rows.iter().map(|row| row.times as usize).sum::<usize>();
        if keep == "table" {
            assert_eq!(times, rows.len(), "{about}: a row was changed twice");
            assert!(untold.iter().all(|rows| *rows <= CHUNK), "{about}: without instant messages, by kill: {untold:?}");
        } else {
            assert!(times <= rows.len() + kills * CHUNK, "{about}: more than a chunk was done again");
            // The next run does them again.
            assert!(untold.iter().all(|rows| *rows == 0), "{about}: without instant messages, by kill: {untold:?}");
        }
    }
}

/// An empty copy of the table that is [`Application::TABLE`].
pub fn new_copy(world: &World) -> Primary {
    let file = world.file("copy");
    // An empty file is an empty database.
    fs::write(&file, "").unwrap();
    let copy = Primary { dialect: Dialect::Sqlite, url: format!("sqlite:{}", file.display()) };
    block_on(copy.execute(Application::TABLE));
    copy
}

/// Each product with its price.
pub fn prices(database: &Primary) -> Vec<String> {
    block_on(database.texts("SELECT concat_ws(' ', id, price) FROM products ORDER BY id"))
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// When the messages of each row were written.
fn written_ms(world: &World, topic: &str) -> BTreeMap<u32, Vec<i64>> {
    let mut written = BTreeMap::<u32, Vec<i64>>::new();
    for record in world.kafka.records(topic) {
        written.entry(record.key.unwrap().parse().unwrap()).or_default().push(record.timestamp_ms);
    }
    written
}

/// When those of a row's messages were written that cannot be its delay messages, sent on.
fn instant_ms(told: &[i64], delayed: &[i64]) -> Vec<i64> {
    let mut due = delayed.iter().map(|ms| ms + DELAY.as_millis() as i64).peekable();
    told.iter().copied().filter(|told| due.next_if(|due| due <= told).is_none()).collect()
}

#[test]
fn streams_killed_at_random_change_all_rows_each_covered_with_a_table_each_once_and_the_copies_follow() {
    let world = World::new("killed");
    let seed = if is_full() { rand::random() } else { SEED };
    // Shown where it fails.
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let kills = if is_full() { 50 } else { 2 };
    let shops = block_on(primaries("resume_killed")).map(|primary| Shop::open(&world, primary));
    world.eventually("all lead", || {
        shops.iter().flat_map(|shop| &shop.copying).all(|daemon| daemon.says(&["leading from offset 0"]))
    });
    let (mut killed, mut hits) = (0, 0);
    for shop in &shops {
        let mut last = 0;
        for keep in ["file", "table"] {
            let mut left = kills;
            while left > 0 {
                let option = match keep {
                    "file" => format!("--checkpoint {}", world.file("checkpoint").display()),
                    _ => "--checkpoint-table".to_owned(),
                };
                let mut job = shop.job(&world, last + 1..=last + ROWS, &option);
                job.run(left, &mut random);
                job.check(keep);
                last += ROWS;
                left -= job.killed_ms.len();
                (killed, hits) = (killed + job.killed_ms.len(), hits + job.hits);
            }
        }
    }
    assert_eq!(killed, 6 * kills);
    assert!(3 * hits >= killed, "of {killed} that were killed only {hits} had changed rows");
    // What lacks its instant message has its delay message.
    world.within(DELAY + Duration::from_secs(60), "each copy is as its primary", || {
        shops.iter().all(|shop| prices(&shop.copy) == prices(&shop.primary))
    });
}
