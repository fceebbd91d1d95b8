//! One lease on a seat, from its beginning to its end: where to go on, the work, what follows from how that ended.

use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use log::{error, info, warn};
use tokio::time::{Instant, sleep_until};

use super::held::topic_id;
use super::{End, Held, Leading, Post, RETRY, Waiting, Work};
use crate::election::{Lease, Position, Seat, StoredOffset, StoredState};
use crate::exit::Exit;
use crate::fit::{self, Standing, There};
use crate::kafka;
use crate::mutants::Mutant;
use crate::shutdown::Shutdown;
use crate::topic::{Epoch, Offset, TopicId};

/// How long a halted partition waits before it is tried again.
const HALT: Duration = Duration::from_secs(60);

/// How soon after the first time an offset has to be missing again: by then a replica that lags behind has come up, and a
/// halted partition was tried again.
const AGAIN: Duration = Duration::from_secs(120);

/// Where to begin where no offset is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstStart {
    #[default]
    Earliest,
    Latest,
    At(SystemTime),
}

/// One lease on a seat, from its beginning to its end.
pub(super) struct Reign<'a> {
    pub leading: &'a Leading,
    pub seat: &'a Seat,
    pub post: &'a Post,
    pub until: Option<Offset>,
    pub first_start: Option<FirstStart>,
}

impl Reign<'_> {
    /// How the partition's run ended; `None`: queue again. Fails where the process has to end.
    pub async fn run<W: Work>(&self, lease: Lease, work: &W, shutdown: &Shutdown) -> Result<Option<Exit>> {
        let seat = self.seat;
        self.post.leads(lease.term());
        let mut standing = None;
        // Where and when the log was not what it was: once that may be a replica that lags behind.
        let (mut missed, mut is_cut) = (None::<(Option<Offset>, Instant)>, false);
        loop {
            let end = match self.begin(&lease, (standing, is_cut), shutdown).await {
                Ok((mut held, mut records)) => {
                    let end = match held.is_done() {
                        true => End::Done,
                        false => work.work(&mut records, &mut held, shutdown).await,
                    };
                    standing = Some(held.standing);
                    end
                }
                Err(end) => end,
            };
            let bounded = self.leading.bounded.is_some();
            is_cut = false;
            match end {
                End::Done => {
                    lease.release().await;
                    return Ok(Some(Exit::Done));
                }
                End::Shutdown => {
                    lease.release().await;
                    info!("{seat}: handed over");
                    return Ok(Some(if bounded { Exit::Again } else { Exit::Done }));
                }
                End::Lost(why) => {
                    warn!("{seat}: no longer leading: {why}; queueing again");
                    return Ok(None);
                }
                End::Misconfigured(reason) => {
                    lease.release().await;
                    return Err(Exit::Misconfigured.because(reason.context(seat.to_string())));
                }
                End::GaveUp(reason) => {
                    error!("{seat}: gave up: {reason:#}");
                    lease.release().await;
                    return Ok(Some(Exit::Again));
                }
                End::Again(reason) => {
                    warn!("{seat}: {reason:#}; looking at it anew");
                    let until = Instant::now() + RETRY;
                    self.pause((until, Waiting::Pause(until)), &lease, shutdown).await;
                }
                End::OutOfLog => {
                    warn!("{seat}: the offset is not in the log any more; looking at it anew");
                    let offset = standing.map(|kept| kept.offset);
                    is_cut = missed.is_some_and(|(at, when)| at == offset && when.elapsed() < AGAIN);
                    missed = Some((offset, Instant::now()));
                    let until = Instant::now() + RETRY;
                    self.pause((until, Waiting::Pause(until)), &lease, shutdown).await;
                }
                End::Halted(reason) => {
                    let offset = standing.map_or(String::new(), |kept| format!(" at offset {}", kept.offset));
                    error!("{seat}: halted{offset}: {reason:#}");
                    if bounded {
                        lease.release().await;
                        return Ok(Some(Exit::Person));
                    }
                    let until = Instant::now() + HALT;
                    let why = format!("{reason:#}");
                    self.pause((until, Waiting::Halted { why, until }), &lease, shutdown).await;
                    if standing.is_none() {
                        // What is stored may have been mended meanwhile; only a new lease reads it again.
                        lease.release().await;
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn pause(&self, (until, what): (Instant, Waiting), lease: &Lease, shutdown: &Shutdown) {
        tokio::select! {
            () = self.post.during(what, sleep_until(until)) => {}
            _ = lease.lost() => {}
            () = shutdown.requested() => {}
        }
    }

    /// Finds out where to go on, and begins to read there.
    async fn begin<'l>(
        &'l self,
        lease: &'l Lease,
        known: (Option<Standing>, bool),
        shutdown: &Shutdown,
    ) -> Result<(Held<'l>, kafka::Partition), End> {
        let place = tokio::select! {
            biased;
            why = lease.lost() => return Err(End::Lost(why)),
            () = shutdown.requested() => return Err(End::Shutdown),
            place = self.post.during(Waiting::Kafka, self.place(lease, known)) => place?,
        };
        let Place { standing, topic_id, epoch, is_new } = place;
        let Standing { offset, leader_epoch, last, skipped, .. } = standing;
        if is_new {
            // The number is written before the first record is read: a crash must not move the beginning.
            lease.commit(Position { offset, topic_id, leader_epoch, last, skipped }).await.map_err(End::Lost)?;
        }
        let partition = &self.seat.partition;
        let from = if Mutant::BeginsBefore.is_on() { Offset((offset.0 - 1).max(0)) } else { offset };
        let records = self.leading.reader.partition(partition, from, epoch);
        if known.0.is_none() {
            info!("{}: leading from offset {offset}, term {}", self.seat, lease.term());
        }
        self.post.moves(offset);
        let held = Held {
            seat: self.seat.clone(),
            lease,
            standing,
            until: self.until,
            topic_id,
            ids: self.leading.reader.ids().clone(),
            mirror: self.leading.mirror.clone(),
            commit_interval: self.leading.commit_interval,
            post: self.post,
        };
        Ok((held, records))
    }

    async fn place(&self, lease: &Lease, (standing, is_cut): (Option<Standing>, bool)) -> Result<Place, End> {
        let (partition, reader) = (&self.seat.partition, &self.leading.reader);
        let id = topic_id(reader.ids(), &partition.topic).await.map_err(End::Again)?;
        let Some(topic_id) = id else {
            return Err(End::Halted(anyhow!("topic {} does not exist any more", partition.topic)));
        };
        let log = reader.log(partition).await.map_err(End::Again)?;
        let kept = match standing {
            Some(standing) => Some(standing),
            None => self.stored(lease).map_err(End::Halted)?,
        };
        let Some(kept) = kept else {
            let offset = self.first(log).await.map_err(End::Again)?;
            match self.post.left() {
                Some(left) if left > offset => warn!(
                    "{}: no offset is stored any more, it was {left}; beginning at {offset}: records come again",
                    self.seat
                ),
                _ => info!("{}: no offset is stored, beginning at {offset}", self.seat),
            }
            let standing = Standing { topic_id: Some(topic_id), ..Standing::at(offset) };
            return Ok(Place { standing, topic_id, epoch: None, is_new: true });
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
        Ok(Place { standing, topic_id, epoch, is_new: moved || has_learned })
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

    /// What the take-over found; `None` where no offset is stored.
    fn stored(&self, lease: &Lease) -> Result<Option<Standing>> {
        let stored = lease.stored();
        let offset = match &stored.offset {
            StoredOffset::None => return Ok(None),
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
            StoredState::Newer(v) => {
                return Err(anyhow!(
                    "the state beside the offset is of version {v}, which this release does not know; start the newer ksync \
                     that has written it"
                ));
            }
            StoredState::Unreadable(why) => warn!("{}: the state beside the offset cannot be read: {why}", self.seat),
            StoredState::None => {}
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

/// Where to begin to read.
struct Place {
    standing: Standing,
    topic_id: TopicId,
    epoch: Option<Epoch>,
    /// Not what is stored: to be written first.
    is_new: bool,
}
