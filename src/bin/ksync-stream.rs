//! Announces rows of a database or lines of stdin, and runs an action on them chunk by chunk.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use ksync::announce::{Announcer, Destination, Phases};
use ksync::cli::{
    self, ActionOptions, Common, Comparison, DelayOption, DelayerOptions, KafkaOptions, PlanOptions, ProgressOption,
    ResumeOptions, ServeOptions, SourceOptions, ThrottleOptions, Tool, VerifyOptions, duration, size,
};
use ksync::database::Limit;
use ksync::exit::Exit;
use ksync::handler;
use ksync::kafka::{Admin, Pair, Writer};
use ksync::shutdown::Shutdown;
use ksync::stream::{self, Action, ChunkLimits, Console, Plan, Rate, Source, Stream};

/// Announces rows of a database or lines of stdin, and runs an action on them chunk by chunk
///
/// With an action, for each chunk: delay messages acknowledged, action, instant messages. Without one: instant messages.
#[derive(Clone, Debug, Parser)]
#[command(name = "ksync-stream", version)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    delay: DelayOption,
    #[command(flatten)]
    delayers: DelayerOptions,
    #[command(flatten)]
    common: Common,

    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    action: ActionOptions,
    #[command(flatten)]
    resume: ResumeOptions,
    #[command(flatten)]
    throttles: ThrottleOptions,
    #[command(flatten)]
    plan: PlanOptions,
    #[command(flatten)]
    serve: ServeOptions,
    #[command(flatten)]
    verify: VerifyOptions,

    /// Sends only these messages
    #[arg(long, env = "KSYNC_ONLY", value_name = "WHICH")]
    only: Option<Only>,

    /// How many rows a chunk may have [default: 1000; 10000 where there is no action, --rate or --control]
    #[arg(long, env = "KSYNC_CHUNK_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk_size: Option<u32>,

    /// How large a chunk may be; one row fits whatever its size
    #[arg(long, env = "KSYNC_CHUNK_BYTES", value_name = "SIZE", default_value = "4MiB", value_parser = size)]
    chunk_bytes: usize,

    /// How long an action on rows of a database is to take; where it takes longer, the next chunk is smaller
    #[arg(long, env = "KSYNC_CHUNK_TIME", value_name = "DURATION", default_value = "500ms", value_parser = duration)]
    chunk_time: Duration,

    /// How long to wait for more lines of stdin once one is there
    #[arg(long, env = "KSYNC_CHUNK_WAIT", value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    chunk_wait: Duration,

    /// How many chunks are read ahead of the one that is being sent; with an action one at most
    #[arg(long, env = "KSYNC_READ_AHEAD", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8))]
    read_ahead: u8,

    /// How progress is shown
    #[arg(long, env = "KSYNC_PROGRESS", value_name = "HOW", default_value = "auto")]
    progress: ProgressOption,

    /// How long an end may take that was asked for by a signal
    #[arg(long, env = "KSYNC_GRACE", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Delay,
    Instant,
}

impl Tool for Cli {
    fn common(&self) -> &Common {
        &self.common
    }

    fn grace(&self) -> Duration {
        self.grace
    }

    fn is_daemon(&self) -> bool {
        self.serve.serve.is_some()
    }
}

async fn run(cli: Cli, shutdown: Shutdown) -> Result<Exit> {
    if let Some(place) = &cli.serve.serve {
        cli.delayers.check()?;
        let delay = (&cli.delay, &cli.delayers);
        return cli.serve.run(place, &cli.kafka, delay, &cli.source, &shutdown).await;
    }
    let topic = cli.kafka.one_topic()?;
    cli.source.check(&cli.action)?;
    cli.delayers.check()?;
    cli.plan.check(&cli.source)?;
    let zookeeper = cli.delayers.zookeeper.as_ref();
    cli.throttles.check(&cli.source, zookeeper)?;
    let mut action = if cli.verify.verify { None } else { cli.action.action(&cli.source)? };
    let (stop, shutdown) = shutdown.part();
    let (console, _control) = cli.throttles.console(stop, cli.plan.dry_run).await?;
    let shown = console.clone();
    cli::answer_when_asked(move || vec![shown.status()])?;
    if cli.verify.verify {
        return cli.verify.run(comparison(&cli, console)?, &shutdown).await;
    }
    if let Some(Action::Command(_)) = &action {
        // One that outlived us could commit when nobody sends its delay messages again.
        handler::leave_nothing_behind()?;
    }
    let phases = match (cli.only, &action) {
        (Some(Only::Delay), _) => Phases::DelayOnly,
        (None, Some(_)) => Phases::Both,
        (Some(Only::Instant), _) | (None, None) => Phases::InstantOnly,
    };
    cli.resume.check(phases, &cli.source, &cli.action)?;
    let shutdown = cli.resume.window(&shutdown);
    // What is to be held up at times, or to be undone, is not large.
    let is_free = action.is_none() && cli.throttles.rate == Rate::Unlimited && cli.throttles.control.is_none();
    let rows = cli.chunk_size.unwrap_or(if is_free { 10_000 } else { 1000 }) as usize;
    let bytes = cli.chunk_bytes;
    let chunk = ChunkLimits { rows, bytes, wait: cli.chunk_wait, time: cli.chunk_time };
    let create = if cli.plan.dry_run { None } else { cli.kafka.create_topics };
    let starting = async {
        let cluster = cli.kafka.cluster()?;
        let admin = Admin::new(&cluster)?;
        let mut partitions = BTreeSet::new();
        for topic in phases.topics(topic)? {
            let count = admin.need(&topic, create, cli.kafka.patience(true)).await?;
            partitions = cli.kafka.chosen(&topic, count)?;
        }
        // It connects while the settings are read.
        let written = cluster.clone().with_short_linger();
        let mut writer = Writer::open(&written, Writer::AWAITED)?;
        let delay = if phases == Phases::InstantOnly { None } else { Some((topic.delay()?, cli.delay.delay)) };
        let pair = Pair { topic: topic.clone(), delay: delay.clone() };
        let delayers = async {
            match &delay {
                Some((delay_topic, delay)) => cli.delayers.look(delay_topic, &partitions, *delay).await,
                None => Ok(()),
            }
        };
        let throttle = cli.throttles.open(console, (topic, &cluster), &cli.source, zookeeper);
        let (check, (), throttle) = tokio::try_join!(cli.kafka.check.start(&admin, [pair]), delayers, throttle)?;
        if let Some(bytes) = check.small_batches() {
            writer = Writer::open(&written.with_batches_of(bytes), Writer::AWAITED)?;
        }
        let session = cli.source.session(topic, &cli.action);
        let mut source = cli.source.open(&session).await?;
        let needs_transactions = cli.resume.checkpoint_table.is_some();
        cli.action.open(&mut action, &session, (&cli.source, &mut source), needs_transactions).await?;
        ActionOptions::check_size(action.as_ref(), &source, chunk.rows)?;
        let (rows, act) = ((&cli.source, &mut source), (&cli.action, action.as_mut()));
        let mut resume = cli.resume.resume((&cli.kafka, &admin), phases, rows, act).await?;
        if let Some(resume) = resume.as_mut().filter(|_| !cli.plan.dry_run) {
            resume.lock(action.as_mut(), &mut source).await?;
        }
        let beginning = match &resume {
            Some(resume) => Some(resume.look(action.as_mut(), &mut source).await?),
            None => None,
        };
        let (mut left, mut plan) = (None, None);
        if let (Source::Rows { database, scan }, Some(resume), Some(beginning)) = (&mut source, &resume, &beginning) {
            let mut rest = scan.clone();
            if !beginning.is_over {
                beginning.apply(&mut rest)?;
                // Of rows with the same key the key itself is announced once.
                if matches!(action, Some(Action::Sql { .. })) || rest.tells_more_than_keys() {
                    cli.source.check_keys(database, &rest, cli.plan.count).await?;
                }
                let wanted = (chunk.rows, cli.plan.count);
                left = cli.source.survey(database, (&rest, beginning.rows()), wanted).await?;
            }
            if cli.plan.is_wanted(action.is_some()) {
                let (action, command) = (action.as_ref(), &cli.action.command[..]);
                let (partitions, delay) = (partitions.len(), cli.delay.delay);
                let (rate, pause) = (cli.throttles.rate, cli.throttles.pause);
                let mut made = Plan {
                    database,
                    scan: &rest,
                    left,
                    action,
                    command,
                    phases,
                    chunk,
                    topic,
                    partitions,
                    delay,
                    rate,
                    pause,
                    resume,
                    beginning,
                };
                plan = Some(made.lines().await?);
            }
        }
        if let Some((lines, prospect)) = plan
            && !stream::wait(action.as_mut(), &mut source, cli.plan.show(&lines, prospect)).await?
        {
            return Ok(None);
        }
        anyhow::Ok(Some((writer, throttle, source, left, resume)))
    };
    let started = tokio::select! {
        started = starting => started?,
        () = shutdown.requested() => return Ok(Exit::Again),
    };
    let Some((writer, throttle, source, left, resume)) = started else { return Ok(Exit::Done) };
    let delay = if phases == Phases::InstantOnly { cli.delay.delay } else { cli.delay.checked() };
    let (announcer, to) = (Announcer::new(&writer, delay), Destination::new(topic, &cli.kafka.partition)?);
    let progress = cli.progress.start(cli.common.logging.quiet, "rows", left);
    let read_ahead = cli.read_ahead.into();
    Stream { source, to, action, phases, chunk, read_ahead, resume, throttle }.run(announcer, progress, &shutdown).await
}

fn comparison(cli: &Cli, console: Console) -> Result<Comparison<'_>> {
    Ok(Comparison {
        kafka: &cli.kafka,
        delay: &cli.delay,
        source: &cli.source,
        command: &cli.action.command,
        session: cli.source.session(cli.kafka.one_topic()?, &cli.action),
        throttles: &cli.throttles,
        zookeeper: cli.delayers.zookeeper.as_ref(),
        console,
        chunk: Limit { rows: cli.chunk_size.unwrap_or(1000) as usize, bytes: cli.chunk_bytes },
        progress: cli.progress,
        is_counted: cli.plan.count,
        is_quiet: cli.common.logging.quiet,
    })
}

fn main() -> ExitCode {
    cli::main(run)
}
