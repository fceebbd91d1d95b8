//! ksync-stream --verify with the stores that the handlers of examples/ keep: each planted difference is found and repaired, and
//! nothing else is told, while the table is being written to.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::secondaries::{STORES, Shop, handler};
use crate::support::{End, Kafka, Primary, Process, block_on, is_full, opensearch, value};

const STREAM: &str = env!("CARGO_BIN_EXE_ksync-stream");

/// Long enough for handlers on a busy machine.
const DELAY: &str = "10s";

/// Differences of each kind, and the ids that they are under; a store that may forget is to have none missing.
struct Planted {
    missing: Vec<u32>,
    stale: Vec<u32>,
    surplus: Vec<u32>,
}

impl Planted {
    fn lines(&self) -> Vec<String> {
        let kinds = [("missing", &self.missing), ("stale", &self.stale), ("surplus", &self.surplus)];
        let lines = kinds.iter().flat_map(|(kind, ids)| ids.iter().map(move |id| format!("{id} {kind}")));
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    }

    /// What a run tells at its end.
    fn count(&self) -> String {
        let [missing, stale, surplus] = [&self.missing, &self.stale, &self.surplus].map(Vec::len);
        let all = missing + stale + surplus;
        format!("{all} differences: {missing} missing, {stale} stale, {surplus} surplus")
    }

    /// Past the handlers.
    fn plant(&self, shop: &Shop, store: &str) {
        let row = |id: &u32| json!({"id": id, "name": "planted", "price": -1});
        let put = self.stale.iter().chain(&self.surplus);
        match store {
            "opensearch" => {
                let gone = self.missing.iter().map(|id| format!("{}\n", json!({"delete": {"_id": id.to_string()}})));
                let put = put.map(|id| format!("{}\n{}\n", json!({"index": {"_id": id.to_string()}}), row(id)));
                let url = shop.world.services.get("KSYNC_TEST_OPENSEARCH");
                let body = gone.chain(put).collect::<String>();
                let answer = opensearch(url, &format!("POST /{}/_bulk", shop.table), &body);
                assert_eq!(answer["errors"], json!(false), "{answer}");
            }
            "redis" => {
                let mut redis = shop.connect("redis");
                for (n, id) in put.enumerate() {
                    // What is stale may be that there is no such row, too.
                    let is_gone = n < self.stale.len() && n.is_multiple_of(2);
                    let row = if is_gone { String::new() } else { row(id).to_string().replace('"', "\\\"") };
                    assert!(redis.ask(&format!("HSET {}:{id} row \"{row}\"", shop.table)).starts_with(':'));
                }
            }
            "memcached" => put.for_each(|id| keep(shop, *id, &row(id).to_string())),
            _ => {
                for id in &self.missing {
                    shop.change_copy(&format!("DELETE FROM $ WHERE id = {id}"));
                }
                for id in &self.stale {
                    shop.change_copy(&format!("UPDATE $ SET name = 'planted' WHERE id = {id}"));
                }
                for id in &self.surplus {
                    shop.change_copy(&format!("INSERT INTO $ VALUES ({id}, 'planted', -1)"));
                }
            }
        }
    }
}

/// As an application keeps a row that it has read.
fn keep(shop: &Shop, id: u32, row: &str) {
    let set = format!("set {}:{id} 0 0 {}\r\n{row}", shop.table, row.len());
    assert_eq!(shop.connect("memcached").ask(&set), "STORED");
}

fn verify(shop: &Shop, store: &str, options: &str) -> Process {
    let is_cache = matches!(store, "redis" | "memcached");
    let more = match store {
        "postgres_copy" => "--version-column name,price",
        _ if is_cache => "--cache",
        _ => "",
    };
    let options = format!("{options} {more}");
    let source = format!("-t {} --database '{}' --table {}", shop.topic, shop.primary.url, shop.table);
    let command = handler(&format!("{store}_holds"));
    let script = format!("exec {STREAM} {source} --verify {options} -- {} >{store}.out", command.display());
    shop.start(&shop.world.script(&script), "", &[("KSYNC_DELAY", DELAY)])
}

/// Each of them, as often as it was told.
fn told(shop: &Shop, store: &str) -> Vec<String> {
    let out = fs::read_to_string(shop.world.dir.join(format!("{store}.out"))).unwrap();
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let mut told: Vec<_> = lines.map(|line| format!("{} {}", text(&line, "key"), text(&line, "difference"))).collect();
    told.sort();
    told
}

#[test]
fn what_is_planted_in_a_store_is_found_and_repaired_and_nothing_else_while_the_table_is_written_to() {
    let (rows, planted) = if is_full() { (100_000, 100) } else { (3000, 12) };
    let shop = Shop::open("drift");
    // What JSON may have in several forms.
    shop.change(
        "ALTER TABLE $ ADD at TIMESTAMPTZ DEFAULT now(), ADD cost NUMERIC(30, 12) DEFAULT 1234567890.12345678912, \
         ADD code CHAR(4) DEFAULT 'ab'",
    );
    shop.change(&format!("INSERT INTO $ SELECT n, 'name ' || n, n FROM generate_series(1, {rows}) AS n"));
    let mut consumers: Vec<_> = STORES.iter().map(|store| shop.consume(store, "-q")).collect();
    shop.announce(1..=rows);
    for store in STORES {
        let limit = Duration::from_secs(600);
        shop.world.within(limit, "the store is filled", || shop.offset(store) == Some(i64::from(rows)));
    }
    // Every tenth is left alone by the writer, and so is what is planted there: for each store elsewhere, since what one of them
    // has announced heals all.
    let all = |store: &str| {
        let place = 30 * STORES.iter().position(|other| *other == store).unwrap() as u32;
        let at = |part: u32, count: u32| (1..=count).map(move |n| 120 * n + place + 10 * part);
        let missing = match store {
            "redis" | "memcached" => 0,
            _ => planted / 3,
        };
        let stale = (planted - missing) / 2;
        Planted {
            missing: at(0, missing).collect(),
            stale: at(1, stale).collect(),
            surplus: at(2, planted - missing - stale).map(|id| rows + id).collect(),
        }
    };
    let kept = format!("SELECT to_jsonb(kept)::text FROM {} AS kept WHERE id % 10 = 0 ORDER BY id", shop.table);
    for (id, row) in (10..).step_by(10).zip(block_on(shop.primary.texts(&kept))) {
        keep(&shop, id, &row);
    }
    let run = |options: &str, end, expected: &dyn Fn(&str) -> Option<Planted>| {
        let mut runs = STORES.map(|store| verify(&shop, store, options));
        end_small(&shop, &mut runs);
        for (store, mut run) in STORES.into_iter().zip(runs) {
            assert_eq!(run.wait(), End::Status(end), "{store} {options}");
            let expected = expected(store);
            let lines = expected.as_ref().map(Planted::lines).unwrap_or_default();
            assert_eq!(told(&shop, store), lines, "{store} {options}");
            if let Some(planted) = expected {
                assert!(run.says(&[&planted.count()]), "{store} {options}: {:?}", run.log());
            }
        }
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (primary, kafka) = (&shop.primary, &shop.world.kafka);
        scope.spawn(|| write(primary, kafka, (&shop.table, &shop.topic), rows, &is_over));
        let _over = Over(&is_over);
        run("", 0, &|_| None);
        for store in STORES {
            all(store).plant(&shop, store);
        }
        run("", 1, &|store| Some(all(store)));
        run("--repair", 0, &|store| Some(all(store)));
        run("", 0, &|_| None);
    });
    assert!(consumers.iter_mut().all(Process::is_running));
}

/// Ends the writer, also where a check has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes all rows but every tenth at random, and announces that.
fn write(primary: &Primary, kafka: &Kafka, (table, topic): (&str, &str), rows: u32, is_over: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(7);
    while !is_over.load(Ordering::Relaxed) {
        let id = random.random_range(0..rows / 10) * 10 + random.random_range(1..10);
        let change = match random.random_range(0..4) {
            0 => format!("DELETE FROM {table} WHERE id = {id}"),
            1 => format!("INSERT INTO {table} VALUES ({id}, 'new', 0) ON CONFLICT DO NOTHING"),
            _ => format!("UPDATE {table} SET price = price + 1 WHERE id = {id}"),
        };
        block_on(primary.execute(&change));
        kafka.produce(topic, [value(json!({"id": id}).to_string()).key(id.to_string())]);
        // Nothing is waited for: it is the pace of the application.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for their end; their memory is to stay small.
fn end_small(shop: &Shop, runs: &mut [Process]) {
    let mut most = 0;
    shop.world.within(Duration::from_secs(600), "all is compared", || {
        most = runs.iter().filter_map(Process::memory).fold(most, usize::max);
        !runs.iter_mut().any(Process::is_running)
    });
    assert!(0 < most && most <= 64 << 20, "{most} bytes");
}
