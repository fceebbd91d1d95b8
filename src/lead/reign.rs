//! One lease on a seat, from its beginning to its end: the work, and what follows from how that ended.

use std::time::Duration;

use anyhow::Result;
use log::{error, info, warn};
use tokio::time::{Instant, sleep_until};

use super::place::{FirstStart, Place};
use super::{End, Held, Leading, Post, RETRY, Waiting, Work};
use crate::election::{Lease, Position, Seat};
use crate::exit::Exit;
use crate::fit::Standing;
use crate::kafka;
use crate::mutants::Mutant;
use crate::shutdown::Shutdown;
use crate::topic::Offset;

/// How long a halted partition waits before it is tried again.
const HALT: Duration = Duration::from_secs(60);

/// How soon after the first time an offset has to be missing again: by then a replica that lags behind has come up, and a
/// halted partition was tried again.
const AGAIN: Duration = Duration::from_secs(120);

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
        let Place { standing, topic_id, epoch, is_new, end } = place;
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
            // A broker that has told where the log ends before may have told too little, too.
            until: self.until.map(|until| until.max(end.unwrap_or(until))),
            topic_id,
            ids: self.leading.reader.ids().clone(),
            mirror: self.leading.mirror.clone(),
            commit_interval: self.leading.commit_interval,
            post: self.post,
        };
        Ok((held, records))
    }
}
