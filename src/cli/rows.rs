//! What ksync-stream reads.

use anyhow::{Context, Error, Result, anyhow};
use clap::Args;
use log::warn;

use super::ActionOptions;
use super::config::DATABASE_URL_FILE;
use crate::database::{self, Database, Dialect, Payload, Rows, Scan, Session};
use crate::exit::Exit;
use crate::stream::{Lines, Source, failure};
use crate::topic::Topic;
use crate::verify::Primary;

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
        self.database.clone().ok_or_else(|| {
            let but = match std::env::var_os(DATABASE_URL_FILE) {
                Some(file) => format!("; {} of {DATABASE_URL_FILE} cannot be read", file.display()),
                None => String::new(),
            };
            usage(anyhow!("no database is named: set DATABASE_URL, or KSYNC_DATABASE, or --database{but}"))
        })
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
    pub(super) fn limit(&self) -> Result<Option<usize>> {
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

pub(super) fn usage(error: Error) -> Error {
    Exit::Usage.because(error)
}
