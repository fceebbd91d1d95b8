//! Applications in Rust: what a transaction has changed is announced by its commit, and by nothing else.

use std::time::{Duration, Instant};

use ksync::database::Dialect;
use ksync::model::{Announcer, CommitError, Model, Settings};
use rustix::process::{Signal, kill_process};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{MySqlPool, PgPool, SqlitePool};

use crate::stream::delayed;
use crate::support::{World, block_on, pass, primaries};

/// A record of a topic, with more to tell than its key or not.
struct Product {
    topic: String,
    id: Value,
    price: Option<u32>,
}

impl Model for Product {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn id(&self) -> Value {
        self.id.clone()
    }

    fn payload(&self) -> impl Serialize {
        match self.price {
            Some(price) => json!({"id": self.id, "price": price}),
            None => json!({"id": self.id}),
        }
    }
}

fn product(topic: &str, id: impl Into<Value>) -> Product {
    Product { topic: topic.to_owned(), id: id.into(), price: None }
}

fn instant(world: &World, topic: &str) -> Vec<String> {
    world.kafka.records(topic).iter().map(|record| record.line()).collect()
}

/// A busy machine may take long for the first message of a topic.
fn patient() -> Settings {
    Settings { ack_timeout: Duration::from_secs(15), ..Settings::default() }
}

async fn announcer(world: &World, topics: &[&str], settings: Settings) -> Announcer {
    Announcer::open(world.services.get("KSYNC_BOOTSTRAP_SERVER"), topics, settings).await.unwrap()
}

/// Runs the same on each database, whose transactions are of another type each.
macro_rules! on_each_database {
    ($name:expr, |$primary:ident, $pool:ident| $body:expr) => {
        for $primary in primaries($name).await {
            $primary.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)").await;
            match $primary.dialect {
                Dialect::Postgres => {
                    let $pool = PgPool::connect(&$primary.url).await.unwrap();
                    $body
                }
                Dialect::MySql => {
                    let $pool = MySqlPool::connect(&$primary.url).await.unwrap();
                    $body
                }
                Dialect::Sqlite => {
                    let $pool = SqlitePool::connect(&$primary.url).await.unwrap();
                    $body
                }
            }
        }
    };
}

#[test]
fn a_commit_announces_each_changed_record_once_in_each_phase() {
    let world = World::new("models");
    let topics: [_; 3] = std::array::from_fn(|database| {
        ["products", "orders"].map(|name| world.topic_with_delay(&format!("{name}-{database}"), 1))
    });
    block_on(async {
        on_each_database!("models", |primary, pool| {
            let [products, orders] = &topics[primary.dialect as usize];
            let announcer = announcer(&world, &[products, orders], patient()).await;
            let mut tx = announcer.begin(&pool).await.unwrap();
            sqlx::query("INSERT INTO products VALUES (7, 1)").execute(&mut *tx).await.unwrap();
            tx.saved(&Product { price: Some(1), ..product(products, 7) });
            tx.touched(&product(orders, "a"));
            tx.destroyed(&product(orders, json!([1, "b"])));
            // What it is at the end is what counts.
            tx.saved(&Product { price: Some(2), ..product(products, 7) });
            assert_eq!(delayed(&world, products).len(), 0);
            tx.commit().await.unwrap();
            assert_eq!(primary.texts("SELECT id FROM products").await, ["7"]);
            let of_orders = [r#"a|{"id":"a"}"#, r#"[1,"b"]|{"id":[1,"b"]}"#];
            assert_eq!(instant(&world, products), [r#"7|{"id":7,"price":2}"#], "{primary:?}");
            assert_eq!(instant(&world, orders), of_orders, "{primary:?}");
            assert_eq!(delayed(&world, products), [r#"{"id":7,"price":2}"#], "{primary:?}");
            assert_eq!(delayed(&world, orders).len(), 2, "{primary:?}");

            // Rolled back, dropped, and nothing changed at all.
            for ending in 0..3 {
                let mut tx = announcer.begin(&pool).await.unwrap();
                if ending < 2 {
                    sqlx::query("DELETE FROM products").execute(&mut *tx).await.unwrap();
                    tx.destroyed(&product(products, 7));
                }
                match ending {
                    0 => tx.rollback().await.unwrap(),
                    1 => drop(tx),
                    _ => tx.commit().await.unwrap(),
                }
            }
            assert_eq!(primary.texts("SELECT id FROM products").await, ["7"], "{primary:?}");
            assert_eq!((world.kafka.count(products), delayed(&world, products).len()), (1, 1), "{primary:?}");
        });
    });
}

#[test]
fn what_cannot_be_announced_is_not_committed() {
    let world = World::new("models-refused");
    let topic = world.topic_with_delay("products", 1);
    block_on(async {
        on_each_database!("models_refused", |primary, pool| {
            let announcer = announcer(&world, &[&topic], patient()).await;
            let mut tx = announcer.begin(&pool).await.unwrap();
            sqlx::query("INSERT INTO products VALUES (7, 1)").execute(&mut *tx).await.unwrap();
            tx.saved(&product("others", 7));
            tx.saved(&product(&topic, 7));
            let error = tx.commit().await.unwrap_err();
            let told = "nothing was committed: Announcer::open was not given the topic others";
            assert_eq!((error.is_committed(), error.to_string().as_str()), (Some(false), told), "{primary:?}");
            assert!(primary.texts("SELECT id FROM products").await.is_empty(), "{primary:?}");
        });
        let server = world.services.get("KSYNC_BOOTSTRAP_SERVER");
        let missing = Announcer::open(server, &["missing"], Settings::default()).await.err().unwrap();
        assert!(missing.to_string().starts_with("topic missing does not exist"), "{missing:#}");
    });
    assert_eq!(world.kafka.count(&topic), 0);
}

#[test]
fn a_commit_that_the_database_refuses_is_told_so_and_not_announced() {
    let world = World::new("models-deferred");
    let topic = world.topic_with_delay("products", 1);
    block_on(async {
        let [primary, ..] = primaries("models_deferred").await;
        primary.execute("CREATE TABLE products (id INT UNIQUE DEFERRABLE INITIALLY DEFERRED)").await;
        let pool = PgPool::connect(&primary.url).await.unwrap();
        let announcer = announcer(&world, &[&topic], patient()).await;
        let mut tx = announcer.begin(&pool).await.unwrap();
        sqlx::query("INSERT INTO products VALUES (7), (7)").execute(&mut *tx).await.unwrap();
        tx.saved(&product(&topic, 7));
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, CommitError::NotCommitted(_)), "{error}");
        assert!(error.to_string().contains("duplicate key value"), "{error}");
        // Nobody knows what becomes of a commit whose connection ends.
        let mut tx = announcer.begin(&pool).await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
        tx.saved(&product(&topic, 8));
        primary.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        let error = tx.commit().await.unwrap_err();
        assert!(error.is_committed() != Some(true), "{error}");
    });
    assert_eq!((world.kafka.count(&topic), delayed(&world, &topic).len()), (0, 2));
}

#[test]
fn a_commit_that_takes_half_the_delay_has_its_delay_messages_sent_again() {
    let world = World::new("models-slow");
    let topic = world.topic_with_delay("products", 1);
    block_on(async {
        let [primary, ..] = primaries("models_slow").await;
        // A deferred trigger runs at the commit.
        primary
            .execute(
                "CREATE TABLE products (id INT);
                 CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     PERFORM pg_sleep(8.2); RETURN NEW; END $$;
                 CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON products DEFERRABLE INITIALLY DEFERRED
                     FOR EACH ROW EXECUTE FUNCTION slow()",
            )
            .await;
        let pool = PgPool::connect(&primary.url).await.unwrap();
        let settings = Settings { delay: Duration::from_secs(2), ..patient() };
        let announcer = announcer(&world, &[&topic], settings).await;
        let mut tx = announcer.begin(&pool).await.unwrap();
        sqlx::query("INSERT INTO products VALUES (7)").execute(&mut *tx).await.unwrap();
        tx.saved(&product(&topic, 7));
        let begun = Instant::now();
        tx.commit().await.unwrap();
        // Once before, and after each second.
        let (sent, most) = (delayed(&world, &topic).len(), 1 + begun.elapsed().as_secs() as usize);
        assert!((3..=most).contains(&sent), "{sent} of {most}");
    });
    assert_eq!(world.kafka.count(&topic), 1);
}

#[test]
fn while_kafka_is_away_nothing_is_committed_and_what_was_is_told_so() {
    let world = World::alone("models-away");
    let topic = world.topic_with_delay("products", 1);
    let broker = world.services.pid("kafka-1");
    block_on(async {
        let [.., sqlite] = primaries("models_away").await;
        sqlite.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)").await;
        let pool = SqlitePool::connect(&sqlite.url).await.unwrap();
        let settings = Settings { ack_timeout: Duration::from_secs(15), ..Settings::default() };
        let announcer = announcer(&world, &[&topic], settings).await;
        let change = async |id: i32| {
            let mut tx = announcer.begin(&pool).await.unwrap();
            sqlx::query("INSERT INTO products VALUES (?, 1)").bind(id).execute(&mut *tx).await.unwrap();
            tx.saved(&product(&topic, id));
            tx
        };
        change(1).await.commit().await.unwrap();
        let tx = change(2).await;
        kill_process(broker, Signal::STOP).unwrap();
        let error = tx.commit().await.unwrap_err();
        let told = "nothing was committed: cannot send the delay messages; nothing that they announce was changed: Kafka has not";
        assert!(error.is_committed() == Some(false) && error.to_string().starts_with(told), "{error}");
        assert_eq!(sqlite.texts("SELECT id FROM products").await, ["1"]);
        kill_process(broker, Signal::CONT).unwrap();
        pass(Duration::from_secs(1)).await;
        change(3).await.commit().await.unwrap();
        assert_eq!(sqlite.texts("SELECT id FROM products ORDER BY id").await, ["1", "3"]);
    });
    assert_eq!(instant(&world, &topic), [r#"1|{"id":1}"#, r#"3|{"id":3}"#]);
}

#[test]
fn the_example_of_the_library_runs() {
    let world = World::alone("models-example");
    for topic in ["products", "products-delay"] {
        world.kafka.create(topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
    }
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["test", "--doc", "--locked", "--quiet"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.arg("model").env("KSYNC_BOOTSTRAP_SERVER", world.services.get("KSYNC_BOOTSTRAP_SERVER"));
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(instant(&world, "products"), [r#"7|{"id":7}"#]);
}
