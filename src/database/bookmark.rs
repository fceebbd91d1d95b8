//! A row in which a job keeps how far it is, written in the transactions that change its rows.

use anyhow::anyhow;

use super::sql::{Sql, Table};
use super::statement::Dialect;
use super::trouble::{Trouble, is_missing_table};
use super::value::Value;
use super::{Connection, Database, ask};

/// The row of a job, and the run that holds it: what another run writes to it is refused.
#[derive(Debug)]
pub struct Bookmark {
    dialect: Dialect,
    /// As the operator wrote it.
    label: String,
    table: String,
    job: Value,
    run: Value,
}

/// How far the job is when a transaction is committed, written by that transaction.
pub struct Mark<'a> {
    bookmark: &'a Bookmark,
    pub(super) write: Sql,
}

impl Database {
    /// Makes the row of a job this run's, and gives what was written there last; the table is made if need be. A run that
    /// held the row before cannot write any more: what is given is the last that it wrote. Fails where the table is there and
    /// knows no transactions.
    pub async fn bookmark(&mut self, table: &str, job: u64) -> Result<(Bookmark, Option<String>), Trouble> {
        let bookmark = Bookmark::new(self.dialect(), table, job)?;
        self.refuse_without_transactions(&bookmark).await?;
        // Looked for first: who may not make a table may not even say IF NOT EXISTS of one that is there.
        let held = match self.execute(&bookmark.hold()).await {
            Err(Trouble::Misconfigured(_)) => {
                let made = self.execute(&bookmark.create()).await;
                match (self.execute(&bookmark.hold()).await, made) {
                    (Ok(_), _) => Ok(()),
                    (Err(_), Err(trouble)) | (Err(trouble), Ok(_)) => Err(trouble),
                }
            }
            other => other.map(drop),
        };
        let state = match held {
            // Not before it is held: the transaction of a run that was killed may still have been under way.
            Ok(()) => self.text(&bookmark.state()).await,
            Err(trouble) => Err(trouble),
        };
        match state {
            Ok(state) => Ok((bookmark, state)),
            Err(trouble) => Err(self.without_right(&bookmark, trouble).await),
        }
    }

    /// What was written last for a job, by a run that may be at work; nothing where there is no such table. Fails where it knows no
    /// transactions.
    pub async fn kept(&mut self, table: &str, job: u64) -> Result<Option<String>, Trouble> {
        let bookmark = Bookmark::new(self.dialect(), table, job)?;
        self.refuse_without_transactions(&bookmark).await?;
        let sql = bookmark.state();
        match ask!(self, session => session.text(&sql))? {
            Ok(state) => Ok(state),
            Err(error) if is_missing_table(&error) => Ok(None),
            Err(error) => Err(self.without_right(&bookmark, error.into()).await),
        }
    }

    /// Writes what the run begins with.
    pub async fn begin(&mut self, bookmark: &Bookmark, state: &str) -> Result<(), Trouble> {
        let written = match self.execute(&bookmark.mark(state).write).await {
            Ok(0) => self.execute(&bookmark.insert(state)).await,
            other => other,
        };
        match written {
            Ok(_) => Ok(()),
            Err(trouble) => Err(self.without_right(bookmark, trouble).await),
        }
    }

    /// Writes the mark in a transaction of its own.
    pub async fn write(&mut self, mark: &Mark<'_>) -> Result<(), Trouble> {
        match self.execute(&mark.write).await {
            Ok(0) => Err(mark.is_lost()),
            Ok(_) => Ok(()),
            Err(trouble) => Err(trouble.context(format!("cannot write to table {}", mark.bookmark.label))),
        }
    }

    /// A mark would stay there of a transaction that is rolled back, and the rows of its chunk be taken for done.
    async fn refuse_without_transactions(&mut self, bookmark: &Bookmark) -> Result<(), Trouble> {
        let Bookmark { label, table, .. } = bookmark;
        let engine = self.engine_without_transactions(label).await;
        match engine.map_err(|trouble| trouble.context(format!("cannot use table {label}")))? {
            None => Ok(()),
            Some(engine) => Err(Trouble::Misconfigured(anyhow!(
                "--checkpoint-table leaves out no row, but table {label} knows no transactions ({engine}), so that it may tell of \
                 changes that were undone; run: ALTER TABLE {table} ENGINE=InnoDB"
            ))),
        }
    }

    /// The trouble, with what has to be run by somebody who may, where it is that.
    async fn without_right(&mut self, bookmark: &Bookmark, trouble: Trouble) -> Trouble {
        if !matches!(trouble, Trouble::Misconfigured(_)) {
            return trouble.context(format!("cannot use table {}", bookmark.label));
        }
        let who = match self.dialect() {
            Dialect::Postgres => "SELECT quote_ident(current_user)",
            Dialect::MySql => {
                "SELECT CONCAT(QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', 1)), '@',
                               QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', -1)))"
            }
            Dialect::Sqlite => return trouble.context(format!("cannot use table {}", bookmark.label)),
        };
        // It only makes the text better.
        let who = self.text(&Sql::new(self.dialect(), who)).await.ok().flatten();
        let Bookmark { label, table, .. } = bookmark;
        let who = who.unwrap_or_else(|| "USER".to_owned());
        trouble.context(format!(
            "cannot use table {label} (let its owner run: {}; GRANT SELECT, INSERT, UPDATE ON {table} TO {who};)",
            bookmark.create_text(),
        ))
    }
}

impl Bookmark {
    fn new(dialect: Dialect, table: &str, job: u64) -> Result<Bookmark, Trouble> {
        let name = Table::parse(table).map_err(Trouble::Misconfigured)?;
        Ok(Bookmark {
            dialect,
            label: table.to_owned(),
            table: name.quoted(dialect),
            job: Value::Text(format!("{job:016x}")),
            run: Value::Integer(rand::random()),
        })
    }

    /// For the transaction that takes the job as far as `state` says.
    pub fn mark(&self, state: &str) -> Mark<'_> {
        let mut write = Sql::new(self.dialect, format!("UPDATE {} SET state = ", self.table));
        write.bind("?", &Value::Text(state.to_owned())).push(" WHERE job = ").bind("?", &self.job);
        write.push(" AND run = ").bind("?", &self.run);
        Mark { bookmark: self, write }
    }

    fn state(&self) -> Sql {
        let mut sql = Sql::new(self.dialect, format!("SELECT state FROM {} WHERE job = ", self.table));
        sql.bind("?", &self.job);
        sql
    }

    fn hold(&self) -> Sql {
        let mut sql = Sql::new(self.dialect, format!("UPDATE {} SET run = ", self.table));
        sql.bind("?", &self.run).push(" WHERE job = ").bind("?", &self.job);
        sql
    }

    fn insert(&self, state: &str) -> Sql {
        let mut sql = Sql::new(self.dialect, format!("INSERT INTO {} (job, run, state) VALUES (", self.table));
        sql.bind("?", &self.job).push(", ").bind("?", &self.run).push(", ");
        sql.bind("?", &Value::Text(state.to_owned())).push(")");
        sql
    }

    fn create(&self) -> Sql {
        Sql::new(self.dialect, self.create_text())
    }

    fn create_text(&self) -> String {
        let (text, engine) = match self.dialect {
            Dialect::MySql => ("mediumtext", " ENGINE=InnoDB CHARACTER SET utf8mb4"),
            Dialect::Postgres | Dialect::Sqlite => ("text", ""),
        };
        let columns = format!("job varchar(16) PRIMARY KEY, run bigint NOT NULL, state {text} NOT NULL");
        format!("CREATE TABLE IF NOT EXISTS {} ({columns}){engine}", self.table)
    }
}

impl Mark<'_> {
    /// The error that the row is another run's now, or gone.
    pub(super) fn is_lost(&self) -> Trouble {
        Trouble::Busy(anyhow!(
            "another run of the same job has taken over its row in table {}; this one has changed nothing since",
            self.bookmark.label
        ))
    }
}
