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
use crate::election::Seat;
use crate::kafka::{Check, Ends, Reader};
use crate::topic::{Offset, Topic};

/// How often the settings are read again.
const PAUSE: Duration = Duration::from_secs(5 * 60);
/// How often it is looked where the partitions stand.
const LOOK: Duration = Duration::from_secs(60);
/// The same, while none is led.
const SOON: Duration = Duration::from_secs(5);

/// Looks at what is led, and tells each threat once, when it begins.
pub struct Lookout {
    /// Between two times that the settings are read.
    pub pause: Duration,
    check: Check,
    /// Whoever may read it.
    written: Ends,
    reader: Reader,
    /// Where the offsets stood the last time.
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

impl Lookout {
    /// `written` are ends behind all that was written, `reader` is one of committed records.
    pub fn new(check: Check, written: Ends, reader: Reader) -> Lookout {
        Lookout { pause: PAUSE, check, written, reader, stood: BTreeMap::new(), told: BTreeSet::new() }
    }

    pub(super) async fn go_on(mut self, board: &Board) -> Infallible {
        let (mut settings, mut look) = (Instant::now() + self.pause, Instant::now() + SOON);
        loop {
            tokio::select! {
                () = sleep_until(settings) => {
                    self.check.again().await;
                    settings = Instant::now() + self.pause;
                }
                () = sleep_until(look) => {
                    let led = board.led();
                    look = Instant::now() + if led.is_empty() { SOON } else { LOOK };
                    match self.look(led).await {
                        Ok(threats) => threats.iter().for_each(|threat| warn!("{threat}")),
                        Err(error) => debug!("{error:#}"),
                    }
                }
            }
        }
    }

    /// What has begun to threaten these partitions, whose offsets stand there.
    ///
    /// Fails where a broker does not answer.
    pub async fn look(&mut self, led: BTreeMap<Seat, Offset>) -> Result<Vec<String>> {
        let mut threats = BTreeMap::new();
        let topics: BTreeSet<_> = led.keys().map(|seat| &seat.partition.topic).collect();
        for topic in topics {
            let behind = self.behind(topic, &led).await?;
            self.deletions(topic, &behind, &mut threats).await?;
            self.transactions(&behind, &mut threats).await?;
        }
        self.stood = led;
        let told = std::mem::replace(&mut self.told, threats.keys().cloned().collect());
        Ok(threats.into_iter().filter(|(threat, _)| !told.contains(threat)).map(|(_, text)| text).collect())
    }

    async fn behind<'a>(&self, topic: &Topic, led: &'a BTreeMap<Seat, Offset>) -> Result<Vec<Behind<'a>>> {
        let led = led.iter().filter(|(seat, _)| seat.partition.topic == *topic);
        let ends = self.written.of(topic, led.clone().map(|(seat, _)| seat.partition.partition).collect()).await?;
        let behind = led.filter_map(|(seat, offset)| {
            let end = *ends.get(&seat.partition.partition)?;
            (*offset < end).then_some(Behind { seat, offset: *offset, end })
        });
        Ok(behind.collect())
    }

    /// Those that have gone half of the way to the loss of what comes next.
    async fn deletions(
        &self,
        topic: &Topic,
        behind: &[Behind<'_>],
        threats: &mut BTreeMap<(Seat, Threat), String>,
    ) -> Result<()> {
        let Some(retention) = self.check.retention(topic) else {
            return Ok(());
        };
        let Some(half) = SystemTime::now().checked_sub(retention / 2) else {
            return Ok(());
        };
        let partitions = behind.iter().map(|behind| behind.seat.partition.partition).collect();
        let young = self.written.since(topic, partitions, half).await?;
        for Behind { seat, offset, end } in behind {
            let Some(first) = young.get(&seat.partition.partition) else {
                continue;
            };
            if *offset < first.unwrap_or(*end) {
                let mend = self.check.keep(topic, retention * 2);
                let (half, kept) = (format_duration(retention / 2), format_duration(retention));
                threats.insert(((*seat).clone(), Threat::Deletion), format!(
                    "{seat}: what comes at offset {offset} is older than {half}, and topic {topic} deletes what is older than \
                     {kept}, done or not; let it keep more, if that may take longer: {mend}"
                ));
            }
        }
        Ok(())
    }

    /// Those that stand where committed records end, since the last look, though more was written.
    async fn transactions(&self, behind: &[Behind<'_>], threats: &mut BTreeMap<(Seat, Threat), String>) -> Result<()> {
        for Behind { seat, offset, end } in behind {
            if self.stood.get(seat) == Some(offset) && self.reader.log(&seat.partition).await?.end == *offset {
                threats.insert(((*seat).clone(), Threat::Transaction), format!(
                    "{seat}: a transaction that is not over holds back what comes at offset {offset}, and all that was \
                     written after it, up to offset {end}: if its writer is gone, kafka-transactions.sh finds it \
                     (find-hanging) and ends it (abort)"
                ));
            }
        }
        Ok(())
    }
}
