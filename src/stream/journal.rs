//! Keeps how far a run is, and finds out at its start how far the runs before it came.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use log::{info, warn};

use super::action::{Action, target};
use super::checkpoint::Checkpoint;
use super::failure;
use super::file::CheckpointFile;
use super::job::Job;
use super::source::{Chunk, Source};
use crate::announce::Phases;
use crate::database::{Bookmark, Database, Lock, Mark, Scan, Trouble};
use crate::exit::Exit;

/// What is known of a job whose rows can be read again.
pub struct Resume {
    pub job: Job,
    pub keep: Keep,
    /// Whatever was kept.
    begins_anew: bool,
    file: Option<CheckpointFile>,
    lock: Option<Lock>,
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
    lock: Option<Lock>,
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
    /// Moves the source behind what is done. `None` where nothing is left to do.
    ///
    /// Fails with status 78 where what is kept is another job's, or cannot be read or written. It is kept in a table where its
    /// statements are run.
    pub async fn begin(
        resume: Option<Resume>,
        source: &mut Source,
        action: Option<&mut Action>,
    ) -> Result<Option<Journal>> {
        let (Some(mut resume), Source::Rows { database, scan }) = (resume, source) else {
            return Ok(Some(Journal { kept: None, lock: None, is_repeatable: false }));
        };
        let has_action = action.is_some();
        let database = action.and_then(Action::database).unwrap_or(database);
        let (file, lock) = (resume.file.take(), resume.lock.take());
        let Resume { job, keep, .. } = &resume;
        let found = resume.kept(Some(&mut *database)).await?;
        let mut beginning = resume.beginning(found, has_action)?;
        let keeper = match (file, keep) {
            (Some(file), _) => Keeper::File(file),
            (None, Keep::Table(table)) => {
                // A run that is refused must not get this far: where the lock does not hold, this takes the row from one at work.
                let (bookmark, found) = database.bookmark(table, job.number()).await.map_err(failure)?;
                beginning = resume.beginning(found, has_action)?;
                Keeper::Table(bookmark)
            }
            (None, _) => return Ok(Some(Journal { kept: None, lock, is_repeatable: true })),
        };
        if let Some(told) = &beginning.told {
            info!("{told}");
        }
        if beginning.is_over {
            return Ok(None);
        }
        beginning.apply(scan)?;
        let checkpoint = beginning.checkpoint;
        let text = checkpoint.text()?;
        match &keeper {
            Keeper::File(file) => file.write(text).await.map_err(misconfigured)?,
            Keeper::Table(bookmark) => database.begin(bookmark, &text).await.map_err(failure)?,
        }
        let kept = Kept { keeper, next: checkpoint.clone(), checkpoint };
        Ok(Some(Journal { kept: Some(kept), lock, is_repeatable: true }))
    }

    /// Whether the session of the rows, or of the action, keeps other runs of the job away.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Before the action of a chunk: what its transaction has to write along.
    pub fn begin_chunk(&mut self, chunk: &Chunk, phases: Phases) -> Result<Option<Mark<'_>>> {
        let (Some(kept), Chunk::Rows(rows)) = (&mut self.kept, chunk) else { return Ok(None) };
        let count = rows.changes.len() as u64;
        kept.next = kept.checkpoint.after(rows.end(), count, count * phases.count());
        match &kept.keeper {
            Keeper::File(_) => Ok(None),
            Keeper::Table(bookmark) => Ok(Some(bookmark.mark(&kept.next.text()?))),
        }
    }

    /// After the last acknowledgement of a chunk.
    pub async fn end_chunk(&mut self) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if let Keeper::File(file) = &kept.keeper {
            file.write(kept.next.text()?).await?;
        }
        kept.checkpoint = kept.next.clone();
        Ok(())
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

    /// What becomes of the rest where this run ends early. In a table it may be further than a run knows that has failed: behind
    /// a commit that nobody answered for, or whose instant messages did not arrive.
    pub fn outlook(&self, has_failed: bool) -> String {
        match &self.kept {
            Some(Kept { keeper: Keeper::Table(_), .. }) if has_failed => "; run it again to go on".to_owned(),
            Some(Kept { checkpoint: Checkpoint { last: Some(last), .. }, .. }) => {
                format!("; run it again to go on behind key {last}")
            }
            Some(_) => "; run it again to go on".to_owned(),
            None if self.is_repeatable => "; without a --checkpoint the next run begins with the first row".to_owned(),
            None => String::new(),
        }
    }
}

impl Keep {
    fn label(&self) -> String {
        match self {
            Keep::Nowhere => "nothing".to_owned(),
            Keep::File(path) => format!("the checkpoint {}", path.display()),
            Keep::Table(table) => format!("the checkpoint in table {table}"),
        }
    }
}

/// With what a run begins.
pub struct Beginning {
    pub(super) checkpoint: Checkpoint,
    /// Nothing is left to do.
    pub is_over: bool,
    /// What a person is told of it.
    pub(super) told: Option<String>,
}

impl Beginning {
    /// Moves the scan behind what is done.
    pub fn apply(&self, scan: &mut Scan) -> Result<()> {
        match &self.checkpoint.last {
            Some(last) => scan.go_on_behind(last).map_err(failure),
            None => Ok(()),
        }
    }

    /// How many rows were done before.
    pub fn rows(&self) -> u64 {
        self.checkpoint.rows
    }
}

impl Resume {
    pub fn new(job: Job, keep: Keep, begins_anew: bool) -> Resume {
        Resume { job, keep, begins_anew, file: None, lock: None }
    }

    /// Locks the job where its statements are run, and its checkpoint, before anything is done that takes long. A re-index of
    /// which nothing is kept may run twice.
    ///
    /// Fails with status 4 where another process is at the same job, with 78 where the checkpoint cannot be used.
    pub async fn lock(&mut self, action: Option<&mut Action>, source: &mut Source) -> Result<()> {
        let is_to_be_locked = action.is_some() || self.keep != Keep::Nowhere;
        let Some(database) = target(action, source).filter(|_| is_to_be_locked) else { return Ok(()) };
        if let Keep::File(path) = &self.keep {
            self.file = Some(CheckpointFile::open(path).map_err(misconfigured)?);
        }
        let lock = database.lock(self.job.number()).await;
        self.lock = Some(lock.map_err(|trouble| named(trouble, &self.job))?);
        if database.is_pooled().await {
            warn!(
                "a pooler in transaction mode is in front of the database: there the lock that keeps a second run of this job \
                 away does not hold, and what a session sets may be lost; connect to the server itself"
            );
        }
        Ok(())
    }

    /// With what a run would begin; locks nothing, and makes nothing.
    pub async fn look(&self, action: Option<&mut Action>, source: &mut Source) -> Result<Beginning> {
        let has_action = action.is_some();
        let found = self.kept(target(action, source)).await?;
        self.beginning(found, has_action)
    }

    /// What was kept last, unless the job is begun anew.
    async fn kept(&self, database: Option<&mut Database>) -> Result<Option<String>> {
        match (&self.keep, database) {
            _ if self.begins_anew => Ok(None),
            (Keep::File(path), _) => CheckpointFile::read(path).map_err(misconfigured),
            (Keep::Table(table), Some(database)) => database.kept(table, self.job.number()).await.map_err(failure),
            (Keep::Nowhere | Keep::Table(_), _) => Ok(None),
        }
    }

    /// Fails with status 78 where what was found is another job's, or cannot be read.
    fn beginning(&self, found: Option<String>, has_action: bool) -> Result<Beginning> {
        let (label, job) = (self.keep.label(), self.job.clone());
        let job = match &self.keep {
            // What lies in the database moves with it.
            Keep::Table(_) => job.anywhere(),
            Keep::File(_) | Keep::Nowhere => job,
        };
        let found = parse(found.filter(|_| !self.begins_anew), &label).map_err(misconfigured)?;
        go_on(found, job, &label, has_action)
    }
}

fn misconfigured(error: anyhow::Error) -> anyhow::Error {
    match Exit::of(&error) {
        Exit::Person => Exit::Misconfigured.because(error),
        _ => error,
    }
}

fn parse(found: Option<String>, label: &str) -> Result<Option<Checkpoint>> {
    let found = found.map(|text| Checkpoint::parse(&text)).transpose();
    found.with_context(|| format!("cannot use {label}"))
}

/// `label` is what `found` was found in.
fn go_on(found: Option<Checkpoint>, job: Job, label: &str, has_action: bool) -> Result<Beginning> {
    let anew = |job, told| Beginning { checkpoint: Checkpoint::new(job), is_over: false, told };
    let Some(mut found) = found else { return Ok(anew(job, None)) };
    let differences = job.differences(&found.job);
    if !differences.is_empty() {
        let error = anyhow!(
            "{label} is of another job: {}; name another one, or begin this job anew with --restart",
            differences.join("; ")
        );
        return Err(Exit::Misconfigured.because(error));
    }
    // It may know more than an older run did, and less: not of its cluster, where Kafka did not answer in time.
    found.job = found.job.extended(job);
    let Checkpoint { rows, written, .. } = &found;
    let finished = format!("{label} says that this job was finished at {written}, with {rows} rows");
    Ok(match (&found.last, found.finished) {
        (_, true) if has_action => {
            let told = Some(format!("{finished}; --restart begins it anew"));
            Beginning { checkpoint: found, is_over: true, told }
        }
        (_, true) => anew(found.job, Some(format!("{finished}: beginning anew"))),
        (Some(last), false) => {
            let told = Some(format!("going on behind key {last}: {rows} rows were done by {written}"));
            Beginning { checkpoint: found, is_over: false, told }
        }
        (None, false) => Beginning { checkpoint: found, is_over: false, told: None },
    })
}

fn named(trouble: Trouble, job: &Job) -> anyhow::Error {
    match trouble {
        Trouble::Busy(error) => Exit::Busy.because(error.context(format!("cannot begin ({job})"))),
        other => failure(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_learn_its_cluster_leaves_the_one_in_the_checkpoint() {
        let job = |cluster: Option<&str>| {
            Job::new([("topic", Some("products".to_owned())), ("cluster", cluster.map(str::to_owned))])
        };
        for (kept, now) in [(Some("x"), None), (None, Some("x")), (Some("x"), Some("x"))] {
            let beginning = go_on(Some(Checkpoint::new(job(kept))), job(now), "the checkpoint", true).unwrap();
            assert_eq!(beginning.checkpoint.job, job(Some("x")), "{kept:?} {now:?}");
        }
    }
}
