//! What is done to the rows of a chunk: a statement, or a command that gets their payloads.

use std::future::{pending, ready};

use anyhow::{Result, anyhow};

use super::failure;
use super::source::{Chunk, Source};
use crate::database::{Database, Mark, Statement};
use crate::exit::Exit;
use crate::handler::{Command, Failed, Input, Kind, Outcome};
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

/// Where a statement is run.
pub(super) fn target<'a>(action: Option<&'a mut Action>, source: &'a mut Source) -> Option<&'a mut Database> {
    match action {
        Some(Action::Sql { database: Some(database), .. }) => Some(database),
        _ => source.database(),
    }
}

/// Does it to the rows of the chunk.
///
/// `mark` is what the transaction of a statement writes along.
pub(super) async fn act(
    action: Option<&mut Action>,
    source: &mut Source,
    chunk: &Chunk,
    mark: Option<Mark<'_>>,
) -> Result<()> {
    match (action, source, chunk) {
        (None, _, _) => Ok(()),
        (Some(Action::Sql { statement, database: other }), Source::Rows { database, .. }, Chunk::Rows(rows)) => {
            let database = other.as_mut().unwrap_or(database);
            database.run(statement, rows, mark.as_ref()).await.map_err(failure).map(drop)
        }
        (Some(Action::Sql { .. }), _, _) => Err(anyhow!("a statement needs rows of a database")),
        (Some(Action::Command(command)), _, _) => run(command, chunk.changes()).await,
    }
}

/// Gives the command the chunk's payloads; its end decides whether the run goes on.
async fn run(command: &Command, changes: &[Change]) -> Result<()> {
    let mut lines = Vec::with_capacity(changes.iter().map(|change| change.payload.len() + 1).sum());
    for change in changes {
        write_without_breaks(&mut lines, &change.payload);
        lines.push(b'\n');
    }
    let environment = [("KSYNC_BATCH_COUNT", changes.len().to_string())];
    let input = Input { label: "action", lines: &lines, environment: &environment };
    match command.run(input, ready(true), pending()).await {
        Outcome::Done(_) => Ok(()),
        Outcome::Failed(Failed { failure, .. }) => {
            let exit = match failure.kind() {
                Kind::Temporary => Exit::Again,
                Kind::Misconfigured => Exit::Misconfigured,
                Kind::Permanent | Kind::Failed => Exit::Person,
            };
            Err(exit.because(anyhow!("the action failed: {failure}; the delay messages of its chunk are sent")))
        }
        Outcome::Stopped => Err(Exit::Again.because(anyhow!("the action was stopped"))),
    }
}
