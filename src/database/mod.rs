//! The primary database: its rows are read in chunks in the order of their key, and a statement is run for the keys
//! of a chunk.
//!
//! One connection by the native driver of its kind. A chunk is read whole, so that nothing stays open in the database
//! while the chunk is served.

mod assignment;
mod bookmark;
mod chunk;
mod clause;
mod column;
mod decimal;
mod key;
mod lexer;
mod lock;
mod look_up;
mod my_cnf;
mod mysql;
mod place;
mod pooler;
mod position;
mod postgres;
mod preview;
mod relation;
mod run;
mod scan;
mod session;
mod source;
mod sql;
mod sqlite;
mod statement;
mod target;
mod trouble;
mod tuple;
mod unique;
mod url;
mod value;
mod watch;

use std::time::Duration;

use anyhow::Context;

pub use bookmark::{Bookmark, Mark};
pub use chunk::{Chunk, Limit};
pub use key::Key;
pub use lock::Lock;
pub use look_up::Found;
pub use place::{Place, ROW_SECURITY};
pub use position::Position;
pub use scan::Scan;
pub use session::Session;
pub use source::{Payload, Rows, Source};
pub use statement::{Dialect, Question, Statement};
pub use trouble::Trouble;

use chunk::Filling;
use column::Column;
use mysql::MySql;
use postgres::Postgres;
use relation::Relation;
use run::Ran;
use sql::{Sql, Table};
use sqlite::Sqlite;
use url::options;
use value::Value;
use watch::Watch;

/// One connection to the database.
pub struct Database {
    connection: Connection,
    watch: Watch,
    /// An answer was given up that may still come, and would be taken for that to the next question.
    is_lost: bool,
    /// How often a transaction was tried again.
    retries: u64,
}

enum Connection {
    Postgres(Postgres),
    MySql(MySql),
    Sqlite(Sqlite),
}

impl Connection {
    fn dialect(&self) -> Dialect {
        match self {
            Connection::Postgres(_) => Dialect::Postgres,
            Connection::MySql(_) => Dialect::MySql,
            Connection::Sqlite(_) => Dialect::Sqlite,
        }
    }
}

/// How long a server may take to let us in.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The same call for whichever database it is, looked after while it takes long.
macro_rules! ask {
    ($database:expr, $session:ident => $call:expr) => {{
        let Database { connection, watch, is_lost, .. } = $database;
        let answer = async {
            match connection {
                Connection::Postgres($session) => $call.await,
                Connection::MySql($session) => $call.await,
                Connection::Sqlite($session) => $call.await,
            }
        };
        watch.over(answer, is_lost).await
    }};
}
use ask;

impl Database {
    /// Connects; an error never holds the URL's password. A SQLite file must be there already.
    pub async fn open(url: &str) -> Result<Database, Trouble> {
        Database::open_for(url, &Session::default()).await
    }

    /// The same, for a session of this kind.
    pub async fn open_for(url: &str, session: &Session) -> Result<Database, Trouble> {
        let opening = async {
            let connection = match Dialect::of(url).map_err(Trouble::Misconfigured)? {
                Dialect::Postgres => Postgres::open(url, session.name.as_deref()).await.map(Connection::Postgres),
                Dialect::MySql => MySql::open(url).await.map(Connection::MySql),
                Dialect::Sqlite => Sqlite::open(url).await.map(Connection::Sqlite),
            };
            let (watch, is_lost, retries) = (Watch(None), false, 0);
            let mut database = Database { connection: connection?, watch, is_lost, retries };
            database.set_up(session).await?;
            // Last, since the operator may have given the session another name.
            database.watch = Watch::new(&mut database.connection, url).await;
            Ok(database)
        };
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(elapsed) => {
                let error = anyhow::Error::new(elapsed).context(format!("no answer within {OPEN_TIMEOUT:?}"));
                Err(Trouble::Away(error.context("cannot connect to the database")))
            }
        }
    }

    /// The next rows, or `None` behind the last.
    ///
    /// Where it fails, or is dropped, the scan stays where it was, and can go on over a new connection.
    pub async fn next_chunk(&mut self, scan: &mut Scan, limit: Limit) -> Result<Option<Chunk>, Trouble> {
        if scan.is_done {
            return Ok(None);
        }
        let limit = scan.fitting(limit);
        let sql = scan.next(limit);
        let mut filling = Filling::new(limit, &scan.members);
        let read = ask!(self, session => session.read(&sql, scan, &mut filling)).and_then(|read| read);
        read.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
        if filling.leaves_out() {
            return Err(scan.repeated());
        }
        let fitting_rows = filling.fitting_rows();
        let (chunk, ahead) = filling.finish(&scan.key);
        if scan.stands_still(&chunk) {
            return Err(scan.read_again());
        }
        if let Some(sql) = scan.passed_over(chunk.keys().next())
            && self.exists(&sql).await.map_err(|trouble| cannot_read(trouble, &scan.relation))?
        {
            return Err(scan.not_distinct());
        }
        let Some(last) = chunk.keys().last() else {
            scan.is_done = true;
            return Ok(None);
        };
        let last = last.to_vec();
        scan.learn(fitting_rows);
        scan.advance(last, ahead);
        Ok(Some(chunk))
    }

    /// The first column of the first row; `None` where that is NULL, or no row is there. What is true is 1.
    ///
    /// Where it is dropped, this connection can be used no more.
    pub async fn number(&mut self, question: &Question) -> Result<Option<f64>, Trouble> {
        let sql = Sql::new(self.dialect(), &question.0);
        let text = ask!(self, session => session.answer(&sql))?;
        let Some(text) = text? else { return Ok(None) };
        let number = match text.trim() {
            "t" | "true" => Ok(1.0),
            "f" | "false" => Ok(0.0),
            text => text.parse(),
        };
        let number = number.with_context(|| format!("'{text}' is not a number"));
        number.map(Some).map_err(Trouble::Refused)
    }

    /// How often a transaction was tried again, since others had got in its way.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    fn dialect(&self) -> Dialect {
        self.connection.dialect()
    }

    async fn columns(&mut self, relation: &Relation) -> Result<Vec<Column>, Trouble> {
        ask!(self, session => session.columns(relation))?
    }

    /// The columns of a table that have a value in each row.
    async fn never_null(&mut self, table: &Table) -> Result<Vec<String>, Trouble> {
        Ok(ask!(self, session => session.never_null(table))??)
    }

    async fn primary_key(&mut self, table: &Table) -> Result<Vec<String>, Trouble> {
        Ok(ask!(self, session => session.primary_key(table))??)
    }

    async fn exists(&mut self, sql: &Sql) -> Result<bool, Trouble> {
        Ok(ask!(self, session => session.exists(sql))??)
    }

    async fn execute(&mut self, sql: &Sql) -> Result<u64, Trouble> {
        Ok(ask!(self, session => session.execute(sql))??)
    }

    async fn text(&mut self, sql: &Sql) -> Result<Option<String>, Trouble> {
        Ok(ask!(self, session => session.text(sql))??)
    }
}

fn cannot_read(trouble: Trouble, relation: &Relation) -> Trouble {
    trouble.context(format!("cannot read {}", relation.label))
}

/// The value of a key column, or the error that there is none.
fn present(value: Option<Value>, scan: &Scan) -> Result<Value, Trouble> {
    value.ok_or_else(|| scan.null_key())
}
