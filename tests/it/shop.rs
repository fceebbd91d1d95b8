//! An application in Rust that other tests start: as tests/applications/shop.rb.

use std::io::BufRead;
use std::time::Duration;

use anyhow::{Result, bail};
use ksync::model::{Announcer, Model, Settings};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::application_faults::DELAY;

struct Product {
    topic: String,
    id: i32,
}

impl Model for Product {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn id(&self) -> Value {
        json!(self.id)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that other tests start"]
async fn shop_in_rust() {
    let variable = |name| std::env::var(name).unwrap();
    let (topic, pool) = (variable("TOPIC"), PgPool::connect(&variable("DATABASE_URL")).await.unwrap());
    let settings = Settings { delay: DELAY, ack_timeout: Duration::from_secs(15), ..Settings::default() };
    let announcer = Announcer::open(&variable("KSYNC_BOOTSTRAP_SERVER"), &[&topic], settings).await.unwrap();
    eprintln!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        match perform(&announcer, &pool, &topic, &line).await {
            Ok(()) => eprintln!("did {line}"),
            Err(error) => eprintln!("failed {line}: {error:#}"),
        }
    }
}

async fn perform(announcer: &Announcer, pool: &PgPool, topic: &str, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let command = words.next().unwrap_or_default();
    let ids: Vec<i32> = words.map(str::parse).collect::<Result<_, _>>()?;
    let (id, price) = (ids[0], ids.get(1).copied().unwrap_or_default());
    let product = |id| Product { topic: topic.to_owned(), id };
    let mut tx = announcer.begin(pool).await?;
    let statement = match command {
        "create" => format!("INSERT INTO products (id, price) VALUES ({id}, {price})"),
        "update" | "rollback" | "twice" => format!("UPDATE products SET price = {price} WHERE id = {id}"),
        "touch" => format!("UPDATE products SET updated_at = now() WHERE id = {id}"),
        "destroy" => format!("DELETE FROM products WHERE id = {id}"),
        "bulk" => format!("UPDATE products SET price = 7 WHERE id = ANY(ARRAY{ids:?})"),
        _ => bail!("no such command"),
    };
    for _ in 0..=usize::from(command == "twice") {
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *tx).await?;
        match command {
            "touch" => tx.touched(&product(id)),
            "destroy" => tx.destroyed(&product(id)),
            "bulk" => ids.iter().for_each(|id| tx.saved(&product(*id))),
            _ => tx.saved(&product(id)),
        }
    }
    match command {
        "rollback" => Ok(tx.rollback().await?),
        _ => Ok(tx.commit().await?),
    }
}
