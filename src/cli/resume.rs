//! Where a run begins, and when it has to end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use clap::Args;

use super::{ActionOptions, KafkaOptions, SourceOptions, duration, time_to_come};
use crate::announce::Phases;
use crate::exit::Exit;
use crate::kafka::Admin;
use crate::shutdown::Shutdown;
use crate::stream::{Action, Job, Keep, Resume, Source, Window, failure};

/// Where it is kept how far a job is, and how long one run of it may take.
#[derive(Args, Clone, Debug)]
pub struct ResumeOptions {
    /// File that keeps how far the job is; the next run goes on from there
    #[arg(long, env = "KSYNC_CHECKPOINT", value_name = "FILE", help_heading = "Resume")]
    pub checkpoint: Option<PathBuf>,

    /// Keeps it in a table of the database, by the transactions of the statement: no row is changed twice
    /// [default name: ksync_checkpoints]
    #[arg(
        long, env = "KSYNC_CHECKPOINT_TABLE", value_name = "NAME", num_args = 0..=1, require_equals = true,
        default_missing_value = "ksync_checkpoints", help_heading = "Resume"
    )]
    pub checkpoint_table: Option<String>,

    /// Begins the job anew, whatever the checkpoint says
    #[arg(long, env = "KSYNC_RESTART", help_heading = "Resume")]
    pub restart: bool,

    /// Ends with status 75 after the chunk that is under way at this time: 06:30 is the next such time by the clock of
    /// this machine, 06:30Z by UTC
    #[arg(long, env = "KSYNC_UNTIL", value_name = "TIME", value_parser = time_to_come, help_heading = "Resume")]
    pub until: Option<SystemTime>,

    /// Ends with status 75 after the chunk that is under way when this time is over
    #[arg(long, env = "KSYNC_MAX_TIME", value_name = "DURATION", value_parser = duration, help_heading = "Resume")]
    pub max_time: Option<Duration>,
}

impl ResumeOptions {
    /// Whether they fit the others; seen without opening anything.
    pub fn check(&self, phases: Phases, source: &SourceOptions, action: &ActionOptions) -> Result<()> {
        let check = || {
            let (file, table) = (self.checkpoint.is_some(), self.checkpoint_table.is_some());
            let name = if file { "--checkpoint" } else { "--checkpoint-table" };
            ensure!(!(file && table), "--checkpoint and --checkpoint-table keep the same; name one of them");
            ensure!(!self.restart || file || table, "--restart needs --checkpoint or --checkpoint-table");
            ensure!(
                source.stdin.is_none() || !(file || table),
                "{name} is of no use with lines of stdin, which cannot be read again; name --table or --query"
            );
            ensure!(
                !table || action.sql.is_some(),
                "--checkpoint-table is written in the transactions of --sql; without it use --checkpoint"
            );
            ensure!(
                !table || phases != Phases::InstantOnly,
                "--checkpoint-table needs the delay messages, which cover a crash behind a commit; leave out --only instant"
            );
            Ok(())
        };
        check().map_err(|error| Exit::Usage.because(error))
    }

    /// Until when this run may work.
    pub fn window(&self, shutdown: &Shutdown) -> Shutdown {
        Window { until: self.until, max_time: self.max_time }.open(shutdown)
    }

    /// How far the job is and where that is kept; `None` where the rows cannot be read again.
    pub async fn resume(
        &self,
        (kafka, admin): (&KafkaOptions, &Admin),
        phases: Phases,
        (options, source): (&SourceOptions, &mut Source),
        (words, mut action): (&ActionOptions, Option<&mut Action>),
    ) -> Result<Option<Resume>> {
        let Source::Rows { database, scan } = source else { return Ok(None) };
        // A condition or a statement may name any table.
        let names_others =
            options.filter.is_some() || matches!(action.as_deref(), Some(Action::Sql { database: None, .. }));
        let only = (!names_others).then_some(&*scan);
        let place = database.place(&options.url()?, only).await.map_err(failure)?;
        let zone = database.time_zone(scan).await.map_err(failure)?;
        let mut other = None;
        if let (Some(Action::Sql { database: Some(database), .. }), Some(url)) =
            (action.as_deref_mut(), &words.action_database)
        {
            other = Some(database.place(url, None).await.map_err(failure)?);
        }
        let (sql, command) = match action {
            None => (None, None),
            Some(Action::Sql { statement, .. }) => (Some(statement.text()), None),
            Some(Action::Command(_)) => (None, Some(serde_json::to_string(&words.command)?)),
        };
        // However they are written it is the same job.
        let partitions = BTreeSet::from_iter(&kafka.partition).into_iter().map(i32::to_string);
        let partitions = partitions.collect::<Vec<_>>().join(",");
        let messages = match phases {
            Phases::Both => "delay and instant",
            Phases::DelayOnly => "delay",
            Phases::InstantOnly => "instant",
        };
        let keep = match (&self.checkpoint, &self.checkpoint_table) {
            (Some(file), _) => Keep::File(file.clone()),
            (None, Some(table)) => Keep::Table(table.clone()),
            (None, None) => Keep::Nowhere,
        };
        let cluster = if keep == Keep::Nowhere { None } else { admin.cluster_id().await };
        let job = Job::new([
            ("cluster", cluster),
            ("topic", Some(kafka.one_topic()?.to_string())),
            ("partitions", (!partitions.is_empty()).then_some(partitions)),
            ("messages", Some(messages.to_owned())),
            ("server", place.server),
            ("database", Some(place.database)),
            ("table", options.table.clone().filter(|_| options.query.is_none())),
            ("where", options.filter.clone()),
            ("query", options.query.clone()),
            ("key", Some(scan.key_names())),
            ("time zone", zone),
            // They may decide which rows a table shows.
            ("session sql", Some(options.session_sql.clone().unwrap_or_else(|| "none".to_owned()))),
            ("user", place.user),
            ("payload", (options.payload != ["key"]).then(|| options.payload.join(","))),
            ("sql", sql),
            ("command", command),
            ("action server", other.as_ref().and_then(|place| place.server.clone())),
            ("action user", other.as_ref().and_then(|place| place.user.clone())),
            ("action database", other.map(|place| place.database)),
        ]);
        Ok(Some(Resume::new(job, keep, self.restart)))
    }
}
