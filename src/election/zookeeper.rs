//! The one ZooKeeper session of the process: made again whenever it has ended, shared by all seats.

use std::convert::Infallible;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use log::{debug, info, warn};
use rustix::system::uname;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use zookeeper::{Acls, Client, CreateMode, CreateOptions, SessionState};

use super::Seat;
use super::card::Card;
use super::lease::since_boot;
use super::servers::Servers;
use crate::shutdown::{Shutdown, Trigger};
use crate::topic::Topic;

/// Nodes that stay; open to anyone, as the gem makes them.
pub(super) const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

/// How long closing waits for the server's word.
const CLOSE: Duration = Duration::from_secs(1);

/// By how much later an answered write has to be to be told to all leases.
const STEP: Duration = Duration::from_millis(10);

/// The connection to ZooKeeper. Clones share one session; it ends when the last clone and candidate is gone.
#[derive(Clone, Debug)]
pub struct ZooKeeper {
    /// 32 hex digits that name this process in the queues.
    pub(super) process: Arc<str>,
    pub(super) card: Arc<Card>,
    /// Whether it has been told that another candidate's handler is not ours.
    pub(super) has_warned: Arc<AtomicBool>,
    pub(super) servers: Servers,
    sessions: watch::Receiver<Option<Session>>,
    end: Arc<Trigger>,
}

impl ZooKeeper {
    /// Starts to connect, in the background and for ever: while no server answers, a warning names them now and then.
    ///
    /// Needs a tokio runtime.
    pub fn connect(servers: &Servers, session_timeout: Duration) -> ZooKeeper {
        let (sender, sessions) = watch::channel(None);
        let (end, closing) = Shutdown::new();
        let keeper = Keeper { servers: servers.clone(), session_timeout, sessions: sender, closing, outage: None };
        tokio::spawn(keeper.run());
        let process = format!("{:032x}", rand::random::<u128>()).into();
        // It may be any bytes; it only tells people where to look.
        let card = Card { host: uname().nodename().to_string_lossy().into_owned(), handler: None };
        let (card, has_warned, end) = (Arc::new(card), Arc::default(), Arc::new(end));
        ZooKeeper { process, card, has_warned, servers: servers.clone(), sessions, end }
    }

    pub(super) fn with_handler(self, handler: &str) -> ZooKeeper {
        let card = Card { host: self.card.host.clone(), handler: Some(handler.to_owned()) };
        ZooKeeper { card: Arc::new(card), ..self }
    }

    /// The session of the moment, once there is one; `None` after closing.
    pub(super) async fn session(&self) -> Option<Session> {
        let mut sessions = self.sessions.clone();
        let session = sessions.wait_for(Option::is_some).await.ok()?;
        session.clone()
    }

    /// The session of the moment, if there is one.
    pub(super) fn session_now(&self) -> Option<Session> {
        self.sessions.borrow().clone()
    }

    pub(super) fn is_reached(&self) -> bool {
        self.sessions.borrow().is_some()
    }

    /// Ends the session of all clones, and with it their candidates and leases. Takes at most 1 s.
    pub async fn close(mut self) {
        self.end.request();
        while self.sessions.changed().await.is_ok() {}
    }
}

/// A session, from its making to its end.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub client: Client,
    /// As the server granted it.
    pub timeout: Duration,
    /// As we wanted it.
    asked: Duration,
    /// Asked for when the election is closed: whoever holds this session then lets go of it.
    pub closing: Shutdown,
    pub pulse: Arc<Pulse>,
    chroot: Arc<str>,
}

/// When the last write of a session that was answered was sent, on the clock of [`since_boot`]: all its leases live by it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    answered: watch::Sender<Duration>,
    /// When the last heartbeat was sent.
    beat: Mutex<Duration>,
}

impl Pulse {
    pub fn answered(&self) -> watch::Receiver<Duration> {
        self.answered.subscribe()
    }

    /// A write that was sent then is answered. Not each of them is told: there may be thousands in a second.
    pub fn note(&self, sent: Duration) {
        self.answered.send_if_modified(|answered| {
            let is_told = *answered + STEP <= sent;
            *answered = if is_told { sent } else { *answered };
            is_told
        });
    }

    /// Whether to send a heartbeat now, because for so long none was sent nor was any write answered.
    pub fn takes_beat(&self, pause: Duration) -> bool {
        let (now, mut beat) = (since_boot(), self.beat.lock().unwrap_or_else(PoisonError::into_inner));
        let is_due = now >= pause + (*beat).max(*self.answered.borrow());
        *beat = if is_due { now } else { *beat };
        is_due
    }
}

impl Session {
    /// The path of one of the seat's nodes.
    pub fn path(&self, seat: &Seat, node: &str) -> String {
        let Seat { partition, name } = seat;
        format!("{}/{}/{name}/{node}", self.topic(&partition.topic), partition.partition)
    }

    /// The path above the partitions of a topic.
    pub fn topic(&self, topic: &Topic) -> String {
        format!("{}/kafka_sync/consumer/{topic}", self.chroot)
    }

    pub fn has_ended(&self) -> bool {
        self.client.state().is_terminated()
    }

    /// Fails where the server has granted more than it was asked for. That is then the least that it grants, which is two of
    /// its ticks unless it was told otherwise, and with less than five another process may lead before the handlers of this
    /// one are gone. A server tells its tick to no client.
    pub fn may_lead(&self) -> Result<()> {
        let enough = (self.timeout * 5 / 2).as_millis().div_ceil(1000);
        ensure!(
            self.timeout <= self.asked,
            "ZooKeeper grants no session timeout below {least:?}, and where that is less than five of its ticks (tickTime) \
             another process might lead before the handlers of this one are ended; ask for {enough}s, or for {least:?} where it is \
             five ticks or more (--session-timeout)",
            least = self.timeout
        );
        Ok(())
    }
}

/// Makes session after session.
struct Keeper {
    servers: Servers,
    session_timeout: Duration,
    sessions: watch::Sender<Option<Session>>,
    closing: Shutdown,
    outage: Option<Outage>,
}

impl Keeper {
    async fn run(mut self) {
        let closing = self.closing.clone();
        loop {
            let outage = self.outage.get_or_insert_with(Outage::begin);
            let client = select! {
                client = establish(&self.servers, self.session_timeout) => client,
                never = outage.report(&self.servers) => match never {},
                () = closing.requested() => return,
            };
            self.publish(&client);
            let mut states = client.state_watcher();
            select! {
                () = self.watch(&client) => debug!("session {} has ended: {}", client.session_id(), client.state()),
                () = closing.requested() => {
                    self.sessions.send_replace(None);
                    drop(client);
                    let closed = async { while !states.changed().await.is_terminated() {} };
                    if timeout(CLOSE, closed).await.is_err() {
                        debug!("the session was not closed in time; it ends {:?} from now", self.session_timeout);
                    }
                    return;
                }
            }
            self.sessions.send_replace(None);
        }
    }

    fn publish(&self, client: &Client) {
        let timeout = client.session_timeout();
        if timeout < self.session_timeout {
            warn!(
                "ZooKeeper at {}: grants a session timeout of {timeout:?}, not {:?}",
                self.servers, self.session_timeout
            );
        }
        debug!("session {} with a timeout of {timeout:?}", client.session_id());
        let chroot = self.servers.chroot.as_str().into();
        let (client, asked, closing) = (client.clone(), self.session_timeout, self.closing.clone());
        let session = Session { client, timeout, asked, closing, pulse: Arc::default(), chroot };
        self.sessions.send_replace(Some(session));
    }

    /// Returns when the session has ended; until then notes when it is cut off.
    async fn watch(&mut self, client: &Client) {
        let mut states = client.state_watcher();
        let mut state = client.state();
        while !state.is_terminated() {
            if state == SessionState::SyncConnected {
                if let Some(outage) = self.outage.take() {
                    outage.end(&self.servers);
                }
                state = states.changed().await;
            } else {
                let outage = self.outage.get_or_insert_with(Outage::begin);
                state = select! {
                    state = states.changed() => state,
                    never = outage.report(&self.servers) => match never {},
                };
            }
        }
    }
}

async fn establish(servers: &Servers, session_timeout: Duration) -> Client {
    let mut backoff = Backoff::default();
    loop {
        // Eagerly, or it would try in silence for as long as a session lives.
        let connector = Client::connector().with_session_timeout(session_timeout).with_fail_eagerly();
        match connector.connect(&servers.hosts).await {
            Ok(client) => return client,
            Err(err) => debug!("ZooKeeper at {servers}: {err}"),
        }
        backoff.wait().await;
    }
}

/// A time without a server: told of after 5 s, every 10 s, then every minute.
#[derive(Debug)]
struct Outage {
    since: Instant,
    reports: u32,
}

impl Outage {
    fn begin() -> Outage {
        Outage { since: Instant::now(), reports: 0 }
    }

    async fn report(&mut self, servers: &Servers) -> Infallible {
        loop {
            sleep_until(self.since + Duration::from_secs(Self::due(self.reports))).await;
            warn!("cannot reach ZooKeeper at {servers}; trying again");
            self.reports += 1;
        }
    }

    /// When, in seconds, the line after `reports` others is due.
    fn due(reports: u32) -> u64 {
        match u64::from(reports) {
            0 => 5,
            few @ 1..=6 => few * 10,
            more => (more - 5) * 60,
        }
    }

    fn end(self, servers: &Servers) {
        if self.reports > 0 {
            info!("ZooKeeper at {servers}: reached again after {:.1?}", self.since.elapsed());
        }
    }
}

/// The pauses between attempts that failed: 100 ms, then twice as long each time, up to 3 s; after a quiet time anew.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
    last: Option<Instant>,
}

impl Backoff {
    pub async fn wait(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > Duration::from_secs(10)) {
            self.attempts = 0;
        }
        let pause = Duration::from_millis(100) * 2u32.pow(self.attempts.min(5));
        tokio::time::sleep(pause.min(Duration::from_secs(3))).await;
        self.attempts += 1;
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_of_soon_then_every_ten_seconds_then_every_minute() {
        let seconds: Vec<u64> = (0..10).map(Outage::due).collect();
        assert_eq!(seconds, [5, 10, 20, 30, 40, 50, 60, 120, 180, 240]);
    }
}
