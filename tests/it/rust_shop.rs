//! examples/rust-shop, the program itself: what it answers by HTTP, and what lies in Kafka and Postgres then.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::process::{Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};

use crate::examples::built;
use crate::stream::delayed;
use crate::support::{End, Primary, Process, World, block_on, primaries};

/// What is named so is held up at its commit, by a lock of the test, or refused there.
const TABLE: &str = "
    CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL CHECK (price >= 0));
    CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.name = 'held' THEN PERFORM pg_advisory_xact_lock(NEW.price); END IF;
        IF NEW.name = 'refused' THEN RAISE 'it is refused'; END IF;
        RETURN NEW; END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT OR UPDATE ON products DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION at_commit()";

struct Shop {
    world: World,
    postgres: Primary,
    process: Process,
    address: String,
}

/// The price by which a lock is named: no other test may have it.
fn price() -> u32 {
    rand::random::<u32>() >> 1
}

impl Shop {
    fn open(test: &str) -> Shop {
        let world = World::alone(&format!("shop-{test}"));
        let [postgres, ..] = block_on(primaries(&format!("shop_{test}")));
        block_on(postgres.execute(TABLE));
        for topic in ["products", "products-delay"] {
            world.kafka.create(topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
        }
        let settings =
            [("DATABASE_URL", postgres.url.as_str()), ("SHOP_LISTEN", "127.0.0.1:0"), ("SHOP_PATIENCE", "10")];
        let process = world.start(&built().join("rust-shop").display().to_string(), "", &settings);
        let mut address = None;
        world.eventually("it listens", || {
            let told = |line: &String| line.split_once("listening on http://").map(|(_, address)| address.to_owned());
            address = process.log().iter().find_map(told);
            address.is_some()
        });
        Shop { world, postgres, process, address: address.unwrap() }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let headers = format!("Host: shop\r\nConnection: close\r\nContent-Length: {}", body.len());
        let json = "Content-Type: application/json";
        write!(stream, "{method} {path} HTTP/1.1\r\n{headers}\r\n{json}\r\n\r\n{body}").unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        answer(self.send(method, path, body))
    }

    fn save(&self, id: u32, name: &str, price: u32) -> (u16, String) {
        self.ask("PUT", "/products", &product(id, name, price))
    }

    fn rows(&self) -> Vec<String> {
        block_on(self.postgres.texts("SELECT id || ' ' || name || ' ' || price FROM products ORDER BY id"))
    }

    /// The ids of the instant messages, and of the delay messages.
    fn told(&self) -> (Vec<u32>, Vec<u32>) {
        let id = |text: &str| text.strip_prefix("{\"id\":").unwrap().strip_suffix('}').unwrap().parse().unwrap();
        let records = self.world.kafka.records("products");
        assert!(
            records.iter().all(|record| record.line() == format!("{0}|{{\"id\":{0}}}", record.key.as_ref().unwrap()))
        );
        let instant = records.iter().map(|record| id(record.value.as_ref().unwrap())).collect();
        (instant, delayed(&self.world, "products").iter().map(|payload| id(payload)).collect())
    }

    /// Saves a product whose transaction has come to its commit, and waits there for the test to let it go on.
    fn hold(&self, id: u32) -> (TcpStream, PgConnection) {
        let price = price();
        let mut lock = block_on(PgConnection::connect(&self.postgres.url)).unwrap();
        block_on(raw_sql(AssertSqlSafe(format!("SELECT pg_advisory_lock({price})"))).execute(&mut lock)).unwrap();
        let stream = self.send("PUT", "/products", &product(id, "held", price));
        let waiting = format!("SELECT pid::text FROM pg_locks WHERE objid = {price} AND NOT granted");
        self.world.eventually("it is at its commit", || block_on(self.postgres.texts(&waiting)).len() == 1);
        (stream, lock)
    }

    fn broker(&self, signal: Signal) {
        kill_process(self.world.services.pid("kafka-1"), signal).unwrap();
    }
}

fn product(id: u32, name: &str, price: u32) -> String {
    format!(r#"{{"id":{id},"name":"{name}","price":{price}}}"#)
}

fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn let_go(lock: PgConnection) {
    block_on(lock.close()).unwrap();
}

fn done() -> (u16, String) {
    (204, String::new())
}

#[test]
fn each_request_that_changes_products_announces_those_that_it_has_changed() {
    let shop = Shop::open("requests");
    for (id, price) in [(1, 100), (2, 200), (3, 300), (2, 250)] {
        assert_eq!(shop.save(id, "tea", price), done());
    }
    let products = [(1, 100), (2, 250), (3, 300)].map(|(id, price)| product(id, "tea", price));
    assert_eq!(shop.ask("GET", "/products", ""), (200, format!("[{}]", products.join(","))));
    assert_eq!(shop.told(), (vec![1, 2, 3, 2], vec![1, 2, 3, 2]));
    assert_eq!(shop.ask("POST", "/prices", r#"{"below": 300, "price": 300}"#), done());
    assert_eq!(shop.ask("DELETE", "/products/1", ""), done());
    assert_eq!(shop.rows(), ["2 tea 300", "3 tea 300"]);
    assert_eq!(shop.told(), (vec![1, 2, 3, 2, 1, 2, 1], vec![1, 2, 3, 2, 1, 2, 1]));
}

#[test]
fn what_is_not_committed_is_not_announced_and_the_answer_says_so() {
    let shop = Shop::open("refused");
    assert_eq!(shop.save(1, "tea", 100), done());
    let nothing = (500, "nothing was changed\n".to_owned());
    // By a statement, before anything is sent; at the commit, when the delay messages are there.
    assert_eq!(shop.ask("POST", "/prices", r#"{"below": 300, "price": -1}"#), nothing);
    assert_eq!(shop.save(2, "refused", 1), nothing);
    assert_eq!(shop.ask("DELETE", "/products/9", ""), (404, "no such product\n".to_owned()));
    assert_eq!((shop.rows(), shop.told()), (vec!["1 tea 100".to_owned()], (vec![1], vec![1, 2])));
    // Nobody knows what has become of a commit whose connection ends.
    let (stream, mut lock) = shop.hold(3);
    // Only who waits for this lock: other tests hold commits, too.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
    block_on(sqlx::raw_sql(end).execute(&mut lock)).unwrap();
    assert_eq!(answer(stream), (504, "perhaps changed: look before you try again\n".to_owned()));
    let_go(lock);
    assert_eq!((shop.rows(), shop.told()), (vec!["1 tea 100".to_owned()], (vec![1], vec![1, 2, 3])));
}

#[test]
fn while_kafka_is_away_a_request_fails_before_its_commit() {
    let shop = Shop::open("away");
    assert_eq!(shop.save(1, "tea", 100), done());
    shop.broker(Signal::STOP);
    assert_eq!(shop.save(1, "tea", 200), (503, "nothing was changed: try again later\n".to_owned()));
    assert_eq!(shop.rows(), ["1 tea 100"]);
    shop.broker(Signal::CONT);
    shop.world.eventually("Kafka is back", || shop.save(1, "tea", 300) == done());
    assert_eq!((shop.rows(), shop.told().0), (vec!["1 tea 300".to_owned()], vec![1, 1]));
}

#[test]
fn where_kafka_goes_away_during_a_commit_the_answer_is_that_it_is_changed_and_announced_late() {
    let shop = Shop::open("late");
    let (stream, lock) = shop.hold(1);
    shop.broker(Signal::STOP);
    let_go(lock);
    assert_eq!(answer(stream), (202, "changed; search and caches follow after the delay\n".to_owned()));
    assert_eq!(shop.rows().len(), 1);
    shop.broker(Signal::CONT);
    assert_eq!(shop.told().1, [1]);
}

#[test]
fn a_client_that_hangs_up_during_the_commit_changes_nothing_of_what_is_announced() {
    let shop = Shop::open("hung_up");
    let (mut stream, lock) = shop.hold(1);
    stream.shutdown(Shutdown::Write).unwrap();
    // The shop has closed it, too.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let_go(lock);
    shop.world.eventually("it is announced", || shop.told() == (vec![1], vec![1]));
    assert_eq!(shop.rows().len(), 1);
}

#[test]
fn asked_to_end_it_answers_what_is_under_way() {
    let mut shop = Shop::open("ends");
    let (stream, lock) = shop.hold(1);
    shop.process.signal(Signal::TERM);
    shop.world.eventually("it takes no more requests", || TcpStream::connect(&shop.address).is_err());
    let_go(lock);
    assert_eq!((answer(stream), shop.process.wait()), (done(), End::Status(0)));
    assert_eq!(shop.told(), (vec![1], vec![1]));
}
