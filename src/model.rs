//! Model callbacks for applications in Rust: a transaction announces what it has changed.
//!
//! Its commit has a delay message of each changed record acknowledged, commits, and sends the instant messages. What is rolled
//! back, or dropped, is not announced.
//!
//! ```
//! use ksync::model::{Announcer, Model, Settings};
//! use serde_json::{Value, json};
//!
//! struct Product {
//!     id: i64,
//!     price: i64,
//! }
//!
//! impl Model for Product {
//!     fn topic(&self) -> &str {
//!         "products"
//!     }
//!
//!     fn id(&self) -> Value {
//!         json!(self.id)
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let servers = std::env::var("KSYNC_BOOTSTRAP_SERVER")?;
//! let pool = sqlx::SqlitePool::connect("sqlite::memory:").await?;
//! sqlx::query("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)").execute(&pool).await?;
//!
//! // Once, at the start of the application.
//! let announcer = Announcer::open(&servers, &["products"], Settings::default()).await?;
//!
//! let product = Product { id: 7, price: 500 };
//! let mut tx = announcer.begin(&pool).await?;
//! sqlx::query("INSERT INTO products VALUES (?, ?)").bind(product.id).bind(product.price).execute(&mut *tx).await?;
//! tx.saved(&product);
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::announce::{self, Changed, Destination};
use crate::kafka::{Admin, Check, Cluster, Hazard, Pair, Property, Writer};
use crate::message::Change;
use crate::topic::Topic;

/// How long the start waits for a broker.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record whose changes are announced.
pub trait Model {
    /// The topic, such as `products`: one of those that the [`Announcer`] was opened for.
    fn topic(&self) -> &str;

    /// The primary key: `json!(7)`, `json!("a")`; of several columns `json!([1, "a"])`.
    fn id(&self) -> Value;

    /// The record key, by which all messages of a record lie in one partition: the text of the primary key. All that write to the
    /// topic have to make the same one.
    fn key(&self) -> String {
        match self.id() {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }

    /// What handlers get: by default `{"id": 7}`, which is never out of date.
    fn payload(&self) -> impl Serialize {
        json!({"id": self.id()})
    }
}

/// What may well stay as it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long ksync-delayer holds a delay message back: its `--delay`.
    pub delay: Duration,
    /// How long a commit waits for Kafka, before the database commits and after that.
    pub ack_timeout: Duration,
    /// Of librdkafka: TLS, SASL.
    pub properties: Vec<Property>,
    /// Findings about the topics that are known and let pass.
    pub allow_unsafe: Vec<Hazard>,
}

impl Default for Settings {
    fn default() -> Settings {
        let (delay, ack_timeout) = (Duration::from_secs(300), Duration::from_secs(2));
        Settings { delay, ack_timeout, properties: vec![], allow_unsafe: vec![] }
    }
}

/// Announces what transactions change. One is enough for an application; a clone is the same one.
#[derive(Clone)]
pub struct Announcer(Arc<Shared>);

struct Shared {
    writer: Writer,
    destinations: HashMap<String, Destination>,
    delay: Duration,
    ack_timeout: Duration,
}

impl Announcer {
    /// For changes of records that are announced to these topics, on brokers such as `localhost:9092`.
    ///
    /// Fails where one of the topics or its delay topic does not exist or is set so that messages could be lost, and where no
    /// broker answers within 30 s.
    pub async fn open(bootstrap_server: &str, topics: &[&str], settings: Settings) -> Result<Announcer> {
        let Settings { delay, ack_timeout, properties, allow_unsafe } = settings;
        let cluster = Cluster { bootstrap: bootstrap_server.to_owned(), properties };
        let admin = Admin::new(&cluster)?;
        let (mut destinations, mut pairs) = (HashMap::new(), vec![]);
        for name in topics {
            let topic: Topic = name.parse()?;
            for topic in [&topic, &topic.delay()?] {
                admin.need(topic, None, PATIENCE).await?;
            }
            destinations.insert((*name).to_owned(), Destination::new(&topic, &[])?);
            pairs.push(Pair { delay: Some((topic.delay()?, delay)), topic });
        }
        let check = Check::start(&admin, pairs, allow_unsafe).await?;
        let cluster = cluster.with_short_linger();
        let cluster = match check.small_batches() {
            Some(bytes) => cluster.with_batches_of(bytes),
            None => cluster,
        };
        let writer = Writer::open(&cluster, Writer::AWAITED)?;
        Ok(Announcer(Arc::new(Shared { writer, destinations, delay, ack_timeout })))
    }

    /// Begins a transaction.
    pub async fn begin<DB: sqlx::Database>(&self, pool: &sqlx::Pool<DB>) -> sqlx::Result<Transaction<'static, DB>> {
        Ok(self.over(pool.begin().await?))
    }

    /// Announces what a transaction changes that was begun already.
    pub fn over<'c, DB: sqlx::Database>(&self, transaction: sqlx::Transaction<'c, DB>) -> Transaction<'c, DB> {
        Transaction { announcer: self.0.clone(), transaction, sets: vec![], refused: None }
    }
}

/// A transaction of the database, which is used as sqlx's own: `.execute(&mut *tx)`.
#[must_use = "what is dropped is rolled back"]
pub struct Transaction<'c, DB: sqlx::Database> {
    announcer: Arc<Shared>,
    transaction: sqlx::Transaction<'c, DB>,
    /// Of each topic.
    sets: Vec<Set>,
    /// Why it cannot be committed.
    refused: Option<anyhow::Error>,
}

/// Changed records of a topic, each of them once.
struct Set {
    to: Destination,
    changes: Vec<Change>,
    /// Where the one of a key is.
    places: HashMap<String, usize>,
}

impl<DB: sqlx::Database> Transaction<'_, DB> {
    /// A record was created or changed.
    pub fn saved(&mut self, model: &impl Model) {
        self.changed(model);
    }

    /// A record is to be brought up to date, because of another one that was changed.
    pub fn touched(&mut self, model: &impl Model) {
        self.changed(model);
    }

    /// A record was deleted: handlers do not find it any more.
    pub fn destroyed(&mut self, model: &impl Model) {
        self.changed(model);
    }

    /// What cannot be announced is not committed either.
    fn changed(&mut self, model: &impl Model) {
        if let Err(error) = self.add(model) {
            self.refused.get_or_insert(error);
        }
    }

    fn add(&mut self, model: &impl Model) -> Result<()> {
        let (topic, key, id) = (model.topic(), model.key(), model.id());
        let is_missing = id.is_null() || id.as_array().is_some_and(|parts| parts.iter().any(Value::is_null));
        ensure!(!is_missing, "a record of {topic} has no id yet: announce it when the database has given it one");
        let payload = serde_json::to_vec(&model.payload());
        let payload = payload.with_context(|| format!("cannot write the payload of {key} of {topic} as JSON"))?;
        let to = self.announcer.destinations.get(topic);
        let to = to.with_context(|| format!("Announcer::open was not given the topic {topic}"))?;
        let at = self.sets.iter().position(|set| set.to.topic() == to.topic()).unwrap_or_else(|| {
            self.sets.push(Set { to: to.clone(), changes: vec![], places: HashMap::new() });
            self.sets.len() - 1
        });
        let Set { changes, places, .. } = &mut self.sets[at];
        match places.get(&key) {
            // What it is at the end is what counts.
            Some(place) => changes[*place].payload = payload,
            None => {
                changes.push(Change { key: Some(key.clone().into_bytes()), payload });
                places.insert(key, changes.len() - 1);
            }
        }
        Ok(())
    }

    /// Delay messages acknowledged, commit, instant messages acknowledged.
    ///
    /// As sqlx itself this takes a transaction that Postgres rolls back at its commit, since a statement of it has failed, for
    /// committed; then the records are announced, which does no harm.
    ///
    /// The error tells whether the database has committed. Where instant messages are missing, or it died in between, the delay
    /// messages bring the records up again.
    pub async fn commit(self) -> Result<(), CommitError> {
        let Transaction { announcer, transaction, sets, refused } = self;
        if let Some(error) = refused {
            return Err(CommitError::NotCommitted(error));
        }
        let changed: Vec<_> = sets.iter().map(|set| Changed { to: &set.to, changes: &set.changes }).collect();
        let Shared { writer, delay, ack_timeout, .. } = &*announcer;
        let committed = Mutex::new(Committed::No);
        let action = async {
            let told = |is_so| *committed.lock().unwrap_or_else(PoisonError::into_inner) = is_so;
            told(Committed::Perhaps);
            match transaction.commit().await {
                Ok(()) => {
                    told(Committed::Yes);
                    Ok(())
                }
                Err(error) => {
                    if is_refusal(&error) {
                        told(Committed::No);
                    }
                    Err(anyhow::Error::new(error).context("cannot commit"))
                }
            }
        };
        let announced = announce::Announcer::new(writer, *delay).announce(&changed, *ack_timeout, action).await;
        let committed = committed.into_inner().unwrap_or_else(PoisonError::into_inner);
        announced.map_err(|error| match committed {
            Committed::No => CommitError::NotCommitted(error),
            Committed::Perhaps => CommitError::Unknown(error),
            Committed::Yes => CommitError::Unannounced(error),
        })
    }

    /// Changes nothing, and announces nothing.
    pub async fn rollback(self) -> sqlx::Result<()> {
        self.transaction.rollback().await
    }
}

/// Whether it is the database itself that has not committed: not a pooler that has lost it, or a server that goes down meanwhile.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| is_code_of_refusal(&code))
}

/// By its SQLSTATE, of SQLite by the number that it has there.
fn is_code_of_refusal(code: &str) -> bool {
    // Connection exceptions, statement_completion_unknown, operator intervention, internal errors; of MySQL and MariaDB all that
    // has no class of its own; SQLITE_IOERR, SQLITE_CORRUPT
    let is_unclear = ["08", "40003", "57P", "XX", "HY", "70"].iter().any(|unclear| code.starts_with(unclear));
    let sqlite = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
    !is_unclear && !matches!(sqlite, Some(10 | 11))
}

#[derive(Clone, Copy)]
enum Committed {
    No,
    Perhaps,
    Yes,
}

impl<DB: sqlx::Database> Deref for Transaction<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.transaction
    }
}

impl<DB: sqlx::Database> DerefMut for Transaction<'_, DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.transaction
    }
}

/// What a commit has come to that is not all done.
#[derive(Debug)]
pub enum CommitError {
    /// Nothing was committed. Delay messages may be there all the same, which does no harm.
    NotCommitted(anyhow::Error),
    /// The database did not say whether it has committed. If so, the delay messages tell of it; where it took so long that they
    /// were to be sent again, and that failed, perhaps not: the error says so.
    Unknown(anyhow::Error),
    /// Committed. Instant messages may be missing; the delay messages are there.
    Unannounced(anyhow::Error),
}

impl CommitError {
    /// Whether the database has committed, where that is known.
    pub fn is_committed(&self) -> Option<bool> {
        match self {
            CommitError::NotCommitted(_) => Some(false),
            CommitError::Unknown(_) => None,
            CommitError::Unannounced(_) => Some(true),
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommitError::NotCommitted(error) => write!(f, "nothing was committed: {error:#}"),
            CommitError::Unknown(error) => write!(f, "it is not known whether the database has committed: {error:#}"),
            CommitError::Unannounced(error) => {
                write!(f, "committed, but not announced at once, only by delay messages: {error:#}")
            }
        }
    }
}

impl std::error::Error for CommitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_database_itself_has_refused_is_known_not_to_be_committed() {
        // Postgres: a deferred constraint, a serialization failure, a deadlock, a full disk; MySQL and MariaDB: the same, and a
        // transaction that may only read; SQLite: SQLITE_BUSY, its _SNAPSHOT, a full disk, a deferred foreign key, a unique one.
        for code in ["23505", "40001", "40P01", "53100", "23000", "25006", "5", "517", "13", "787", "2067"] {
            assert!(is_code_of_refusal(code), "{code}");
        }
        // Postgres: a connection, nobody knows, a server that goes down, an internal error, CockroachDB's schema change; MySQL
        // and MariaDB: a server that goes down, all without a class, an interruption; SQLite: SQLITE_IOERR and its _WRITE,
        // _FSYNC and _DATA, SQLITE_CORRUPT and its _INDEX.
        let postgres = ["08006", "08P01", "40003", "57P01", "XX000", "XXA00"];
        let others = ["08S01", "HY000", "70100", "10", "778", "1034", "8202", "11", "779"];
        for code in postgres.iter().chain(&others) {
            assert!(!is_code_of_refusal(code), "{code}");
        }
        assert!(!is_refusal(&sqlx::Error::PoolTimedOut), "it does not come from the database");
    }
}
