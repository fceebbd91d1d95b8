//! Leading partitions: queue for each of them, read it under the lease, halt and try again, hand over.
//!
//! What ksync-consume and ksync-delayer share; what they do with the records is their [`Work`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, Result};
use log::{debug, error, info, warn};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep};

use crate::election::{Election, Lost, Seat};
use crate::exit::Exit;
use crate::fit::AcceptLoss;
use crate::kafka::{self, Admin, Mirror, Reader};
use crate::shutdown::Shutdown;
use crate::topic::{Name, Topic, TopicPartition};

/// How often it is looked whether a topic has more partitions.
const GROWTH: Duration = Duration::from_secs(30);
/// How long to wait before a server that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How far apart two clocks may be before that is told.
pub const APART: Duration = Duration::from_secs(5);

mod board;
mod held;
mod lookout;
mod place;
mod reign;
mod spread;

pub use board::{Board, Post, Waiting};
pub use held::{Checked, Done, Held};
pub use lookout::Lookout;
pub use place::FirstStart;
use reign::Reign;
use spread::Spread;

/// What is done with the records of a partition while this process leads it.
pub trait Work: Send + Sync + 'static {
    /// Works until the partition is done, halted or lost, or `shutdown` is asked for and what is under way is finished.
    fn work(
        &self,
        records: &mut kafka::Partition,
        held: &mut Held<'_>,
        shutdown: &Shutdown,
    ) -> impl Future<Output = End> + Send;
}

/// Why the work on a partition ended.
#[derive(Debug)]
pub enum End {
    /// All of a bounded run is done.
    Done,
    /// The end was asked for.
    Shutdown,
    Lost(Lost),
    /// It cannot go on without a person.
    Halted(Error),
    /// The log is not what it was, or a server has to be asked again: look at it anew.
    Again(Error),
    /// The offset, or its epoch, is not in the log.
    OutOfLog,
    /// The handler is not set up as it has to be, so no partition can go on: the process ends.
    Misconfigured(Error),
    /// A bounded run met nothing but failures for its `--give-up`.
    GaveUp(Error),
}

/// A run that ends when what was there at its start is done.
#[derive(Clone, Copy, Debug)]
pub struct Bounded {
    /// How long to wait for a lease.
    pub wait: Duration,
}

/// The partitions that this process wants to lead, and how.
pub struct Leading {
    pub admin: Admin,
    pub reader: Reader,
    /// Shows the offsets to Kafka's own tools.
    pub mirror: Option<Mirror>,
    pub election: Election,
    /// That its offsets are those of our cluster.
    pub claimed: OnceCell<()>,
    pub name: Name,
    /// The partitions of each topic to begin with.
    pub topics: BTreeMap<Topic, BTreeSet<i32>>,
    /// Whether partitions that are added later are led too.
    pub grows: bool,
    pub first_start: Option<FirstStart>,
    pub accept_loss: Vec<AcceptLoss>,
    pub bounded: Option<Bounded>,
    /// The session timeout, where partitions are handed over to processes that lead fewer.
    pub spread: Option<Duration>,
    /// What is to be handed over at the moment.
    pub handed: watch::Sender<BTreeSet<Seat>>,
    /// How long a commit may wait for those that follow it.
    pub commit_interval: Duration,
    pub board: Board,
    /// `None` for a run that ends by itself.
    pub lookout: Option<Lookout>,
}

impl Leading {
    /// Leads until `shutdown`, or until a bounded run is done; says how that run ended.
    ///
    /// Trouble of one partition ends neither the process nor the others. Fails where a partition's task panicked.
    pub async fn run<W: Work>(mut self, work: W, shutdown: &Shutdown) -> Result<Exit> {
        let (lookout, board, election) = (self.lookout.take(), self.board.clone(), self.election.clone());
        let look = async {
            match lookout {
                Some(lookout) => lookout.go_on(&board, &election).await,
                None => pending().await,
            }
        };
        tokio::select! {
            exit = self.lead_all(work, shutdown) => exit,
            never = look => match never {},
        }
    }

    async fn lead_all<W: Work>(self, work: W, shutdown: &Shutdown) -> Result<Exit> {
        let (leading, work) = (Arc::new(self), Arc::new(work));
        let mut tasks = JoinSet::new();
        let mut known = leading.topics.clone();
        let all = known.iter().flat_map(|(topic, partitions)| partitions.iter().map(|number| topic.partition(*number)));
        for post in leading.board.posts(all.map(|partition| leading.seat(partition))) {
            tasks.spawn(leading.clone().lead(post, work.clone(), shutdown.clone(), leading.first_start));
        }
        let mut growth = interval_at(Instant::now() + GROWTH, GROWTH);
        let mut spreading = pin!(leading.spread_out());
        let mut ends = vec![];
        let failed = loop {
            tokio::select! {
                end = tasks.join_next() => match end {
                    Some(end) => match end.context("a partition's task broke off")? {
                        Ok(end) => ends.push(end),
                        Err(error) => break Some(error),
                    },
                    None => break None,
                },
                _ = growth.tick(), if leading.grows && !shutdown.is_requested() => {
                    let added = leading.added(&mut known).await;
                    for post in leading.board.posts(added.into_iter().map(|partition| leading.seat(partition))) {
                        info!("{}: is new", post.seat().partition);
                        // What was written before we saw it is not to be missed.
                        let first = Some(FirstStart::Earliest);
                        tasks.spawn(leading.clone().lead(post, work.clone(), shutdown.clone(), first));
                    }
                }
                never = &mut spreading => match never {},
            }
        };
        tasks.shutdown().await;
        if let Some(mirror) = &leading.mirror {
            mirror.clone().close().await;
        }
        // Standbys have candidates too; without this they would stay until the session's end.
        leading.election.clone().close().await;
        if let Some(error) = failed {
            return Err(error);
        }
        if leading.bounded.is_none() || ends.is_empty() {
            return Ok(Exit::Done);
        }
        Ok([Exit::Person, Exit::Busy, Exit::Again].into_iter().find(|exit| ends.contains(exit)).unwrap_or(Exit::Done))
    }

    /// How much of the process's memory one batch may take: half of it is for what librdkafka holds, and each partition has
    /// one batch under way and one that is being read.
    pub fn share(&self, memory: usize) -> usize {
        memory / 2 / (2 * self.topics.values().map(BTreeSet::len).sum::<usize>().max(1))
    }

    /// Makes known how long the delayer waits.
    ///
    /// Fails where another one waits for another time, with both hosts in the text. Warns of a clock that is wrong.
    pub async fn declare_delay(&self, delay: Duration) -> Result<()> {
        self.claim().await?;
        let mut apart = Duration::ZERO;
        for (topic, partitions) in &self.topics {
            for partition in partitions {
                let theirs = self.election.declare_delay(&self.seat(topic.partition(*partition)), delay).await?;
                let ahead = SystemTime::now().duration_since(theirs);
                apart = apart.max(ahead.unwrap_or_else(|behind| behind.duration()));
            }
        }
        if apart > APART {
            warn!(
                "the clock of this machine and that of {} are {} s apart: set whichever is wrong, or what waits at a \
                 take-over may be held longer than it has to",
                self.election,
                apart.as_secs()
            );
        }
        Ok(())
    }

    /// Hands partitions over to processes that lead fewer, for ever.
    async fn spread_out(&self) -> Infallible {
        match self.spread {
            Some(session_timeout) if self.bounded.is_none() => Spread::new(self, session_timeout).go_on().await,
            _ => pending().await,
        }
    }

    fn seat(&self, partition: TopicPartition) -> Seat {
        Seat { partition, name: self.name.clone() }
    }

    async fn added(&self, known: &mut BTreeMap<Topic, BTreeSet<i32>>) -> Vec<TopicPartition> {
        let mut added = vec![];
        for (topic, partitions) in known {
            match self.admin.partitions(topic, Duration::ZERO).await {
                Ok(count) => added.extend(
                    (0..count.unwrap_or(0))
                        .filter(|p| partitions.insert(*p))
                        .map(|partition| topic.partition(partition)),
                ),
                Err(error) => debug!("cannot look for new partitions: {error:#}"),
            }
        }
        added
    }

    /// Queues for one seat, again and again, and works under each lease.
    async fn lead<W: Work>(
        self: Arc<Self>,
        post: Post,
        work: Arc<W>,
        shutdown: Shutdown,
        first_start: Option<FirstStart>,
    ) -> Result<Exit> {
        let seat = post.seat();
        let until = match self.bounded {
            Some(_) => tokio::select! {
                log = self.log(&seat.partition) => Some(log.end),
                () = shutdown.requested() => return Ok(Exit::Again),
            },
            None => None,
        };
        let mut candidacy = self.election.candidate(seat.clone());
        loop {
            let places = candidacy.places();
            let lease = async {
                tokio::select! {
                    claimed = self.claim() => claimed?,
                    () = shutdown.requested() => return Ok(None),
                }
                candidacy.lead(&shutdown).await
            };
            let queue = post.queue(places, lease);
            let lease = match self.bounded {
                Some(Bounded { wait }) => match tokio::time::timeout(wait, queue).await {
                    Ok(lease) => lease.map_err(|error| Exit::Misconfigured.because(error))?,
                    Err(_) if !self.election.is_reached() => {
                        error!("{seat}: cannot reach {} within {wait:?} (--wait)", self.election);
                        return Ok(Exit::Again);
                    }
                    Err(_) => {
                        error!("{seat}: another process leads and has not ended within {wait:?} (--wait)");
                        return Ok(Exit::Busy);
                    }
                },
                None => queue.await.map_err(|error| Exit::Misconfigured.because(error))?,
            };
            let Some(lease) = lease else {
                return Ok(if self.bounded.is_some() { Exit::Again } else { Exit::Done });
            };
            let reign = Reign { leading: &self, seat, post: &post, until, first_start };
            let (hand_over, end) = shutdown.part();
            let mut handed = self.handed.subscribe();
            let exit = tokio::select! {
                exit = reign.run(lease, &*work, &end) => exit?,
                never = async {
                    // An error cannot be: the sender is ours.
                    drop(handed.wait_for(|handed| handed.contains(seat)).await);
                    hand_over.request();
                    pending().await
                } => never,
            };
            match exit {
                Some(exit) if self.bounded.is_some() || shutdown.is_requested() => return Ok(exit),
                // Lost, or handed over.
                _ => {}
            }
        }
    }

    /// Makes sure that the offsets in ZooKeeper are those of this Kafka cluster, once, before anything of them is touched.
    async fn claim(&self) -> Result<()> {
        let claim = async || match self.admin.cluster_id().await {
            Some(cluster) => self.election.claim(&cluster).await,
            None => Ok(()),
        };
        self.claimed.get_or_try_init(claim).await.map(drop)
    }

    async fn log(&self, partition: &TopicPartition) -> kafka::Log {
        loop {
            match self.reader.log(partition).await {
                Ok(log) => return log,
                Err(error) => warn!("{error:#}; trying again"),
            }
            sleep(RETRY).await;
        }
    }
}
