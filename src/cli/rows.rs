//! What ksync-stream reads, and what it does to it.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use clap::{Args, ValueEnum};

use crate::database::{self, Database, Dialect, Rows, Statement};
use crate::exit::Exit;
use crate::handler::{Command, Environment, Terms};
use crate::progress::{Format, Progress};
use crate::stream::{Action, Lines, Source, failure};

/// The member of a line of stdin that makes its record key.
const DEFAULT_KEY: &str = "id";

/// Which rows are announced.
#[derive(Args, Clone, Debug)]
pub struct SourceOptions {
    /// Reads JSON lines from stdin, each a payload
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with_all = ["table", "query", "sql"])]
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
}

/// What is done to them, chunk by chunk.
#[derive(Args, Clone, Debug)]
pub struct ActionOptions {
    /// Statement to run on each chunk, or @FILE; :keys stands for the keys of its rows
    #[arg(long, env = "KSYNC_SQL", value_name = "STATEMENT", conflicts_with = "command", help_heading = "Action")]
    pub sql: Option<String>,

    /// Command to run on each chunk, its payload lines on stdin
    #[arg(last = true, value_name = "COMMAND", help_heading = "Action")]
    pub command: Vec<String>,
}

impl SourceOptions {
    /// Whether a source is named at all; seen without opening anything.
    pub fn check(&self) -> Result<()> {
        if self.stdin.is_none() && self.table.is_none() && self.query.is_none() {
            return Err(usage(anyhow!("nothing to read: name --table or --query, or - for JSON lines on stdin")));
        }
        if self.stdin.is_none() {
            self.url()?;
        }
        Ok(())
    }

    pub(super) fn url(&self) -> Result<String> {
        let url = self.database.clone().or_else(|| std::env::var("DATABASE_URL").ok());
        url.ok_or_else(|| usage(anyhow!("no database is named: set DATABASE_URL, or KSYNC_DATABASE, or --database")))
    }

    /// Opens the source, with about how many rows it has where that is known.
    pub async fn open(&self) -> Result<(Source, Option<u64>)> {
        if self.stdin.is_some() {
            let key = if self.key.is_empty() { vec![DEFAULT_KEY.to_owned()] } else { self.key.clone() };
            return Ok((Source::Lines(Lines::new(key)), None));
        }
        let rows = match (&self.query, &self.table) {
            (Some(query), _) => Rows::Query(query.clone()),
            (None, Some(table)) => Rows::Table { table: table.clone(), filter: self.filter.clone() },
            (None, None) => return Err(usage(anyhow!("nothing to read"))),
        };
        let source = database::Source { rows, key: self.key.clone() };
        let mut database = Database::open(&self.url()?).await.map_err(failure)?;
        let scan = database.prepare(&source).await.map_err(failure)?;
        let total = database.estimate(&source).await.map_err(failure)?;
        Ok((Source::Rows { database, scan }, total))
    }
}

impl ActionOptions {
    /// What is to be done; seen without opening anything but the statement's file.
    pub fn action(&self, source: &SourceOptions) -> Result<Option<Action>> {
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
        Ok(Some(Action::Sql(Statement::parse(&sql, dialect).context("cannot use --sql").map_err(usage)?)))
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
    /// `total` is about how many rows there are.
    pub fn start(self, is_quiet: bool, total: Option<u64>) -> Progress {
        let format = match self {
            _ if is_quiet => Format::Nothing,
            ProgressOption::Auto => Format::Auto,
            ProgressOption::Plain => Format::Plain,
            ProgressOption::Json => Format::Json,
            ProgressOption::None => Format::Nothing,
        };
        Progress::new(format, "rows", total)
    }
}
