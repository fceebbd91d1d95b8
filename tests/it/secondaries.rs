//! The handlers of examples/handlers for real stores, with these stores: what these end up with, also if they were
//! away, and how the handlers are set up.

use std::fs;
use std::path::{Path, PathBuf};

use ksync::database::Dialect;
use serde_json::{Value, json};

use crate::readme::document;
use crate::support::{End, Hole, Lost, Message, Primary, Process, Store, World, block_on, opensearch, value};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
pub const CONSUME: &str = env!("CARGO_BIN_EXE_ksync-consume");
pub const STORES: [&str; 4] = ["opensearch", "redis", "memcached", "postgres_copy"];

/// A table, its topic, and its copies in all stores.
pub struct Shop {
    pub world: World,
    pub primary: Primary,
    pub copy: Primary,
    pub table: String,
    pub topic: String,
}

impl Shop {
    pub fn open(test: &str) -> Shop {
        let world = World::with_stores(test);
        let (topic, table) = (world.topic("products", 1), world.id.replace('-', "_"));
        let root = Primary { dialect: Dialect::Postgres, url: world.services.get("KSYNC_TEST_POSTGRES").to_owned() };
        let [primary, copy] = ["primary", "copy"].map(|name| {
            let database = format!("ksync_{}_{name}", test.replace('-', "_"));
            block_on(root.execute(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")));
            block_on(root.execute(&format!("CREATE DATABASE {database}")));
            let url = format!("{}/{database}", root.url.rsplit_once('/').unwrap().0);
            let made = Primary { dialect: Dialect::Postgres, url };
            block_on(made.execute(&format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")));
            made
        });
        let handler = fs::read_to_string(handler("postgres_copy")).unwrap();
        block_on(copy.execute(handler.lines().find(|line| line.contains("CREATE TABLE")).unwrap()));
        let shop = Shop { world, primary, copy, table, topic };
        // As the document says it.
        let handlers = document("docs/handlers.md");
        let settings = handlers.split_once("localhost:9200/products -H").unwrap().1.split('\'').nth(3).unwrap();
        shop.search("PUT", "", settings);
        shop
    }

    /// Changes the primary; `$` stands for the table.
    pub fn change(&self, sql: &str) {
        block_on(self.primary.execute(&sql.replace('$', &self.table)));
    }

    /// The same of the copy in the other Postgres.
    pub fn change_copy(&self, sql: &str) {
        block_on(self.copy.execute(&sql.replace('$', &self.table)));
    }

    pub fn announce(&self, ids: impl IntoIterator<Item = u32>) {
        self.world
            .kafka
            .produce(&self.topic, ids.into_iter().map(|id| value(json!({"id": id}).to_string()).key(id.to_string())));
    }

    /// Where a store is, as its handler's variable has it.
    fn place(&self, store: &str) -> (&'static str, String) {
        let server = |name| self.world.services.get(name).to_owned();
        match store {
            "opensearch" => ("OPENSEARCH_URL", server("KSYNC_TEST_OPENSEARCH")),
            "redis" => ("REDIS_URL", format!("redis://{}", server("KSYNC_TEST_REDIS"))),
            "memcached" => ("MEMCACHED", server("KSYNC_TEST_MEMCACHED")),
            _ => ("COPY_URL", self.copy.url.clone()),
        }
    }

    /// A program with what the handlers have to know in its environment; `more` beats that.
    pub fn start(&self, program: &str, arguments: &str, more: &[(&str, &str)]) -> Process {
        let places = STORES.map(|store| self.place(store));
        let mut environment = vec![("DATABASE_URL", self.primary.url.as_str()), ("TABLE", &self.table)];
        environment.extend(places.iter().map(|(name, place)| (*name, place.as_str())));
        environment.extend(more);
        self.world.start(program, arguments, &environment)
    }

    pub fn consume(&self, store: &str, options: &str) -> Process {
        self.start(CONSUME, &format!("-t {} -n {store} {options} -- {}", self.topic, handler(store).display()), &[])
    }

    pub fn search(&self, method: &str, path: &str, body: &str) -> Value {
        opensearch(self.world.services.get("KSYNC_TEST_OPENSEARCH"), &format!("{method} /{}{path}", self.table), body)
    }

    pub fn connect(&self, store: &str) -> Store {
        Store::at(self.place(store).1.trim_start_matches("redis://"))
    }

    pub fn rows(&self, of: &Primary) -> Vec<Value> {
        let rows =
            block_on(of.texts(&format!("SELECT to_jsonb(found)::text FROM {} AS found ORDER BY id", self.table)));
        rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
    }

    /// The rows that a store has, by their ids, of which the highest is `last`; memcached has none.
    pub fn stored(&self, store: &str, last: u32) -> Vec<Value> {
        match store {
            "opensearch" => {
                self.search("POST", "/_refresh", "");
                let query = json!({"size": last, "sort": "id"});
                let found = self.search("POST", "/_search", &query.to_string());
                found["hits"]["hits"].as_array().unwrap().iter().map(|hit| hit["_source"].clone()).collect()
            }
            "redis" => {
                let mut redis = self.connect("redis");
                let row = |id| redis.field(&format!("{}:{id}", self.table), "row").filter(|row| !row.is_empty());
                (1..=last).filter_map(row).map(|row| serde_json::from_str(&row).unwrap()).collect()
            }
            _ => self.rows(&self.copy),
        }
    }

    /// What memcached has, by the ids up to `last`.
    fn cached(&self, last: u32) -> Vec<u32> {
        let mut memcached = self.connect("memcached");
        let mut has = |id: &u32| {
            let has = memcached.ask(&format!("get {}:{id}", self.table)) != "END";
            has && [memcached.line(), memcached.line()] == ["old", "END"]
        };
        (1..=last).filter(|id| has(id)).collect()
    }

    fn cache(&self, ids: impl IntoIterator<Item = u32>) {
        let mut memcached = self.connect("memcached");
        for id in ids {
            assert_eq!(memcached.ask(&format!("set {}:{id} 0 0 3\r\nold", self.table)), "STORED");
        }
    }

    pub fn offset(&self, store: &str) -> Option<i64> {
        self.world.seat(&self.topic, 0, store).offset()
    }
}

pub fn handler(store: &str) -> PathBuf {
    Path::new(PROJECT).join(format!("examples/handlers/{store}.py"))
}

#[test]
fn each_store_ends_up_as_the_table_is_by_the_commands_of_the_documents() {
    let shop = Shop::open("secondaries");
    let handlers = document("docs/handlers.md");
    let run = |store: &&str| {
        let line = handlers.lines().find(|line| line.ends_with(&format!("-- examples/handlers/{store}.py"))).unwrap();
        let (variable, command) = line.split_once(' ').unwrap();
        assert_eq!(variable.split_once('=').unwrap().0, shop.place(store).0);
        let command = command.replace("ksync-consume -t products", &format!("{CONSUME} -t {} -e", shop.topic));
        shop.start(&shop.world.script(&format!("cd {PROJECT}\nexec {command}")), "", &[])
    };
    let update = || {
        for (store, mut consumer) in STORES.iter().map(|store| (store, run(store))).collect::<Vec<_>>() {
            assert_eq!(consumer.wait(), End::Status(0), "{store}");
        }
    };
    let name = r#"CASE WHEN n % 3 > 0 THEN E'it''s \\ "é" \n {} :n ' || n END"#;
    shop.change(&format!("INSERT INTO $ SELECT n, {name}, n FROM generate_series(1, 1100) AS n"));
    shop.cache(1..=1150);
    shop.announce(1..=1100);
    update();
    assert_eq!(shop.rows(&shop.primary).len(), 1100);
    for store in ["opensearch", "redis", "postgres_copy"] {
        assert_eq!(shop.stored(store, 1150), shop.rows(&shop.primary), "{store}");
    }
    assert_eq!(shop.cached(1150), (1101..=1150).collect::<Vec<_>>());

    shop.change("UPDATE $ SET name = 'new', price = NULL WHERE id <= 300");
    shop.change("DELETE FROM $ WHERE id BETWEEN 301 AND 400");
    shop.change("INSERT INTO $ SELECT n, 'more', n FROM generate_series(1101, 1150) AS n");
    shop.cache(1..=1150);
    shop.announce((1..=350).chain(1101..=1150));
    let tombstone = |id: u32| Message { key: Some(id.to_string().into_bytes()), ..Message::default() };
    shop.world.kafka.produce(&shop.topic, (351..=400).map(tombstone));
    update();
    assert_eq!(shop.rows(&shop.primary).len(), 1050);
    for store in ["opensearch", "redis", "postgres_copy"] {
        assert_eq!(shop.stored(store, 1150), shop.rows(&shop.primary), "{store}");
    }
    assert_eq!(shop.cached(1150), (401..=1100).collect::<Vec<_>>());
}

#[test]
fn a_store_that_is_away_gets_what_it_has_missed() {
    let shop = Shop::open("secondaries-away");
    let consumers = STORES.map(|store| {
        let (variable, place) = shop.place(store);
        let address = place.rsplit_once('@').map_or(&*place, |(_, rest)| rest);
        let address = address.rsplit_once("//").map_or(address, |(_, rest)| rest).split('/').next().unwrap();
        let hole = Hole::before(address);
        let place = place.replace(address, &hole.address);
        let command = format!("-t {} -n {store} --retry-pause 50ms -- {}", shop.topic, handler(store).display());
        (store, hole, shop.start(CONSUME, &command, &[(variable, &place)]))
    });
    let is_done = |offset, rows: &[Value]| {
        for (store, ..) in &consumers {
            shop.world.eventually("all is done", || shop.offset(store) == Some(offset));
            match *store {
                "memcached" => assert_eq!(shop.cached(8), [0; 0]),
                _ => assert_eq!(shop.stored(store, 8), rows, "{store}"),
            }
        }
    };
    shop.change("INSERT INTO $ VALUES (7, 'old', 7), (8, 'old', 8)");
    shop.announce([7, 8]);
    is_done(2, &shop.rows(&shop.primary));

    consumers.iter().for_each(|(_, hole, _)| hole.lose(Lost::New));
    shop.cache([7, 8]);
    shop.change("UPDATE $ SET name = 'new' WHERE id = 7");
    shop.change("DELETE FROM $ WHERE id = 8");
    shop.announce([7, 8]);
    for (store, _, consumer) in &consumers {
        shop.world.eventually("the batch comes again", || consumer.says(&["attempt 2: exit status 75"]));
        assert_eq!(shop.offset(store), Some(2), "{store}");
    }
    consumers.iter().for_each(|(_, hole, _)| hole.lose(Lost::Nothing));
    is_done(4, &[json!({"id": 7, "name": "new", "price": 7})]);
}

#[test]
fn redis_gets_its_rows_into_the_database_of_its_url() {
    let shop = Shop::open("secondaries-database");
    shop.change("INSERT INTO $ VALUES (7, 'a', 1)");
    shop.announce([7]);
    let (url, handler) = (format!("{}/1", shop.place("redis").1), handler("redis"));
    let command = format!("-t {} -n redis -e -- {}", shop.topic, handler.display());
    assert_eq!(shop.start(CONSUME, &command, &[("REDIS_URL", &url)]).wait(), End::Status(0));
    let (mut redis, key) = (shop.connect("redis"), format!("{}:7", shop.table));
    assert_eq!(redis.field(&key, "row"), None);
    assert_eq!(redis.ask("SELECT 1"), "+OK");
    assert_eq!(redis.field(&key, "row").as_deref(), Some(r#"{"id": 7, "name": "a", "price": 1}"#));
}

#[test]
fn what_is_misconfigured_ends_the_consumer_and_is_said() {
    let shop = Shop::open("secondaries-misconfigured");
    shop.announce([7]);
    let (primary, redis) = (shop.primary.url.as_str(), shop.place("redis").1);
    for (store, variable, place, told) in [
        ("redis", "DATABASE_URL", "", "DATABASE_URL is not set"),
        ("postgres_copy", "COPY_URL", "", "COPY_URL is not set"),
        ("redis", "DATABASE_URL", format!("{primary}_none").as_str(), "does not exist"),
        ("redis", "DATABASE_URL", format!("{primary}?sslmode=require").as_str(), "does not support SSL"),
        ("redis", "REDIS_URL", redis.replace("redis:", "rediss:").as_str(), "REDIS_URL is to be redis://"),
        ("redis", "REDIS_URL", format!("{redis}/99").as_str(), "DB index is out of range"),
    ] {
        let command = format!("-t {} -n {store} -e -- {}", shop.topic, handler(store).display());
        let mut consumer = shop.start(CONSUME, &command, &[(variable, place)]);
        assert_eq!(consumer.wait(), End::Status(78), "{told}");
        assert!(consumer.says(&[told]), "{told}");
    }
}

#[test]
fn a_copy_can_be_replayed_beside_its_leader() {
    let shop = Shop::open("secondaries-replayed");
    shop.change("INSERT INTO $ VALUES (7, 'old', 7)");
    shop.announce([7]);
    assert_eq!(shop.consume("postgres_copy", "-e").wait(), End::Status(0));
    shop.change("UPDATE $ SET name = 'new'");
    let file = shop.world.file("some.jsonl");
    let record = json!({
        "topic": shop.topic, "partition": 0, "offset": 0, "ts": 0, "key": "7", "headers": [], "payload": {"id": 7}
    });
    fs::write(&file, format!("{record}\n")).unwrap();
    let command = format!("--replay {} -n postgres_copy -- {}", file.display(), handler("postgres_copy").display());
    assert_eq!(shop.start(CONSUME, &command, &[]).wait(), End::Status(0));
    assert_eq!(shop.stored("postgres_copy", 7), shop.rows(&shop.primary));
    let terms = block_on(shop.copy.texts("SELECT (term > 0)::text FROM ksync_terms"));
    assert_eq!(terms, ["true"]);
}

#[test]
fn the_handlers_for_real_stores_have_at_most_80_lines() {
    for file in [&STORES[..], &["batch", "postgres"]].concat() {
        let lines = fs::read_to_string(handler(file)).unwrap().lines().count();
        assert!(lines <= 80, "{file}.py has {lines} lines");
    }
}
