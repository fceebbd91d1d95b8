//! What becomes of messages that were sent on: the offset follows once they are acknowledged, and the work goes back to the
//! first one that is not.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Error;
use log::warn;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Forwarder;
use crate::kafka::{self, Lane};
use crate::lead::{self, Done, End};

/// How often the offset is moved while messages flow.
const COMMIT: Duration = Duration::from_millis(200);
/// How long to wait before a broker that did not take a message is given it again.
const RETRY: Duration = Duration::from_secs(1);
/// How long reports are waited for at the end, so that a standby need not wait for the session to expire.
const LAST_REPORTS: Duration = Duration::from_secs(10);

/// Messages that were sent and that the offset has not passed yet, in their order.
pub(super) struct Flight {
    pub lane: Lane,
    pub sent: VecDeque<Done>,
    /// How many are sent before all of them have to be acknowledged.
    pub most: usize,
    /// How many of the acknowledged ones the offset has passed.
    counted: u64,
    /// When it was last moved.
    moved: Instant,
}

impl Flight {
    pub fn new(lane: Lane) -> Flight {
        Flight { lane, sent: VecDeque::new(), most: usize::MAX, counted: 0, moved: Instant::now() }
    }

    /// How far everything is acknowledged, if that is further than before.
    fn take_acknowledged(&mut self) -> Option<Done> {
        let acknowledged = self.lane.acknowledged();
        let new = usize::try_from(acknowledged - self.counted).unwrap_or(usize::MAX).min(self.sent.len());
        self.counted = acknowledged;
        self.sent.drain(..new).next_back()
    }

    fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}

impl Forwarder<'_, '_> {
    /// Waits for `something`, and meanwhile moves the offset over what is acknowledged.
    pub(super) async fn pass_time(
        &mut self,
        what: lead::Waiting,
        something: impl Future<Output = ()>,
    ) -> Result<(), End> {
        let mut something = std::pin::pin!(something);
        loop {
            self.advance().await?;
            tokio::select! {
                biased;
                why = self.held.lease.lost() => return Err(End::Lost(why)),
                () = self.shutdown.requested() => return Err(End::Shutdown),
                () = self.held.during(what.clone(), &mut something) => return Ok(()),
                () = sleep_until(self.flight.moved + COMMIT), if !self.flight.is_empty() => {
                    if self.flight.lane.has_failed() {
                        return Ok(());
                    }
                    self.flight.moved = Instant::now();
                    self.advance_now().await?;
                }
            }
        }
    }

    pub(super) async fn advance(&mut self) -> Result<(), End> {
        if self.flight.moved.elapsed() >= COMMIT { self.advance_now().await } else { Ok(()) }
    }

    async fn advance_now(&mut self) -> Result<(), End> {
        match self.flight.take_acknowledged() {
            Some(done) => self.commit(done).await,
            None => Ok(()),
        }
    }

    /// Moves the offset over what nobody is given behind the last message: markers of transactions, what was aborted.
    pub(super) async fn pass_to_end(&mut self) -> Result<(), End> {
        let is_all_done = self.waiting.is_empty() && self.flight.is_empty();
        match self.end.take_if(|_| is_all_done) {
            Some(end) if end > self.held.standing.offset => self.commit(Done::before(end)).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn commit(&mut self, done: Done) -> Result<(), End> {
        let checked = tokio::select! {
            checked = self.held.check_topic() => checked?,
            why = self.held.lease.lost() => return Err(End::Lost(why)),
        };
        self.held.standing = self.held.commit(self.held.standing, checked, done).await?;
        self.flight.moved = Instant::now();
        Ok(())
    }

    /// Waits until each message in flight has its report, and moves the offset over those before the first failure.
    pub(super) async fn land(&mut self) -> Result<(), End> {
        while self.flight.lane.in_flight() > 0 {
            tokio::select! {
                () = self.held.during(lead::Waiting::Kafka, self.flight.lane.reported()) => {}
                why = self.held.lease.lost() => return Err(End::Lost(why)),
            }
        }
        self.advance_now().await
    }

    /// After a failed report: begins again with the first message that was not acknowledged.
    pub(super) async fn go_back(&mut self, records: &mut kafka::Partition) -> Result<(), End> {
        self.land().await?;
        let refused = self.flight.sent.len();
        self.flight.sent.clear();
        self.flight.counted = 0;
        self.waiting.clear();
        (self.damaged, self.end) = (None, None);
        let Err(undelivered) = self.flight.lane.settled().await else {
            return Ok(());
        };
        let (standing, transient) = (self.held.standing, undelivered.is_transient());
        let offset = standing.offset;
        if !transient && refused > 1 {
            // A broker refuses a whole batch for one of its messages, or for their sum. Which one shows when each goes alone.
            self.flight.most = 1;
        } else if !transient {
            let what = format!("cannot send the message of offset {offset} on to {}", self.topic);
            return Err(End::Halted(Error::new(undelivered).context(what)));
        } else {
            warn!(
                "{}: cannot send messages from offset {offset} on to {}: {undelivered}; trying again",
                self.held.seat, self.topic
            );
            self.pass_time(lead::Waiting::Pause(Instant::now() + RETRY), sleep(RETRY)).await?;
        }
        records.seek(offset, standing.epoch());
        Ok(())
    }

    /// What is in flight is waited for and counted, however the work ended; unless somebody else leads already. What has no
    /// report for too long the next leader sends again.
    pub(super) async fn finish(&mut self, end: End) -> End {
        match end {
            End::Lost(why) => End::Lost(why),
            end => match timeout(LAST_REPORTS, self.land()).await {
                Ok(Err(lost)) => lost,
                Ok(Ok(())) | Err(_) => end,
            },
        }
    }
}
