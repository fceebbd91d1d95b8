//! What ksync-stream reads, and what it does to it.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use clap::{Args, ValueEnum};
use log::warn;

use crate::database::{self, Database, Dialect, Payload, Rows, Scan, Session, Statement};
use crate::exit::Exit;
use crate::handler::{Command, Environment, Terms};
use crate::progress::{Format, Progress};
use crate::stream::{Action, Lines, Source, failure};
use crate::topic::Topic;
use crate::verify::Primary;

use super::duration;

/// The member of a line of stdin that makes its record key.
const DEFAULT_KEY: &str = "id";

/// Which rows are announced.
#[derive(Args, Clone, Debug)]
pub struct SourceOptions {
    /// Reads JSON lines from stdin, each a payload; with --sql each names a row of --table by its key
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with_all = ["query", "filter"])]
    pub stdin: Option<String>,

    /// Database to read rows of [default: what DATABASE_URL says]
    #[arg(long, env = "KSYNC_DATABASE", hide_env_values = true, value_name = "URL", help_heading = "Source")]
    pub database: Option<String>,

    /// Table whose rows are announced
    #[arg(long, env = "KSYNC_TABLE", value_name = "TABLE", help_heading = "Source")]
    pub table: Option<String>,

    /// Only rows for which this holds
    #[arg(long = "where", env = "KSYNC_WHERE", value_name = "SQL", requires = "table", help_heading = "Source")]
    pub filter: Option<String>,

    /// Query whose rows are announced
    #[arg(
        long,
        env = "KSYNC_QUERY",
        value_name = "SQL",
        conflicts_with = "table",
        requires = "key",
        help_heading = "Source"
    )]
    pub query: Option<String>,

    /// Column or member that makes the record key [default: the primary key; id for stdin]
    #[arg(long, env = "KSYNC_KEY", value_name = "COLUMN,..", value_delimiter = ',', help_heading = "Source")]
    pub key: Vec<String>,

    /// What is announced of a row: its key, all of it (row), or these columns; as it is before the action
    #[arg(
        long,
        env = "KSYNC_PAYLOAD",
        value_name = "key|row|COLUMN,..",
        value_delimiter = ',',
        default_value = "key",
        conflicts_with = "stdin",
        help_heading = "Source"
    )]
    pub payload: Vec<String>,

    /// Statements to run once a session has begun, with that of the action too
    #[arg(long, env = "KSYNC_SESSION_SQL", value_name = "SQL", help_heading = "Source")]
    pub session_sql: Option<String>,
}

/// What is done to them, chunk by chunk.
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

impl SourceOptions {
    /// Whether a source is named at all; seen without opening anything.
    pub fn check(&self, action: &ActionOptions) -> Result<()> {
        let has_table = self.table.is_some();
        match (self.stdin.is_some(), action.sql.is_some()) {
            (false, _) if !has_table && self.query.is_none() => {
                Err(usage(anyhow!("nothing to read: name --table or --query, or - for JSON lines on stdin")))
            }
            (true, true) if !has_table => Err(usage(anyhow!(
                "--sql needs the --table whose rows the lines of stdin name: the columns of its key are the :keys"
            ))),
            (true, false) if has_table => Err(usage(anyhow!(
                "--table is of no use with lines of stdin, unless --sql changes its rows; leave out - or --table"
            ))),
            (true, false) => Ok(()),
            _ => self.url().map(drop),
        }
    }

    /// Those of a payload that make its record key.
    pub(super) fn members(&self) -> Vec<String> {
        if self.key.is_empty() { vec![DEFAULT_KEY.to_owned()] } else { self.key.clone() }
    }

    pub(super) fn url(&self) -> Result<String> {
        self.database
            .clone()
            .ok_or_else(|| usage(anyhow!("no database is named: set DATABASE_URL, or KSYNC_DATABASE, or --database")))
    }

    /// How the sessions are that read the rows and run the statement.
    pub fn session(&self, topic: &Topic, action: &ActionOptions) -> Session {
        let table = self.table.as_ref().map_or(String::new(), |table| format!("/{table}"));
        let name = Some(format!("ksync-stream/{topic}{table}"));
        Session { name, statement_timeout: action.statement_timeout, sql: self.session_sql.clone() }
    }

    fn payload(&self) -> Payload {
        match self.payload.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["key"] => Payload::Key,
            ["row"] => Payload::Row,
            _ => Payload::Columns(self.payload.clone()),
        }
    }

    /// Opens the source, which is not read yet.
    pub async fn open(&self, session: &Session) -> Result<Source> {
        let Some(source) = self.of_database(self.payload()) else {
            return Ok(Source::Lines(Lines::new(self.members())));
        };
        let mut database = self.database(session).await?;
        if self.stdin.is_some() {
            let key = database.key(&source).await.map_err(failure)?;
            database.refuse_long_decimals(&source, &key.names()).await.map_err(failure)?;
            return Ok(Source::Keys { lines: Lines::new(key.names()), database: Some(database), key });
        }
        let scan = database.prepare(&source).await.map_err(failure)?;
        database.refuse_long_decimals(&source, &scan.key().names()).await.map_err(failure)?;
        Ok(Source::Rows { database, scan })
    }

    /// For rows that must not have the same key: warns where no index says so, or looks for such rows where all are counted.
    pub async fn check_keys(&self, database: &mut Database, scan: &Scan, is_counted: bool) -> Result<()> {
        if database.has_unique_key(scan).await.map_err(failure)? {
            return Ok(());
        }
        if is_counted {
            return database.refuse_shared_keys(scan).await.map_err(failure);
        }
        // A query has no indexes.
        if self.table.is_some() {
            warn!(
                "no unique index of {} covers its key {}: should rows have the same one, the run ends at them, behind the chunks \
                 before; --count looks for them first",
                scan.label(),
                scan.key_names()
            );
        }
        Ok(())
    }

    /// About how many rows a scan has left, of which so many were done before, where that is known; exactly where they are to be
    /// counted. Warns where a chunk of so many rows costs far more than to read them.
    pub async fn survey(
        &self,
        database: &mut Database,
        (scan, done): (&Scan, u64),
        (chunk, is_counted): (usize, bool),
    ) -> Result<Option<u64>> {
        // With more than keys the first chunks are smaller.
        if self.limit()?.is_some_and(|rows| rows > chunk || scan.tells_more_than_keys()) {
            warn!(
                "the query says itself how many rows it gives (LIMIT, OFFSET, FETCH), and is asked again for each chunk: they are \
                 others where rows change meanwhile, or have no fixed order; better write a condition"
            );
        }
        if let Some(effort) = database.costly(scan, chunk).await.map_err(failure)? {
            warn!(
                "no index of {} has the order of its key {}: each chunk takes a {effort}; make one, or name another --key",
                scan.label(),
                scan.key_names()
            );
        }
        if is_counted {
            return database.count(scan).await.map(Some).map_err(failure);
        }
        let Some(source) = self.of_database(Payload::Key) else { return Ok(None) };
        database.estimate(&source, (scan, done)).await.map_err(failure)
    }

    /// The rows of the database that are named, if any are.
    fn of_database(&self, payload: Payload) -> Option<database::Source> {
        let rows = match (&self.query, &self.table) {
            (Some(query), _) => Rows::Query(query.clone()),
            (None, Some(table)) => Rows::Table { table: table.clone(), filter: self.filter.clone() },
            (None, None) => return None,
        };
        Some(database::Source { rows, key: self.key.clone(), payload })
    }

    /// How many rows the query gives by its own words, if it says so.
    fn limit(&self) -> Result<Option<usize>> {
        let Some(query) = &self.query else { return Ok(None) };
        let dialect = Dialect::of(&self.url()?).map_err(usage)?;
        Rows::Query(query.clone()).limit(dialect).context("cannot use the query").map_err(usage)
    }

    async fn database(&self, session: &Session) -> Result<Database> {
        Database::open_for(&self.url()?, session).await.map_err(failure)
    }

    /// Opens the rows for a comparison by these columns; all are wanted where none is named. Warns and counts as
    /// [`SourceOptions::survey`] does.
    pub(super) async fn primary(
        &self,
        version: &[String],
        session: &Session,
        chunk: usize,
        is_counted: bool,
    ) -> Result<(Primary, Option<u64>)> {
        let source =
            |payload| self.of_database(payload).ok_or_else(|| usage(anyhow!("nothing to compare: name --table")));
        let mut database = self.database(session).await?;
        let versions = database.prepare(&source(Payload::Json(version.to_vec()))?).await.map_err(failure)?;
        let key = versions.key().names();
        database.refuse_long_decimals(&source(Payload::Key)?, &key).await.map_err(failure)?;
        let total = self.survey(&mut database, (&versions, 0), (chunk, is_counted)).await?;
        let keys = database.prepare(&source(Payload::Key)?).await.map_err(failure)?;
        let announced = database.prepare(&source(self.payload())?).await.map_err(failure)?;
        let is_one_column = version.len() == 1;
        Ok((Primary { database, versions, is_one_column, keys, announced }, total))
    }
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

fn usage(error: Error) -> Error {
    Exit::Usage.because(error)
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressOption {
    /// A bar on a terminal, else lines in the log
    Auto,
    /// Lines in the log
    Plain,
    /// A JSON object a line on stderr
    Json,
    /// Nothing
    None,
}

impl ProgressOption {
    /// `what` is counted, of which there are about `total`.
    pub fn start(self, is_quiet: bool, what: &'static str, total: Option<u64>) -> Progress {
        let format = match self {
            _ if is_quiet => Format::Nothing,
            ProgressOption::Auto => Format::Auto,
            ProgressOption::Plain => Format::Plain,
            ProgressOption::Json => Format::Json,
            ProgressOption::None => Format::Nothing,
        };
        Progress::new(format, what, total)
    }
}
