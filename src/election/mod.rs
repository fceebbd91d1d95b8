//! Who works on a partition: one leader for each topic, partition and name, and the offset that only the leader moves.
//!
//! A [`Candidacy`] queues for a [`Seat`] and gives a [`Lease`] for each time that it leads. What is done under a lease is
//! fenced: its commits fail once another process leads, and it ends by the clock when its writes are no longer answered.

mod candidate;
mod card;
mod cluster;
mod delay;
mod fence;
mod lease;
mod offsets;
mod sequence;
mod servers;
mod standing;
mod tenure;
mod voters;
mod zookeeper;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::select;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use self::lease::{Lease, Lost};
pub use self::offsets::{Position, State, Stored, StoredOffset, StoredState};
pub use self::servers::Servers;
pub use self::zookeeper::ZooKeeper;
use crate::shutdown::Shutdown;
use crate::topic::{Name, Offset, Topic, TopicPartition};

/// What is led: one partition, for one name of consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    pub partition: TopicPartition,
    pub name: Name,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.partition, self.name)
    }
}

/// Number of a lease: it grows with each new leader of a seat and is never used twice. A store can refuse a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub i64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process that queues, by the name that it has given itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub Arc<str>);

/// Where a candidacy is in the queue for its seat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Not in it: no server has answered, or the lease before has not ended yet.
    #[default]
    Outside,
    /// Right behind a candidate of this host.
    Behind(String),
    /// Nobody is ahead.
    First,
}

/// How a name of consumers stands at a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many queue for its partitions or lead them.
    pub candidates: usize,
    /// Of those partitions that have one.
    pub offsets: BTreeMap<i32, Offset>,
}

/// The election that this process takes part in. Clones share its one session.
#[derive(Clone, Debug)]
pub enum Election {
    ZooKeeper(ZooKeeper),
}

impl fmt::Display for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Election::ZooKeeper(zookeeper) = self;
        write!(f, "ZooKeeper at {}", zookeeper.servers)
    }
}

impl Election {
    /// A candidacy for `seat`, not yet in the queue. Have one for each seat in a process: a second one deposes the first.
    pub fn candidate(&self, seat: Seat) -> Candidacy {
        Candidacy { election: self.clone(), seat, last: None, place: watch::Sender::default() }
    }

    /// Makes known that the delayer of `seat` waits `delay`, once a server answers, and gives the time at that server.
    /// Cancelling loses nothing.
    ///
    /// Fails, with both hosts and both values in the text, where another delayer of the seat is alive and has declared
    /// another one. Two that start at once both see it only if it is called before queueing and again when leading.
    pub async fn declare_delay(&self, seat: &Seat, delay: Duration) -> Result<SystemTime> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.declare_delay(seat, delay).await
    }

    /// Tells other candidates by which handler this process works: they all can read this.
    pub fn with_handler(self, handler: &str) -> Election {
        let Election::ZooKeeper(zookeeper) = self;
        Election::ZooKeeper(zookeeper.with_handler(handler))
    }

    /// Makes sure that the offsets are those of this Kafka cluster; where none is noted it is from now on. Waits for a
    /// server. Cancelling loses nothing.
    ///
    /// Fails, with both clusters in the text, where they are another one's. A missing right is a warning.
    pub async fn claim(&self, cluster: &str) -> Result<()> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.claim(cluster).await
    }

    /// The shortest delay that was declared for a partition of `delay_topic`, `None` where none was. Waits for a server.
    pub async fn delay_of(&self, delay_topic: &Topic) -> Result<Option<Duration>> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.delay_of(delay_topic).await
    }

    /// The seats of `topic` that somebody queues for or leads, each with the number of candidates. Waits for a server.
    pub async fn candidates(&self, topic: &Topic) -> Result<Vec<(Seat, usize)>> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.candidates(topic).await
    }

    /// How each name stands that has ever read `topic`, as the server sees it that answers. Waits for a server.
    pub async fn standings(&self, topic: &Topic) -> Result<BTreeMap<Name, Standing>> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.standings(topic).await
    }

    /// This process, as others see it.
    pub fn process(&self) -> Process {
        let Election::ZooKeeper(zookeeper) = self;
        Process(zookeeper.process.clone())
    }

    /// Who queues for the seats of `topic` that `name` has, in the order in which they lead. Fails where no server answers
    /// now.
    pub async fn queues(&self, topic: &Topic, name: &Name) -> Result<BTreeMap<Seat, Vec<Process>>> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.queues(topic, name).await
    }

    /// How many servers are to agree, by more than half, on whatever is written; `None` where they do not tell. Waits for a
    /// server.
    pub async fn voters(&self) -> Result<Option<usize>> {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.voters().await
    }

    /// Whether a server answers now.
    pub fn is_reached(&self) -> bool {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.is_reached()
    }

    /// Leaves: candidates and leases of all clones go with the session, so that standbys lead at once. Takes at most 1 s.
    pub async fn close(self) {
        let Election::ZooKeeper(zookeeper) = self;
        zookeeper.close().await;
    }
}

/// The wish to lead a seat, again and again.
#[derive(Debug)]
pub struct Candidacy {
    election: Election,
    seat: Seat,
    /// Whoever made the last candidate: it ends only when that one is gone, at the latest with its session.
    last: Option<JoinHandle<()>>,
    place: watch::Sender<Place>,
}

impl Candidacy {
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Where it is while it waits, for those who want to know.
    pub fn places(&self) -> watch::Receiver<Place> {
        self.place.subscribe()
    }

    /// Waits at the end of the queue until this process leads; `None` once `shutdown` is asked for.
    ///
    /// Servers that are away are waited for. An error is a refusal that waiting does not mend, such as a missing right.
    /// While a lease of this candidacy lives it waits for that one's end. Cancelling withdraws the candidate.
    pub async fn lead(&mut self, shutdown: &Shutdown) -> Result<Option<Lease>> {
        select! {
            biased;
            () = shutdown.requested() => Ok(None),
            lease = self.queue() => lease.map(Some),
        }
    }

    async fn queue(&mut self) -> Result<Lease> {
        self.place.send_replace(Place::Outside);
        if let Some(last) = &mut self.last {
            // A new candidate before the old one's end would be a third party in the queue: nobody could tell which of
            // them leads. A task that panicked cannot hold its node any longer than the session.
            let ended = last.await;
            self.last = None;
            ended?;
        }
        let (won, lease) = oneshot::channel();
        let Election::ZooKeeper(zookeeper) = &self.election;
        let seat = (self.seat.clone(), self.place.clone());
        self.last = Some(tokio::spawn(candidate::stand(zookeeper.clone(), seat, won)));
        lease.await.map_err(|closed| anyhow!(closed).context(format!("cannot queue for {}: closed", self.seat)))?
    }
}
