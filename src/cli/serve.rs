//! How ksync-stream serves applications.

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use log::{debug, info};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::time::sleep;

use super::{DelayOption, DelayerOptions, KafkaOptions, SourceOptions, daemon, duration};
use crate::announce::Destination;
use crate::exit::Exit;
use crate::kafka::{Admin, Pair, Writer};
use crate::serve::{Place, Serve, turn_away};
use crate::shutdown::Shutdown;
use crate::socket;
use crate::sys;

/// Serving applications.
#[derive(Args, Clone, Debug)]
pub struct ServeOptions {
    /// Announces what applications ask for on this Unix socket, or one application on stdin and stdout (-)
    #[arg(
        long, env = "KSYNC_SERVE", value_name = "PATH|-", help_heading = "Serve",
        conflicts_with_all = ["stdin", "table", "filter", "query", "sql", "command", "only", "dry_run", "checkpoint",
            "checkpoint_table", "control", "throttle_query", "max_time", "until"]
    )]
    pub serve: Option<PathBuf>,

    /// After which time a request is answered whether Kafka has acknowledged its messages or not
    #[arg(long, env = "KSYNC_ACK_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = duration,
          help_heading = "Serve")]
    pub ack_timeout: Duration,
}

impl ServeOptions {
    /// Serves at `place` until the end is asked for.
    pub async fn run(
        &self,
        place: &Path,
        kafka: &KafkaOptions,
        (delay, delayers): (&DelayOption, &DelayerOptions),
        source: &SourceOptions,
        shutdown: &Shutdown,
    ) -> Result<Exit> {
        tokio::spawn(daemon::show_life());
        open_as_many_files_as_are_allowed();
        let is_stdio = place == Path::new("-");
        let inherited = if is_stdio { None } else { inherited()? };
        let starting = async {
            let writer = self.writer(kafka, delay.delay, delayers).await?;
            let topics = kafka.topic.iter().map(|topic| Destination::new(topic, &kafka.partition));
            let topics = (topics.collect::<Result<_>>()?, source.members());
            anyhow::Ok(Serve::new(writer, topics, delay.checked(), self.ack_timeout))
        };
        let shown = Arc::new(OnceLock::<Serve>::new());
        let waiting = shown.clone();
        daemon::answer_when_asked(move || {
            vec![waiting.get().map_or_else(|| "waiting for Kafka".to_owned(), Serve::status)]
        })?;
        let serve = tokio::select! {
            serve = starting => {
                let serve = serve?;
                shown.get_or_init(|| serve)
            }
            () = shutdown.requested() => return Ok(Exit::Done),
            never = self.turn_away(inherited.as_ref()) => match never {},
        };
        if is_stdio {
            return serve.run(Place::Stdio, shutdown).await;
        }
        let (listener, _file) = match inherited {
            Some(listener) => (listener, None),
            None => {
                let (listener, file) = socket::listen(place, 0o660).await.map_err(|error| match Exit::of(&error) {
                    Exit::Busy => error,
                    _ => Exit::Misconfigured.because(error),
                })?;
                (listener, Some(file))
            }
        };
        info!("serving applications at {}", place.display());
        daemon::tell_ready().await;
        serve.run(Place::Socket(listener), shutdown).await
    }

    /// Answers those who come by a socket that is there already, once they would have to wait for longer than they may.
    async fn turn_away(&self, inherited: Option<&UnixListener>) -> Infallible {
        match inherited {
            Some(listener) => {
                sleep(self.ack_timeout).await;
                turn_away(listener).await
            }
            None => pending().await,
        }
    }

    async fn writer(&self, kafka: &KafkaOptions, delay: Duration, delayers: &DelayerOptions) -> Result<Writer> {
        let cluster = kafka.cluster()?;
        let admin = Admin::new(&cluster)?;
        let mut pairs = vec![];
        for topic in &kafka.topic {
            let (delay_topic, patience) = (topic.delay()?, kafka.patience(false));
            let count = admin.need(topic, kafka.create_topics, patience).await?;
            admin.need(&delay_topic, kafka.create_topics, patience).await?;
            delayers.look(&delay_topic, &kafka.chosen(topic, count)?, delay).await?;
            pairs.push(Pair { topic: topic.clone(), delay: Some((delay_topic, delay)) });
        }
        let check = kafka.check.start(&admin, pairs).await?;
        let cluster = cluster.with_short_linger();
        let cluster = match check.small_batches() {
            Some(bytes) => cluster.with_batches_of(bytes),
            None => cluster,
        };
        Writer::open(&cluster, Writer::AWAITED)
    }
}

/// Each application takes one, and Kafka must not want for them. Programs raise this limit for themselves: that it is low at
/// first is for those that use select(2).
fn open_as_many_files_as_are_allowed() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        debug!("cannot raise the limit of open files: {error}");
    }
}

/// The socket that systemd has passed on, where it has.
fn inherited() -> Result<Option<UnixListener>> {
    let mut passed = sd_notify::listen_fds().context("cannot take the socket that systemd passes on")?;
    let Some(socket) = passed.next() else { return Ok(None) };
    if passed.next().is_some() {
        return Err(Exit::Misconfigured.because(anyhow!("systemd passes on several sockets; one is wanted")));
    }
    let socket = sys::take_socket(socket).and_then(UnixListener::from_std);
    socket.map(Some).context("cannot take the socket that systemd passes on")
}
