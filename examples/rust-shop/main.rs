//! A shop on axum and sqlx that announces its changes by `ksync::model`.
//!
//!     CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL)
//!
//!     GET /products    PUT /products {"id": 7, "name": "tea", "price": 300}    DELETE /products/7
//!     POST /prices {"below": 500, "price": 500}
//!
//! Its settings are `DATABASE_URL`, `KSYNC_BOOTSTRAP_SERVER`, `SHOP_LISTEN`, and `SHOP_PATIENCE`: how many seconds Kafka may take
//! for an acknowledgement. In a Cargo.toml of your own, take the version of sqlx that ksync has.

use std::time::Duration;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{self, get, post};
use axum::{Json, Router};
use ksync::model::{Announcer, CommitError, Model, Settings, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgRow, Postgres};
use sqlx::{FromRow, Row};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Deserialize, Serialize)]
struct Product {
    id: i32,
    name: String,
    price: i32,
}

impl Model for Product {
    fn topic(&self) -> &str {
        "products"
    }

    fn id(&self) -> Value {
        json!(self.id)
    }
}

// As #[derive(FromRow)] does it, for which sqlx needs its feature `derive`.
impl FromRow<'_, PgRow> for Product {
    fn from_row(row: &PgRow) -> sqlx::Result<Product> {
        Ok(Product { id: row.try_get("id")?, name: row.try_get("name")?, price: row.try_get("price")? })
    }
}

#[derive(Deserialize)]
struct Prices {
    below: i32,
    price: i32,
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    announcer: Announcer,
}

async fn list(State(shop): State<Shop>) -> Result<Json<Vec<Product>>, Failure> {
    Ok(Json(sqlx::query_as("SELECT * FROM products ORDER BY id").fetch_all(&shop.pool).await?))
}

/// Creates or changes it.
async fn save(State(shop): State<Shop>, Json(product): Json<Product>) -> Result<StatusCode, Failure> {
    let sql = "INSERT INTO products VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET name = $2, price = $3";
    let mut tx = shop.announcer.begin(&shop.pool).await?;
    sqlx::query(sql).bind(product.id).bind(&product.name).bind(product.price).execute(&mut *tx).await?;
    tx.saved(&product);
    commit(tx).await
}

async fn delete(State(shop): State<Shop>, Path(id): Path<i32>) -> Result<StatusCode, Failure> {
    let sql = "DELETE FROM products WHERE id = $1 RETURNING *";
    let mut tx = shop.announcer.begin(&shop.pool).await?;
    let deleted: Product = sqlx::query_as(sql).bind(id).fetch_one(&mut *tx).await?;
    tx.destroyed(&deleted);
    commit(tx).await
}

/// All of them or none. What is too much for one transaction is for `ksync-stream --sql`.
async fn set_prices(State(shop): State<Shop>, Json(prices): Json<Prices>) -> Result<StatusCode, Failure> {
    let sql = "UPDATE products SET price = $2 WHERE price < $1 RETURNING *";
    let mut tx = shop.announcer.begin(&shop.pool).await?;
    let changed: Vec<Product> = sqlx::query_as(sql).bind(prices.below).bind(prices.price).fetch_all(&mut *tx).await?;
    // The very rows that were changed: a query of its own may find others.
    changed.iter().for_each(|product| tx.saved(product));
    commit(tx).await
}

/// In a task of its own: a client that hangs up ends its handler, but not a commit that has begun.
async fn commit(tx: Transaction<'static, Postgres>) -> Result<StatusCode, Failure> {
    let committed = tokio::spawn(tx.commit()).await.expect("a commit does not panic");
    committed.map(|()| StatusCode::NO_CONTENT).map_err(Failure)
}

/// What has become of a change, where it is not just done.
struct Failure(CommitError);

/// A statement has failed: what is dropped then is rolled back.
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Failure {
        Failure(CommitError::NotCommitted(error.into()))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match &self.0 {
            CommitError::NotCommitted(error) => match error.downcast_ref() {
                Some(sqlx::Error::RowNotFound) => return (StatusCode::NOT_FOUND, "no such product\n").into_response(),
                Some(sqlx::Error::Database(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "nothing was changed\n"),
                // Kafka or the database is away.
                _ => (StatusCode::SERVICE_UNAVAILABLE, "nothing was changed: try again later\n"),
            },
            CommitError::Unknown(_) => (StatusCode::GATEWAY_TIMEOUT, "perhaps changed: look before you try again\n"),
            // By the delay messages.
            CommitError::Unannounced(_) => {
                (StatusCode::ACCEPTED, "changed; search and caches follow after the delay\n")
            }
        };
        log::error!("{}", self.0);
        (status, text).into_response()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // ksync, too, warns by it: of topics whose settings are risky.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let setting = |name| std::env::var(name).with_context(|| format!("{name} has to be in the environment"));
    let pool = PgPool::connect(&setting("DATABASE_URL")?).await.context("cannot open the database")?;
    let mut settings = Settings::default();
    if let Ok(seconds) = std::env::var("SHOP_PATIENCE") {
        settings.ack_timeout = Duration::from_secs(seconds.parse().context("SHOP_PATIENCE are seconds")?);
    }
    let announcer = Announcer::open(&setting("KSYNC_BOOTSTRAP_SERVER")?, &["products"], settings).await?;
    let shop = Router::new()
        .route("/products", get(list).put(save))
        .route("/products/{id}", routing::delete(delete))
        .route("/prices", post(set_prices))
        .with_state(Shop { pool, announcer });

    let mut terminated = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(setting("SHOP_LISTEN")?).await.context("cannot listen on SHOP_LISTEN")?;
    log::info!("listening on http://{}", listener.local_addr()?);
    // What is under way at the end is answered.
    let end = async move { terminated.recv().await.unwrap_or_default() };
    Ok(axum::serve(listener, shop).with_graceful_shutdown(end).await?)
}
