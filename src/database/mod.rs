//! The primary database: its rows are read in chunks in the order of their key, and a statement is run for the keys
//! of a chunk.
//!
//! One connection by the native driver of its kind. A chunk is read whole, so that nothing stays open in the database
//! while the chunk is served.

mod bookmark;
mod chunk;
mod column;
mod lexer;
mod lock;
mod my_cnf;
mod mysql;
mod place;
mod position;
mod postgres;
mod preview;
mod run;
mod scan;
mod session;
mod sql;
mod sqlite;
mod statement;
mod trouble;
mod value;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};

pub use bookmark::{Bookmark, Mark};
pub use chunk::{Chunk, Limit};
pub use lock::Lock;
pub use place::Place;
pub use position::Position;
pub use scan::Scan;
pub use session::Session;
pub use statement::{Dialect, Question, Statement};
pub use trouble::Trouble;

use chunk::Filling;
use column::Column;
use mysql::MySql;
use postgres::Postgres;
use run::Ran;
use scan::Relation;
use sql::{Sql, Table};
use sqlite::Sqlite;
use value::Value;

/// Which rows are read, and what tells them apart.
#[derive(Clone, Debug)]
pub struct Source {
    pub rows: Rows,
    /// The columns of the key; empty: those of the table's primary key.
    pub key: Vec<String>,
    pub payload: Payload,
}

/// What is announced of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// The columns of its key.
    #[default]
    Key,
    Columns(Vec<String>),
    Row,
}

#[derive(Clone, Debug)]
pub enum Rows {
    Table {
        /// `products` or `shop.products`.
        table: String,
        /// A condition as it stands behind WHERE.
        filter: Option<String>,
    },
    Query(String),
}

/// One connection to the database.
pub struct Database(Connection);

enum Connection {
    Postgres(Postgres),
    MySql(MySql),
    Sqlite(Sqlite),
}

/// How long a server may take to let us in.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

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
            let mut database = Database(connection?);
            database.set_up(session).await?;
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

    /// About how many rows there are, where that is known without reading them: of whole tables.
    pub async fn estimate(&mut self, source: &Source) -> Result<Option<u64>, Trouble> {
        let Rows::Table { table, filter: None } = &source.rows else {
            return Ok(None);
        };
        let table = Table::parse(table).map_err(Trouble::Misconfigured)?;
        let estimate = match &mut self.0 {
            Connection::Postgres(postgres) => postgres.estimate(&table).await?,
            Connection::MySql(mysql) => mysql.estimate(&table).await?,
            Connection::Sqlite(sqlite) => sqlite.count(&table).await?,
        };
        // Postgres says 0 or -1 of a table that it has not counted yet.
        Ok(estimate.and_then(|rows| u64::try_from(rows).ok()).filter(|rows| *rows > 0))
    }

    /// Checks that the rows can be read in order, each once, and stands before the first.
    pub async fn prepare(&mut self, source: &Source) -> Result<Scan, Trouble> {
        let relation = Relation::new(source, self.dialect())?;
        let columns = self.columns(&relation).await.map_err(|trouble| cannot_read(trouble, &relation))?;
        let primary = match &relation.table {
            Some(table) => self.primary_key(table).await.map_err(|trouble| cannot_read(trouble, &relation))?,
            None => Vec::new(),
        };
        let names = if source.key.is_empty() { &primary } else { &source.key };
        if names.is_empty() {
            let label = &relation.label;
            return Err(Trouble::Misconfigured(match relation.table {
                Some(_) => anyhow!("{label} has no primary key; name the columns of a unique key with --key"),
                None => anyhow!("{label} has no primary key of its own; name its key columns with --key"),
            }));
        }
        let key = names.iter().map(|name| find_key(name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?;
        let members = match &source.payload {
            Payload::Key => key.clone(),
            Payload::Columns(names) => {
                names.iter().map(|name| find(name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?
            }
            Payload::Row => {
                columns.iter().map(|column| find(&column.name, &columns, &relation)).collect::<Result<Vec<_>, _>>()?
            }
        };
        let scan = Scan::new(relation, key, members);
        // A primary key has no NULLs, but for SQLite.
        let is_null_free =
            self.dialect() != Dialect::Sqlite && scan.key.iter().all(|column| primary.contains(&column.name));
        if !is_null_free && self.exists(&scan.nulls()).await.map_err(|trouble| cannot_read(trouble, &scan.relation))? {
            return Err(scan.null_key());
        }
        Ok(scan)
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
        let read = match &mut self.0 {
            Connection::Postgres(postgres) => postgres.read(&sql, scan, &mut filling).await,
            Connection::MySql(mysql) => mysql.read(&sql, scan, &mut filling).await,
            Connection::Sqlite(sqlite) => sqlite.read(&sql, scan, &mut filling).await,
        };
        read.map_err(|trouble| cannot_read(trouble, &scan.relation))?;
        scan.fitting_rows = filling.fitting_rows();
        let (chunk, ahead) = filling.finish(&scan.key);
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
        scan.advance(last, ahead);
        Ok(Some(chunk))
    }

    /// The first column of the first row; `None` where that is NULL, or no row is there. What is true is 1.
    ///
    /// Where it is dropped, this connection can be used no more.
    pub async fn number(&mut self, question: &Question) -> Result<Option<f64>, Trouble> {
        let sql = Sql::new(self.dialect(), &question.0);
        let text = match &mut self.0 {
            Connection::Postgres(postgres) => postgres.answer(&sql).await,
            Connection::MySql(mysql) => mysql.answer(&sql).await,
            Connection::Sqlite(sqlite) => sqlite.answer(&sql).await,
        };
        let Some(text) = text? else { return Ok(None) };
        let number = match text.trim() {
            "t" | "true" => Ok(1.0),
            "f" | "false" => Ok(0.0),
            text => text.parse(),
        };
        let number = number.with_context(|| format!("'{text}' is not a number"));
        number.map(Some).map_err(Trouble::Refused)
    }

    fn dialect(&self) -> Dialect {
        match self.0 {
            Connection::Postgres(_) => Dialect::Postgres,
            Connection::MySql(_) => Dialect::MySql,
            Connection::Sqlite(_) => Dialect::Sqlite,
        }
    }

    async fn columns(&mut self, relation: &Relation) -> Result<Vec<Column>, Trouble> {
        match &mut self.0 {
            Connection::Postgres(postgres) => postgres.columns(relation).await,
            Connection::MySql(mysql) => mysql.columns(relation).await,
            Connection::Sqlite(sqlite) => sqlite.columns(relation).await,
        }
    }

    async fn primary_key(&mut self, table: &Table) -> Result<Vec<String>, Trouble> {
        Ok(match &mut self.0 {
            Connection::Postgres(postgres) => postgres.primary_key(table).await?,
            Connection::MySql(mysql) => mysql.primary_key(table).await?,
            Connection::Sqlite(sqlite) => sqlite.primary_key(table).await?,
        })
    }

    async fn exists(&mut self, sql: &Sql) -> Result<bool, Trouble> {
        Ok(match &mut self.0 {
            Connection::Postgres(postgres) => postgres.exists(sql).await?,
            Connection::MySql(mysql) => mysql.exists(sql).await?,
            Connection::Sqlite(sqlite) => sqlite.exists(sql).await?,
        })
    }

    async fn execute(&mut self, sql: &Sql) -> Result<u64, Trouble> {
        Ok(match &mut self.0 {
            Connection::Postgres(postgres) => postgres.execute(sql).await?,
            Connection::MySql(mysql) => mysql.execute(sql).await?,
            Connection::Sqlite(sqlite) => sqlite.execute(sql).await?,
        })
    }

    async fn text(&mut self, sql: &Sql) -> Result<Option<String>, Trouble> {
        Ok(match &mut self.0 {
            Connection::Postgres(postgres) => postgres.text(sql).await?,
            Connection::MySql(mysql) => mysql.text(sql).await?,
            Connection::Sqlite(sqlite) => sqlite.text(sql).await?,
        })
    }
}

fn options<Options: FromStr<Err = sqlx::Error>>(url: &str) -> Result<Options, Trouble> {
    url.parse().map_err(|error| Trouble::from(error).context("cannot use the database URL"))
}

fn find_key(name: &str, columns: &[Column], relation: &Relation) -> Result<Column, Trouble> {
    let column = find(name, columns, relation)?;
    match column.unfit {
        None => Ok(column),
        Some(why) => {
            let label = &relation.label;
            Err(Trouble::Misconfigured(anyhow!("column {name} of {label} cannot be a key: {why}")))
        }
    }
}

fn find(name: &str, columns: &[Column], relation: &Relation) -> Result<Column, Trouble> {
    let is_it = |column: &&Column| match relation.dialect {
        Dialect::Postgres => column.name == name,
        Dialect::MySql | Dialect::Sqlite => column.name.to_lowercase() == name.to_lowercase(),
    };
    let label = &relation.label;
    let found = columns.iter().filter(is_it).collect::<Vec<_>>();
    let error = match found.as_slice() {
        [column] => return Ok(Column::clone(column)),
        [] => {
            let names = columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>();
            anyhow!("{label} has no column '{name}'; its columns are {}", names.join(", "))
        }
        _ => anyhow!("{label} has several columns '{name}'; give them different names"),
    };
    Err(Trouble::Misconfigured(error))
}

fn cannot_read(trouble: Trouble, relation: &Relation) -> Trouble {
    trouble.context(format!("cannot read {}", relation.label))
}

/// The value of a key column, or the error that there is none.
fn present(value: Option<Value>, scan: &Scan) -> Result<Value, Trouble> {
    value.ok_or_else(|| scan.null_key())
}
