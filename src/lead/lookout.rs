//! What threatens the partitions that a process leads, told while there is time: settings that were changed, records that will
//! be deleted unread, a transaction that nobody ends.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use humantime::format_duration;
use log::{debug, warn};
use tokio::time::{Instant, sleep_until};

use super::Board;
use crate::election::{Election, Seat};
use crate::kafka::{Check, Cluster, Ends};
use crate::topic::{Offset, Topic};

/// How often the settings are read again.
const PAUSE: Duration = Duration::from_secs(5 * 60);
/// How often it is looked where the partitions stand.
const LOOK: Duration = Duration::from_secs(60);
/// The same, while none is led.
const SOON: Duration = Duration::from_secs(5);

/// Looks at what is led, and tells each threat when it begins.
pub struct Lookout {
    /// Between two times that the settings are read.
    pub pause: Duration,
    check: Check,
    /// Where logs end for those who read what is committed, and where for their writers.
    committed: Ends,
    written: Ends,
    /// Where the offsets stood the last time of partitions that had more.
    stood: BTreeMap<Seat, Offset>,
    told: BTreeSet<(Seat, Threat)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Threat {
    Deletion,
    Transaction,
}

/// A partition in which more was written than its offset has passed.
struct Behind<'a> {
    seat: &'a Seat,
    offset: Offset,
    /// The next record to be written.
    end: Offset,
}

impl Behind<'_> {
    fn partition(&self) -> i32 {
        self.seat.partition.partition
    }
}

/// What was found, and how it is told.
type Threats = BTreeMap<(Seat, Threat), String>;

impl Lookout {
    /// Fails where the cluster's properties do not fit together; connects later.
    pub fn new(check: Check, cluster: &Cluster) -> Result<Lookout> {
        let (committed, written) = (Ends::open(cluster)?, Ends::of_uncommitted(cluster)?);
        Ok(Lookout { pause: PAUSE, check, committed, written, stood: BTreeMap::new(), told: BTreeSet::new() })
    }

    pub(super) async fn go_on(mut self, board: &Board, election: &Election) -> Infallible {
        let (mut settings, mut look) = (Instant::now() + self.pause, Instant::now() + SOON);
        let mut is_judged = false;
        loop {
            // Where Kafka was away at the start they are known only now.
            let brokers = self.check.brokers();
            tokio::select! {
                () = warn_of_one_server(election, brokers), if brokers > 1 && !is_judged => is_judged = true,
                () = sleep_until(settings) => {
                    self.check.again().await;
                    settings = Instant::now() + self.pause;
                }
                () = sleep_until(look) => {
                    let led = board.led();
                    look = Instant::now() + if led.is_empty() { SOON } else { LOOK };
                    self.look(&led).await.iter().for_each(|threat| warn!("{threat}"));
                    tokio::join!(self.committed.idle(), self.written.idle());
                }
            }
        }
    }

    /// What has begun to threaten these partitions, whose offsets stand there. Topics whose brokers do not answer are looked at
    /// the next time.
    pub async fn look(&mut self, led: &BTreeMap<Seat, Offset>) -> Vec<String> {
        let (mut stood, mut threats, mut unknown) = (BTreeMap::new(), Threats::new(), BTreeSet::new());
        let topics: BTreeSet<_> = led.keys().map(|seat| &seat.partition.topic).collect();
        for topic in topics {
            match self.look_at(topic, led, &mut threats).await {
                Ok(behind) => {
                    stood.extend(behind.into_iter().map(|Behind { seat, offset, .. }| (seat.clone(), offset)))
                }
                Err(error) => {
                    debug!("{error:#}");
                    unknown.insert(topic);
                }
            }
        }
        let is_known = |seat: &Seat| !unknown.contains(&seat.partition.topic);
        self.stood.retain(|seat, _| !is_known(seat));
        self.stood.extend(stood);
        threats.retain(|(seat, _), _| is_known(seat));
        let new =
            threats.iter().filter(|(threat, _)| !self.told.contains(threat)).map(|(_, text)| text.clone()).collect();
        self.told.retain(|(seat, _)| !is_known(seat));
        self.told.extend(threats.into_keys());
        new
    }

    async fn look_at<'a>(
        &self,
        topic: &Topic,
        led: &'a BTreeMap<Seat, Offset>,
        threats: &mut Threats,
    ) -> Result<Vec<Behind<'a>>> {
        let led = led.iter().filter(|(seat, _)| seat.partition.topic == *topic);
        let ends = self.written.of(topic, led.clone().map(|(seat, _)| seat.partition.partition).collect()).await?;
        let behind = led.filter_map(|(seat, offset)| {
            let end = *ends.get(&seat.partition.partition)?;
            (*offset < end).then_some(Behind { seat, offset: *offset, end })
        });
        let behind: Vec<_> = behind.collect();
        self.deletions(topic, &behind, threats).await?;
        self.transactions(topic, &behind, threats).await?;
        Ok(behind)
    }

    /// Those that have gone half of the way to the loss of what comes next.
    async fn deletions(&self, topic: &Topic, behind: &[Behind<'_>], threats: &mut Threats) -> Result<()> {
        let Some(retention) = self.check.retention(topic) else { return Ok(()) };
        let half = retention.saturating_add(self.check.delay(topic)) / 2;
        let Some(since) = SystemTime::now().checked_sub(half) else { return Ok(()) };
        let young = self.written.since(topic, behind.iter().map(Behind::partition).collect(), since).await?;
        for Behind { seat, offset, end } in behind {
            let Some(first) = young.get(&seat.partition.partition) else { continue };
            if *offset < first.unwrap_or(*end) {
                let mend = self.check.keep(topic, retention * 2);
                let (half, kept) = (format_duration(half), format_duration(retention));
                let text = format!(
                    "{seat}: what comes at offset {offset} is older than {half}, and topic {topic} deletes what is older than \
                     {kept}, done or not; let it keep more, if that may take longer: {mend}"
                );
                threats.insert(((*seat).clone(), Threat::Deletion), text);
            }
        }
        Ok(())
    }

    /// Those that stand where committed records end, as at the last look, though more was written.
    async fn transactions(&self, topic: &Topic, behind: &[Behind<'_>], threats: &mut Threats) -> Result<()> {
        let still = || behind.iter().filter(|behind| self.stood.get(behind.seat) == Some(&behind.offset));
        let ends = self.committed.of(topic, still().map(Behind::partition).collect()).await?;
        for Behind { seat, offset, end } in still() {
            if ends.get(&seat.partition.partition) == Some(offset) {
                let text = format!(
                    "{seat}: a transaction that is not over holds back what comes at offset {offset}, and all that was written \
                     after it, up to offset {end}: if its writer is gone, kafka-transactions.sh finds it (find-hanging) and \
                     ends it (abort)"
                );
                threats.insert(((*seat).clone(), Threat::Transaction), text);
            }
        }
        Ok(())
    }
}

/// Who has several brokers wants to go on without one, which one ZooKeeper server lets nobody do.
async fn warn_of_one_server(election: &Election, brokers: usize) {
    match election.voters().await {
        Ok(Some(1)) => warn!(
            "{election} is one server, beside {brokers} brokers: while it is away nobody works, and with its disk all offsets \
             are lost; three servers go on without one of them"
        ),
        Ok(_) => {}
        Err(error) => debug!("cannot see how many servers {election} has: {error:#}"),
    }
}
