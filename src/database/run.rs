//! Running a statement for the keys of a chunk: in one transaction, whole or not at all.

use std::time::Duration;

use anyhow::anyhow;
use log::warn;

use super::bookmark::Mark;
use super::chunk::Chunk;
use super::sql::Table;
use super::statement::{Dialect, Statement};
use super::trouble::{Trouble, is_conflict};
use super::{Connection, Database, ask, mysql, sqlite};

/// How often a transaction is tried that others got in the way of.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a statement did for the keys of a chunk, before it is decided whether that stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    pub touched: u64,
    /// Whether the mark that belongs to it was written, too.
    pub is_marked: bool,
}

impl Ran {
    pub fn stays(self, chunk: &Chunk) -> bool {
        self.is_marked && self.touched <= chunk.changes.len() as u64
    }
}

impl Database {
    /// Runs `statement` for the keys of `chunk` in a transaction of its own, and returns how many rows it touched.
    ///
    /// Where these are more than the keys nothing of it stays, nor where `mark`, which the same transaction writes, is
    /// another process's now. What others got in the way of is tried again a few times. After [`Trouble::Away`] all of it
    /// may have been committed or nothing.
    pub async fn run(&mut self, statement: &Statement, chunk: &Chunk, mark: Option<&Mark<'_>>) -> Result<u64, Trouble> {
        let write = mark.map(|mark| &mark.write);
        statement.check_size(chunk.changes.len(), chunk.key.len())?;
        let most = chunk.changes.len() as u64;
        let (mut pause, mut retries) = (FIRST_PAUSE, 1..ATTEMPTS);
        loop {
            match ask!(self, session => session.run(statement, chunk, write))? {
                Ok(Ran { touched, .. }) if touched > most => {
                    let hint = match self.connection {
                        Connection::MySql(_) => {
                            " (MySQL and MariaDB count a row twice that REPLACE or ON DUPLICATE KEY UPDATE changes: write UPDATE)"
                        }
                        Connection::Postgres(_) | Connection::Sqlite(_) => "",
                    };
                    return Err(Trouble::Refused(anyhow!(
                        "the statement touched {touched} rows for {most} keys and was rolled back; it has to name the \
                         rows by their keys, for example ... WHERE id IN (:keys){hint}"
                    )));
                }
                Ok(Ran { touched, is_marked }) => {
                    return match mark {
                        Some(mark) if !is_marked => Err(mark.is_lost()),
                        _ => Ok(touched),
                    };
                }
                Err(error) if is_conflict(&error) && retries.next().is_some() => {
                    let trouble = Trouble::from(error);
                    warn!("the statement met another transaction: {trouble:#}; trying again in {pause:?}");
                    self.retries += 1;
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(refused_or_away(error.into())),
            }
        }
    }

    /// The engine of a table on which nothing can be undone: of MySQL and MariaDB some are such.
    pub async fn engine_without_transactions(&mut self, table: &str) -> Result<Option<String>, Trouble> {
        let table = Table::parse(table).map_err(Trouble::Misconfigured)?;
        match &mut self.connection {
            Connection::MySql(mysql) => Ok(mysql.engine_without_transactions(&table).await?),
            Connection::Postgres(_) | Connection::Sqlite(_) => Ok(None),
        }
    }
}

impl Statement {
    /// Fails where so many keys of so many columns are more than can be bound to it. Postgres binds arrays; the others bind each
    /// value of each key by itself, and not any number of them.
    pub fn check_size(&self, keys: usize, columns: usize) -> Result<(), Trouble> {
        let most = match self.dialect {
            Dialect::Postgres => return Ok(()),
            Dialect::MySql => mysql::MOST_VALUES,
            Dialect::Sqlite => sqlite::MOST_VALUES,
        };
        let for_each = self.places() * columns;
        if keys * for_each <= most {
            return Ok(());
        }
        Err(Trouble::Misconfigured(anyhow!(
            "the database binds at most {most} values to a statement, and {keys} keys need {}; use a --chunk-size of at \
             most {}",
            keys * for_each,
            most / for_each
        )))
    }
}

/// What a statement of the operator names wrongly is told as a refusal like all else that is wrong with it.
fn refused_or_away(trouble: Trouble) -> Trouble {
    let trouble = match trouble {
        Trouble::Misconfigured(error) => Trouble::Refused(error),
        other => other,
    };
    trouble.context("cannot run the statement")
}
