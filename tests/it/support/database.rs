//! Databases for tests: a Postgres, a MariaDB and a SQLite one, empty and a test's own.

use std::path::PathBuf;

use ksync::database::{Chunk, Database, Dialect, Limit, Source, Statement, Trouble};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row as _, SqliteConnection};

use super::Services;

/// An empty database of one test on one of the servers.
pub struct Primary {
    pub dialect: Dialect,
    pub url: String,
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.dialect.fmt(f)
    }
}

/// A Postgres, a MariaDB and a SQLite database, in this order.
pub async fn primaries(test: &str) -> [Primary; 3] {
    let test = format!("ksync_{test}");
    let services = Services::shared();
    let postgres = services.get("KSYNC_TEST_POSTGRES").to_owned();
    let root = Primary { dialect: Dialect::Postgres, url: postgres.clone() };
    root.execute(&format!("DROP SCHEMA IF EXISTS {test} CASCADE; CREATE SCHEMA {test}")).await;

    let mariadb = services.get("KSYNC_TEST_MARIADB").to_owned();
    let root = Primary { dialect: Dialect::MySql, url: mariadb.clone() };
    root.execute(&format!("DROP DATABASE IF EXISTS {test}")).await;
    root.execute(&format!("CREATE DATABASE {test} CHARACTER SET utf8mb4")).await;
    let (server, _) = mariadb.rsplit_once('/').unwrap();

    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.db"));
    if file.exists() {
        std::fs::remove_file(&file).unwrap();
    }
    let sqlite = format!("sqlite:{}", file.display());
    SqliteConnection::connect(&format!("{sqlite}?mode=rwc")).await.unwrap().close().await.unwrap();

    [
        // As libpq and the drivers of all languages take it, too.
        Primary { dialect: Dialect::Postgres, url: format!("{postgres}?options=-csearch_path%3D{test}") },
        Primary { dialect: Dialect::MySql, url: format!("{server}/{test}") },
        Primary { dialect: Dialect::Sqlite, url: sqlite },
    ]
}

impl Primary {
    pub async fn open(&self) -> Database {
        Database::open(&self.url).await.unwrap()
    }

    pub async fn chunks(&self, source: &Source, limit: Limit) -> Vec<Chunk> {
        let mut database = self.open().await;
        let mut scan = database.prepare(source).await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = database.next_chunk(&mut scan, limit).await.unwrap() {
            assert!(!chunk.changes.is_empty() && chunks.len() < 10_000, "{self:?}: the scan does not end");
            chunks.push(chunk);
        }
        chunks
    }

    /// Runs `statement` for all rows in chunks of `rows`; returns how many rows were touched.
    pub async fn run(&self, statement: &str, source: &Source, rows: usize) -> u64 {
        let statement = Statement::parse(statement, self.dialect).unwrap();
        let mut database = self.open().await;
        let mut touched = 0;
        for chunk in self.chunks(source, Limit { rows, bytes: 1 << 30 }).await {
            touched += database.run(&statement, &chunk, None).await.unwrap();
        }
        touched
    }

    /// How `statement` fails for the first chunk of `rows` rows.
    pub async fn refusal(&self, statement: &str, source: &Source, rows: usize) -> Trouble {
        let statement = Statement::parse(statement, self.dialect).unwrap();
        let chunks = self.chunks(source, Limit { rows, bytes: 1 << 30 }).await;
        self.open().await.run(&statement, &chunks[0], None).await.unwrap_err()
    }

    pub async fn execute(&self, sql: &str) {
        let query = sqlx::raw_sql(AssertSqlSafe(sql));
        let done = match self.dialect {
            Dialect::Postgres => query.execute(&mut PgConnection::connect(&self.url).await.unwrap()).await.map(drop),
            Dialect::MySql => query.execute(&mut MySqlConnection::connect(&self.url).await.unwrap()).await.map(drop),
            Dialect::Sqlite => query.execute(&mut SqliteConnection::connect(&self.url).await.unwrap()).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("{self:?}: {sql}: {error}"));
    }

    /// The only column that `sql` selects, as text.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        match self.dialect {
            Dialect::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                // What is not prepared comes as text.
                let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
                rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).unwrap()).collect()
            }
            Dialect::MySql => {
                let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
                let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
                rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).unwrap()).collect()
            }
            Dialect::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
                rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).unwrap()).collect()
            }
        }
    }
}
