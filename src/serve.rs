//! ksync-stream --serve: announces what applications in any language change, who ask by JSON lines on a Unix socket or on stdin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use log::{debug, warn};
use tokio::io::{stdin, stdout};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::announce::Destination;
use crate::exit::Exit;
use crate::kafka::Writer;
use crate::shutdown::Shutdown;

mod connection;
mod health;
mod request;
mod starting;
mod transaction;

use connection::converse;
use health::Health;
use request::Topics;
pub use starting::turn_away;

/// How many bytes of requests may wait for their answers, and of messages for the end of their transactions.
const ASKED: usize = 32 << 20;
const KEPT: usize = 64 << 20;

/// How many requests are read at once that are long.
const LONG: usize = 2;

/// How many applications are served at once; others wait.
const APPLICATIONS: usize = 1000;

/// How long to wait where an application cannot be let in.
const AGAIN: Duration = Duration::from_secs(1);

/// Where applications ask.
pub enum Place {
    /// One, on stdin and stdout.
    Stdio,
    Socket(UnixListener),
}

/// What all applications are served by; a clone is the same.
#[derive(Clone)]
pub struct Serve(Arc<Shared>);

struct Shared {
    writer: Writer,
    topics: Topics,
    delay: Duration,
    ack_timeout: Duration,
    health: Health,
    asked: Arc<Semaphore>,
    /// For requests that are long.
    long: Semaphore,
    kept: Arc<Semaphore>,
    /// There was no room for a transaction, and it was told.
    is_full: AtomicBool,
    applications: AtomicUsize,
    /// Transactions.
    open: AtomicUsize,
}

impl Serve {
    /// The members `key` of a payload make its record key. `delay` is how long the delayer holds a message back, `ack_timeout`
    /// after which time a request is answered whether Kafka has answered or not.
    pub fn new(
        writer: Writer,
        (destinations, key): (Vec<Destination>, Vec<String>),
        delay: Duration,
        ack_timeout: Duration,
    ) -> Serve {
        let (asked, kept) = (Arc::new(Semaphore::new(ASKED)), Arc::new(Semaphore::new(KEPT)));
        let (topics, health) = (Topics { destinations, key }, Health::default());
        let (applications, open, is_full, long) = (0.into(), 0.into(), false.into(), Semaphore::new(LONG));
        let shared =
            Shared { writer, topics, delay, ack_timeout, health, asked, long, kept, is_full, applications, open };
        Serve(Arc::new(shared))
    }

    /// Serves until the end is asked for, or the end of stdin. What was asked by then is answered.
    pub async fn run(&self, place: Place, shutdown: &Shutdown) -> Result<Exit> {
        match place {
            Place::Stdio => {
                let _there = self.there();
                let conversation = converse(self.0.clone(), stdin(), stdout(), shutdown);
                tokio::select! {
                    ended = conversation => ended?,
                    () = self.end(shutdown) => debug!("the application does not read its answers"),
                }
            }
            Place::Socket(listener) => self.accept(listener, shutdown).await,
        }
        Ok(Exit::Done)
    }

    async fn accept(&self, listener: UnixListener, shutdown: &Shutdown) {
        let (mut applications, mut was_full) = (JoinSet::new(), false);
        loop {
            let is_full = applications.len() == APPLICATIONS;
            if is_full && !was_full {
                warn!("{APPLICATIONS} applications are connected: others wait until one of them leaves");
            }
            // Once, not each time that one leaves and another one comes.
            was_full = is_full || (was_full && applications.len() > APPLICATIONS / 2);
            let application = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                Some(_) = applications.join_next() => continue,
                application = next_application(&listener), if !is_full => application,
            };
            let (serve, shutdown) = (self.clone(), shutdown.clone());
            applications.spawn(async move {
                let _there = serve.there();
                let (from, to) = application.into_split();
                if let Err(error) = converse(serve.0.clone(), from, to, &shutdown).await {
                    warn!("an application is gone: {error:#}");
                }
            });
        }
        // Whoever connects now is to see that nobody is there.
        drop(listener);
        let all = async { while applications.join_next().await.is_some() {} };
        tokio::select! {
            () = all => {}
            () = self.end(shutdown) => debug!("an application does not read its answers"),
        }
    }

    /// Returns when what was under way when the end was asked for has been answered.
    async fn end(&self, shutdown: &Shutdown) {
        shutdown.requested().await;
        sleep(self.0.ack_timeout + AGAIN).await;
    }

    /// What it does, in a line.
    pub fn status(&self) -> String {
        let Shared { applications, open, kept, health, .. } = &*self.0;
        let away = match health.away_since() {
            Some(since) => format!("; Kafka is away for {:.1} s", since.elapsed().as_secs_f64()),
            None => String::new(),
        };
        format!(
            "{} applications, {} transactions under way, {} KiB kept for them{away}",
            applications.load(Ordering::Relaxed),
            open.load(Ordering::Relaxed),
            (KEPT - kept.available_permits()) >> 10
        )
    }

    /// Counts an application for as long as the value lives.
    fn there(&self) -> There {
        self.0.applications.fetch_add(1, Ordering::Relaxed);
        There(self.0.clone())
    }
}

async fn next_application(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((application, _)) => return application,
            // Too many open files, perhaps: that may pass.
            Err(error) => warn!("cannot let an application in: {error}"),
        }
        sleep(AGAIN).await;
    }
}

struct There(Arc<Shared>);

impl Drop for There {
    fn drop(&mut self) {
        self.0.applications.fetch_sub(1, Ordering::Relaxed);
    }
}
