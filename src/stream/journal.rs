//! Keeps how far a run is, and finds out at its start how far the runs before it came.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use log::info;

use super::action::Action;
use super::checkpoint::Checkpoint;
use super::failure;
use super::file::CheckpointFile;
use super::job::Job;
use super::source::{Chunk, Source};
use crate::announce::Phases;
use crate::database::{Bookmark, Database, Lock, Mark, Trouble};
use crate::exit::Exit;

/// What is known of a job whose rows can be read again.
pub struct Resume {
    pub job: Job,
    pub keep: Keep,
    /// Whatever was kept.
    pub begins_anew: bool,
}

/// Where it is kept how far the job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    Nowhere,
    File(PathBuf),
    /// In a table of the database, by the transactions of the action.
    Table(String),
}

/// Keeps how far the run is, where that is wanted.
pub(super) struct Journal {
    kept: Option<Kept>,
    _lock: Option<Lock>,
    /// Whether the next run can read the same rows.
    is_repeatable: bool,
}

struct Kept {
    keeper: Keeper,
    /// What is kept.
    checkpoint: Checkpoint,
    /// What will be when the chunk under way is done.
    next: Checkpoint,
}

enum Keeper {
    File(CheckpointFile),
    Table(Bookmark),
}

impl Journal {
    /// Locks the job and moves the source behind what is done. `None` where nothing is left to do.
    ///
    /// Fails with status 4 where another process is at the same job, with 78 where what is kept is another job's, or cannot
    /// be read or written. The job is locked, and kept in a table, where its statements are run.
    pub async fn begin(
        resume: Option<Resume>,
        source: &mut Source,
        action: Option<&mut Action>,
    ) -> Result<Option<Journal>> {
        let (Some(Resume { mut job, keep, begins_anew }), Source::Rows { database, scan }) = (resume, source) else {
            return Ok(Some(Journal { kept: None, _lock: None, is_repeatable: false }));
        };
        let has_action = action.is_some();
        let database = match action {
            Some(Action::Sql { database: Some(other), .. }) => other,
            _ => database,
        };
        let misconfigured = |error| match Exit::of(&error) {
            Exit::Person => Exit::Misconfigured.because(error),
            _ => error,
        };
        let file = match &keep {
            Keep::File(path) => Some(CheckpointFile::open(path).map_err(misconfigured)?),
            Keep::Nowhere | Keep::Table(_) => None,
        };
        let is_locked = has_action || keep != Keep::Nowhere;
        let lock = match is_locked {
            true => Some(database.lock(job.number()).await.map_err(|trouble| named(trouble, &job))?),
            false => None,
        };
        let (keeper, found) = match (file, keep) {
            (Some(file), _) => {
                let found = if begins_anew { None } else { file.read().map_err(misconfigured)? };
                (Keeper::File(file), found)
            }
            (None, Keep::Table(table)) => {
                let (bookmark, found) = database.bookmark(&table, job.number()).await.map_err(failure)?;
                // What lies in the database moves with it.
                job = job.anywhere();
                (Keeper::Table(bookmark), found.filter(|_| !begins_anew))
            }
            (None, _) => return Ok(Some(Journal { kept: None, _lock: lock, is_repeatable: true })),
        };
        let found = found.map(|text| Checkpoint::parse(&text)).transpose();
        let found = found.with_context(|| format!("cannot use {}", keeper.label())).map_err(misconfigured)?;
        let Some(checkpoint) = go_on(found, job, &keeper, has_action)? else { return Ok(None) };
        if let Some(last) = &checkpoint.last {
            scan.go_on_behind(last).map_err(failure)?;
        }
        let text = checkpoint.text()?;
        match &keeper {
            Keeper::File(file) => file.write(text).await.map_err(misconfigured)?,
            Keeper::Table(bookmark) => database.begin(bookmark, &text).await.map_err(failure)?,
        }
        let kept = Kept { keeper, next: checkpoint.clone(), checkpoint };
        Ok(Some(Journal { kept: Some(kept), _lock: lock, is_repeatable: true }))
    }

    /// How many rows were done before this run.
    pub fn rows(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.checkpoint.rows)
    }

    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Before the action of a chunk: what its transaction has to write along.
    pub fn begin_chunk(&mut self, chunk: &Chunk, phases: Phases) -> Result<Option<Mark<'_>>> {
        let (Some(kept), Chunk::Rows(rows)) = (&mut self.kept, chunk) else { return Ok(None) };
        let count = rows.changes.len() as u64;
        let messages = if phases == Phases::Both { 2 * count } else { count };
        kept.next = kept.checkpoint.after(rows.end(), count, messages);
        match &kept.keeper {
            Keeper::File(_) => Ok(None),
            Keeper::Table(bookmark) => Ok(Some(bookmark.mark(&kept.next.text()?))),
        }
    }

    /// After the last acknowledgement of a chunk.
    pub async fn end_chunk(&mut self) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.checkpoint = kept.next.clone();
        match &kept.keeper {
            Keeper::File(file) => file.write(kept.checkpoint.text()?).await,
            Keeper::Table(_) => Ok(()),
        }
    }

    /// After the last row; `database` is where the statements were run.
    pub async fn finish(&mut self, database: Option<&mut Database>) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.checkpoint = kept.checkpoint.at_end();
        let text = kept.checkpoint.text()?;
        match (&kept.keeper, database) {
            (Keeper::File(file), _) => file.write(text).await,
            (Keeper::Table(bookmark), Some(database)) => database.write(&bookmark.mark(&text)).await.map_err(failure),
            (Keeper::Table(_), None) => Err(anyhow!("a table keeps how far statements are, and there was none")),
        }
    }

    /// What becomes of the rest where this run ends early.
    pub fn outlook(&self) -> String {
        match &self.kept {
            Some(Kept { checkpoint: Checkpoint { last: Some(last), .. }, .. }) => {
                format!("; run it again to go on behind key {last}")
            }
            Some(_) => "; run it again to go on".to_owned(),
            None if self.is_repeatable => "; without a --checkpoint the next run begins with the first row".to_owned(),
            None => String::new(),
        }
    }
}

impl Keeper {
    fn label(&self) -> String {
        match self {
            Keeper::File(file) => format!("the checkpoint {}", file.path.display()),
            Keeper::Table(_) => "the checkpoint in the database".to_owned(),
        }
    }
}

/// What this run begins with, `None` where nothing is left to do.
fn go_on(found: Option<Checkpoint>, job: Job, keeper: &Keeper, has_action: bool) -> Result<Option<Checkpoint>> {
    let Some(found) = found else { return Ok(Some(Checkpoint::new(job))) };
    let label = keeper.label();
    let differences = job.differences(&found.job);
    if !differences.is_empty() {
        let error = anyhow!(
            "{label} is of another job: {}; name another one, or begin this job anew with --restart",
            differences.join("; ")
        );
        return Err(Exit::Misconfigured.because(error));
    }
    let Checkpoint { rows, written, .. } = &found;
    match (&found.last, found.finished) {
        (_, true) if has_action => {
            info!("{label} says that this job was finished at {written}, with {rows} rows; --restart begins it anew");
            Ok(None)
        }
        (_, true) => {
            info!("{label} says that this job was finished at {written}, with {rows} rows: beginning anew");
            Ok(Some(Checkpoint::new(job)))
        }
        (Some(last), false) => {
            info!("going on behind key {last}: {rows} rows were done by {written}");
            Ok(Some(found))
        }
        (None, false) => Ok(Some(found)),
    }
}

fn named(trouble: Trouble, job: &Job) -> anyhow::Error {
    match trouble {
        Trouble::Busy(error) => Exit::Busy.because(error.context(format!("cannot begin ({job})"))),
        other => failure(other),
    }
}
