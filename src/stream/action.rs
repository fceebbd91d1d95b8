//! What is done to the rows of a chunk: a statement, or a command that gets their payloads.

use std::future::{Future, pending, ready};

use anyhow::{Result, anyhow};

use super::failure;
use super::source::{Chunk, Source};
use crate::announce::{Phases, named};
use crate::database::{Database, Mark, Statement};
use crate::exit::Exit;
use crate::handler::{Command, Failed, Failure, Input, Kind, Outcome, new_id};
use crate::message::Change;
use crate::record::write_without_breaks;

/// What is done to the rows of a chunk between its messages.
pub enum Action {
    Sql {
        statement: Statement,
        /// Where it is run, if that is not where the rows are read.
        database: Option<Database>,
    },
    Command(Command),
}

impl Action {
    /// Where it is run, if that is not where the rows are read.
    pub(super) fn database(&mut self) -> Option<&mut Database> {
        match self {
            Action::Sql { database, .. } => database.as_mut(),
            Action::Command(_) => None,
        }
    }
}

/// Lets `meanwhile` finish while nothing is asked of the databases, whose sessions are kept awake.
pub async fn wait<T>(
    action: Option<&mut Action>,
    source: &mut Source,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<T> {
    wait_beside(action, kept_awake(source.database(), meanwhile)).await
}

/// The same while the source is asked.
pub(super) async fn wait_beside<T>(
    action: Option<&mut Action>,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<T> {
    kept_awake(action.and_then(Action::database), meanwhile).await
}

pub(super) async fn kept_awake<T>(
    database: Option<&mut Database>,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<T> {
    match database {
        Some(database) => database.kept_awake(meanwhile).await.map_err(failure)?,
        None => meanwhile.await,
    }
}

/// Where a statement is run.
pub(super) fn target<'a>(action: Option<&'a mut Action>, source: &'a mut Source) -> Option<&'a mut Database> {
    action.and_then(Action::database).or_else(|| source.database())
}

/// Does it to the rows of the chunk. Gives how many a statement has touched, if it counts them.
///
/// `mark` is what the transaction of a statement writes along.
pub(super) async fn act(
    action: Option<&mut Action>,
    source: &mut Source,
    (chunk, phases): (&Chunk, Phases),
    mark: Option<Mark<'_>>,
) -> Result<Option<u64>> {
    match (action, chunk) {
        (None, _) => Ok(None),
        (Some(Action::Sql { statement, database }), Chunk::Rows(rows)) => {
            let ran = match (database, source.database()) {
                (Some(database), Some(source)) => {
                    source.kept_awake_if_it_lives(database.run(statement, rows, mark.as_ref())).await
                }
                (Some(database), None) | (None, Some(database)) => database.run(statement, rows, mark.as_ref()).await,
                (None, None) => return Err(anyhow!("a statement needs a database")),
            };
            ran.map_err(failure).map(|touched| statement.counts_changes().then_some(touched))
        }
        (Some(Action::Sql { .. }), _) => Err(anyhow!("a statement needs rows of a database")),
        (Some(Action::Command(command)), _) => {
            wait(None, source, run(command, chunk.changes(), phases)).await.map(|()| None)
        }
    }
}

/// Gives the command the chunk's payloads; its end decides whether the run goes on.
async fn run(command: &Command, changes: &[Change], phases: Phases) -> Result<()> {
    let mut lines = Vec::with_capacity(changes.iter().map(|change| change.payload.len() + 1).sum());
    for change in changes {
        write_without_breaks(&mut lines, &change.payload);
        lines.push(b'\n');
    }
    let environment = [("KSYNC_BATCH_ID", new_id()), ("KSYNC_BATCH_COUNT", changes.len().to_string())];
    let input = Input { label: "action", lines: &lines, environment: &environment, told: None };
    let outlook = match phases {
        Phases::Both | Phases::DelayOnly => "; the delay messages of its chunk are sent".to_owned(),
        Phases::InstantOnly => format!(
            "; what it may have changed is announced to nobody: announce the rows of this chunk{} again",
            named(changes)
        ),
    };
    ended(command.run(input, ready(true), pending()).await, "the action", &outlook)
}

/// What the end of a command means for the run.
pub fn ended(outcome: Outcome, what: &str, outlook: &str) -> Result<()> {
    match outcome {
        Outcome::Done(_) => Ok(()),
        Outcome::Failed(Failed { failure, .. }) => {
            let exit = match failure.kind() {
                Kind::Temporary => Exit::Again,
                Kind::Misconfigured => Exit::Misconfigured,
                Kind::Permanent | Kind::Failed => Exit::Person,
            };
            let why = match failure {
                // Of ksync-consume one may be allowed to leave some.
                Failure::Unread(bytes) => format!("exit status 0 with {bytes} bytes of its input unread"),
                other => other.to_string(),
            };
            Err(exit.because(anyhow!("{what} failed: {why}{outlook}")))
        }
        Outcome::Stopped => Err(Exit::Again.because(anyhow!("{what} was stopped"))),
    }
}
