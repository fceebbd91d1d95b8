//! How a session with the database is, besides what its URL says.

use std::time::Duration;

use anyhow::anyhow;

use super::sql::Sql;
use super::trouble::Trouble;
use super::{Connection, Database, ask};

/// What is set up once a connection is there.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// How the name begins by which the database shows it: Postgres alone.
    pub name: Option<String>,
    /// After which time the database ends a statement.
    pub statement_timeout: Option<Duration>,
    /// Statements of the operator, which are run last.
    pub sql: Option<String>,
}

impl Database {
    pub(super) async fn set_up(&mut self, session: &Session) -> Result<(), Trouble> {
        if let Some(timeout) = session.statement_timeout {
            let set = self.timeout(timeout).await?;
            self.set(&set).await.map_err(|trouble| trouble.context("cannot set the statement timeout"))?;
        }
        if let Some(sql) = &session.sql {
            self.set(sql).await.map_err(|trouble| trouble.context("cannot run --session-sql"))?;
        }
        Ok(())
    }

    /// The statement that sets it, in the words of the database.
    async fn timeout(&mut self, timeout: Duration) -> Result<String, Trouble> {
        let millis = timeout.as_millis().max(1);
        let is_mariadb = match &mut self.connection {
            Connection::Postgres(_) => return Ok(format!("SET statement_timeout = {millis}")),
            Connection::MySql(mysql) => {
                let version = mysql.answer(&Sql::new(super::Dialect::MySql, "SELECT VERSION()")).await?;
                version.is_some_and(|version| version.contains("MariaDB"))
            }
            Connection::Sqlite(_) => false,
        };
        match is_mariadb {
            true => Ok(format!("SET SESSION max_statement_time = {}", timeout.as_secs_f64())),
            // Of MySQL it is one of SELECT alone.
            false => Err(Trouble::Misconfigured(anyhow!(
                "only Postgres and MariaDB end a statement by time; leave out --statement-timeout"
            ))),
        }
    }

    async fn set(&mut self, sql: &str) -> Result<(), Trouble> {
        let sql = Sql::new(self.dialect(), sql);
        Ok(ask!(self, session => session.set(&sql))??)
    }
}
