//! What ksync-stream does to the rows that it reads, chunk by chunk.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use log::warn;

use super::rows::usage;
use super::{SourceOptions, duration};
use crate::database::{Database, Dialect, Session, Statement};
use crate::exit::Exit;
use crate::handler::{Command, Environment, Terms};
use crate::stream::{Action, Source, failure};

/// What is done to the rows, chunk by chunk.
#[derive(Args, Clone, Debug)]
pub struct ActionOptions {
    /// Statement to run on each chunk, or @FILE; :keys stands for the keys of its rows
    #[arg(long, env = "KSYNC_SQL", value_name = "STATEMENT", conflicts_with = "command", help_heading = "Action")]
    pub sql: Option<String>,

    /// Database to run the statement on, if the rows are read elsewhere, from a replica perhaps [default: that of the rows]
    #[arg(
        long,
        env = "KSYNC_ACTION_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        requires = "sql",
        help_heading = "Action"
    )]
    pub action_database: Option<String>,

    /// Has the database end a statement of the action, or a read, that takes longer (Postgres, MariaDB)
    #[arg(long, env = "KSYNC_STATEMENT_TIMEOUT", value_name = "DURATION", value_parser = duration, help_heading = "Action")]
    pub statement_timeout: Option<Duration>,

    /// Command to run on each chunk, its payload lines on stdin
    #[arg(last = true, value_name = "COMMAND", help_heading = "Action")]
    pub command: Vec<String>,
}

impl ActionOptions {
    /// What is to be done; seen without opening anything but the statement's file.
    pub fn action(&self, source: &SourceOptions) -> Result<Option<Action>> {
        let has_action = !self.command.is_empty() || self.sql.is_some();
        if has_action && source.limit()?.is_some() {
            return Err(usage(anyhow!(
                "--query says itself how many rows it gives (LIMIT, OFFSET, FETCH), and is asked again for each chunk: behind rows \
                 that the action has changed it would give further ones; write a condition instead, or give the rows as lines of \
                 stdin"
            )));
        }
        if !self.command.is_empty() {
            let terms = Terms { timeout: Duration::MAX, allows_unread: false };
            let command = Command::check(self.command.clone(), terms, &Environment::Ours)
                .map_err(|error| Exit::Misconfigured.because(error))?;
            return Ok(Some(Action::Command(command)));
        }
        let Some(sql) = &self.sql else { return Ok(None) };
        let sql = match sql.strip_prefix('@') {
            Some(file) => {
                std::fs::read_to_string(file).with_context(|| format!("cannot read {file}")).map_err(usage)?
            }
            None => sql.clone(),
        };
        let dialect = Dialect::of(&source.url()?).map_err(usage)?;
        if let Some(other) = &self.action_database {
            let other = Dialect::of(other).context("--action-database").map_err(usage)?;
            if other != dialect {
                return Err(usage(anyhow!("--action-database has to be of the same kind as the database of the rows")));
            }
        }
        let statement = Statement::parse(&sql, dialect).context("cannot use --sql").map_err(usage)?;
        Ok(Some(Action::Sql { statement, database: None }))
    }

    /// Connects to the statement's own database, where it has one. Fails where the statement would change rows under other keys
    /// than are announced. Warns where one on the table that is read cannot be undone, or fails where that is needed.
    pub async fn open(
        &self,
        action: &mut Option<Action>,
        session: &Session,
        (options, source): (&SourceOptions, &mut Source),
        needs_transactions: bool,
    ) -> Result<()> {
        let Some(Action::Sql { statement, database }) = action else { return Ok(()) };
        let (key, table) = (key_names(source), options.table.as_deref().filter(|_| options.query.is_none()));
        let checked = statement.check_assignments(&key, table).and_then(|()| statement.check_order(&key));
        checked.context("cannot use --sql").map_err(usage)?;
        if statement.may_scan(key.len()) {
            let row = format!("({}) IN (:keys)", key.join(", "));
            warn!(
                "each chunk may go through the whole table, and lock it: of several key columns an index serves only {row}"
            );
        }
        if let Some(url) = &self.action_database {
            let opened = Database::open_for(url, session).await;
            *database = Some(opened.map_err(|trouble| failure(trouble.context("--action-database")))?);
            if let Source::Keys { database, .. } = source {
                // It has told the types of the key.
                *database = None;
            }
        }
        let (Some(table), Some(database)) = (&options.table, database.as_mut().or_else(|| source.database())) else {
            return Ok(());
        };
        let engine = database.engine_without_transactions(table).await.map_err(failure)?;
        let Some(engine) = engine else { return Ok(()) };
        let known = format!("table {table} knows no transactions ({engine}); run: ALTER TABLE {table} ENGINE=InnoDB");
        if needs_transactions {
            return Err(Exit::Misconfigured.because(anyhow!("--checkpoint-table changes no row twice, but {known}")));
        }
        warn!("of a statement that is refused or cut off a part may stay: {known}");
        Ok(())
    }

    /// Fails where a chunk may have more keys than the database binds to the statement.
    pub fn check_size(action: Option<&Action>, source: &Source, chunk: usize) -> Result<()> {
        let Some(Action::Sql { statement, .. }) = action else { return Ok(()) };
        statement.check_size(chunk, key_names(source).len()).map_err(failure)
    }
}

/// The columns by which the rows are announced; mere lines have none.
fn key_names(source: &Source) -> Vec<String> {
    match source {
        Source::Rows { scan, .. } => scan.key().names(),
        Source::Keys { key, .. } => key.names(),
        Source::Lines(_) => Vec::new(),
    }
}
