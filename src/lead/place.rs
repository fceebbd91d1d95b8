//! Where a leader goes on: what is stored, whether the log is still the one that it belongs to.

use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use log::{info, warn};
use tokio::time::sleep;

use super::held::topic_id;
use super::reign::Reign;
use super::{End, Leading};
use crate::election::{Lease, Position, StoredOffset, StoredState};
use crate::fit::{self, Standing, There};
use crate::kafka;
use crate::topic::{Epoch, Offset, TopicId};

/// How long a log may end before the offset without being truncated: a broker that has just become its leader, or that has just
/// started, may not know yet how far it goes (librdkafka#3745).
const SHORT: Duration = Duration::from_secs(5);

/// Where to begin where no offset is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstStart {
    #[default]
    Earliest,
    Latest,
    At(SystemTime),
}

/// Where to begin to read.
pub(super) struct Place {
    pub standing: Standing,
    pub topic_id: TopicId,
    pub epoch: Option<Epoch>,
    /// Not what is stored: to be written first.
    pub is_new: bool,
    /// Where the log ends, if a broker has not known that at once.
    pub end: Option<Offset>,
}

impl Reign<'_> {
    pub(super) async fn place(
        &self,
        lease: &Lease,
        (standing, is_cut): (Option<Standing>, bool),
    ) -> Result<Place, End> {
        let (partition, reader) = (&self.seat.partition, &self.leading.reader);
        let id = topic_id(reader.ids(), &partition.topic).await.map_err(End::Again)?;
        let Some(topic_id) = id else {
            return Err(End::Halted(anyhow!("topic {} does not exist any more", partition.topic)));
        };
        let log = reader.log(partition).await.map_err(End::Again)?;
        let kept = match standing {
            Some(standing) => Some(standing),
            None => self.stored(lease, log).map_err(End::Halted)?,
        };
        let Some(kept) = kept else {
            let offset = match (self.left(lease), &lease.stored().state) {
                (Some(left), _) => {
                    warn!(
                        "{}: no offset is stored any more, it was {left}; beginning at {}: records come again",
                        self.seat, log.begin
                    );
                    log.begin
                }
                (None, StoredState::Unreadable(why)) => {
                    warn!(
                        "{}: no offset is stored any more, and the state beside it cannot be read: {why}; beginning at {}: \
                         records come again",
                        self.seat, log.begin
                    );
                    log.begin
                }
                (None, _) => {
                    let first = self.first(log).await.map_err(End::Again)?;
                    info!("{}: no offset is stored, beginning at {first}", self.seat);
                    first
                }
            };
            let standing = Standing { topic_id: Some(topic_id), ..Standing::at(offset) };
            return Ok(Place { standing, topic_id, epoch: None, is_new: true, end: None });
        };
        let is_same = kept.topic_id.is_none_or(|id| !id.differs_from(topic_id));
        // Where the log has come further by then, the epoch tells whether these are the records that were there before.
        let (log, end) = match is_same && kept.offset > log.end && kept.epoch().is_some() {
            true => {
                sleep(SHORT).await;
                let log = reader.log(partition).await.map_err(End::Again)?;
                (log, Some(log.end))
            }
            false => (log, None),
        };
        let last = self.last(&kept, topic_id, log).await?;
        let log = fit::Log { topic_id, begin: log.begin, end: log.end, is_cut, last };
        let offset = fit::fit(partition, kept, log, &self.leading.accept_loss).map_err(End::Halted)?;
        let moved = offset != kept.offset || kept.topic_id.is_some_and(|id| id.differs_from(topic_id));
        let standing = match moved {
            true => Standing { topic_id: Some(topic_id), skipped: kept.skipped, ..Standing::at(offset) },
            false => Standing { topic_id: Some(kept.id_with(topic_id)), ..kept },
        };
        // What lies before the log's beginning cannot be read any more.
        let epoch = standing.epoch().map(|epoch| Epoch { end: epoch.end.max(log.begin), ..epoch });
        // With ids a topic that is made again is known for sure, also where nothing is read until then.
        let has_learned = topic_id.is_known() && kept.topic_id.is_some_and(|id| !id.is_known());
        Ok(Place { standing, topic_id, epoch, is_new: moved || has_learned, end })
    }

    /// What is there now in the place of the last record that was read, where ids do not tell this log from another one.
    async fn last(&self, kept: &Standing, topic_id: TopicId, log: kafka::Log) -> Result<There, End> {
        let (partition, Leading { admin, reader, .. }) = (&self.seat.partition, self.leading);
        let has_ids = topic_id.is_known() && kept.topic_id.is_none_or(TopicId::is_known);
        let read = kept.last.filter(|last| (log.begin..log.end).contains(&last.offset));
        // With ids it would cost each take-over a fetch for nothing.
        let Some(last) = read.filter(|_| !has_ids) else { return Ok(There::Unknown) };
        match reader.record_at(partition, last.offset).await.map_err(End::Again)? {
            kafka::Found::Record(record) => Ok(There::Record(record)),
            kafka::Found::Damaged(why) => {
                warn!("{}: whether the log is the same is not known: {why:#}", self.seat);
                Ok(There::Unknown)
            }
            // Nothing but compaction takes a record from within a log.
            kafka::Found::Nothing => match admin.is_compacted(&partition.topic).await.map_err(End::Again)? {
                Some(true) => Ok(There::Unknown),
                Some(false) => Ok(There::Nothing),
                None => {
                    let topic = &partition.topic;
                    warn!("{}: topic {topic} counts as not compacted, as its settings may not be read", self.seat);
                    Ok(There::Nothing)
                }
            },
        }
    }

    /// Where the partition has stood, although no offset is stored: somebody has deleted that.
    fn left(&self, lease: &Lease) -> Option<Offset> {
        match &lease.stored().state {
            StoredState::Kept(state) => Some(state.position.offset),
            _ => self.post.left(),
        }
    }

    /// What the take-over found; `None` where the work is to begin anew.
    fn stored(&self, lease: &Lease, log: kafka::Log) -> Result<Option<Standing>> {
        let stored = lease.stored();
        if let StoredState::Newer(v) = stored.state {
            return Err(anyhow!(
                "the state beside the offset is of version {v}, which this release does not know; start the newer ksync that \
                 has written it"
            ));
        }
        let offset = match &stored.offset {
            // Who begins anew still misses what is gone from between.
            StoredOffset::None => return Ok(self.left(lease).filter(|left| *left < log.begin).map(Standing::at)),
            StoredOffset::At(offset) => *offset,
            StoredOffset::Garbage(text) => {
                return Err(anyhow!(
                    "the stored offset is '{text}', which is not a number; write a number there (nothing means: from the \
                     beginning)"
                ));
            }
        };
        if self.first_start.is_some_and(|first| first != FirstStart::Earliest) {
            info!("{}: an offset is stored, so --first-start does not count", self.seat);
        }
        match &stored.state {
            StoredState::Kept(state) if state.position.offset == offset => {
                if let Some(left) = self.post.left().filter(|left| *left > offset) {
                    warn!("{}: the offset went back from {left} to {offset}: records come again", self.seat);
                }
                let Position { topic_id, leader_epoch, last, skipped, .. } = state.position;
                return Ok(Some(Standing { offset, topic_id: Some(topic_id), leader_epoch, last, skipped }));
            }
            StoredState::Kept(state) => warn!(
                "{}: the offset was moved from {} to {offset} by somebody else; going on from {offset}",
                self.seat, state.position.offset
            ),
            StoredState::Unreadable(why) => warn!("{}: the state beside the offset cannot be read: {why}", self.seat),
            StoredState::None | StoredState::Newer(_) => {}
        }
        Ok(Some(Standing::at(offset)))
    }

    async fn first(&self, log: kafka::Log) -> Result<Offset> {
        match self.first_start.unwrap_or_default() {
            FirstStart::Earliest => Ok(log.begin),
            FirstStart::Latest => Ok(log.end),
            FirstStart::At(time) => {
                let found = self.leading.reader.offset_at(&self.seat.partition, time).await?;
                Ok(found.unwrap_or(log.end))
            }
        }
    }
}
