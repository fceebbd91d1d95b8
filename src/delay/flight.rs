//! What becomes of messages that were sent on: the offset follows once they are acknowledged, and the work goes back to the
//! first one that is not.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use anyhow::Error;
use log::warn;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Forwarder;
use crate::kafka::{self, Lane};
use crate::lead::{self, Done, End};

/// How long to wait before a broker that did not take a message is given it again.
const RETRY: Duration = Duration::from_secs(1);
/// So many messages that the offset has not passed are sent, by all partitions, while their commits are under way: the next
/// leaders may send all of them again.
const OPEN: usize = 1 << 16;
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
}

impl Flight {
    pub fn new(lane: Lane) -> Flight {
        Flight { lane, sent: VecDeque::new(), most: usize::MAX, counted: 0 }
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

    fn is_full(&self) -> bool {
        self.sent.len() >= self.lane.share(OPEN)
    }
}

impl Forwarder<'_> {
    /// Waits for `something`, and meanwhile moves the offset over what is acknowledged.
    pub(super) async fn pass_time(
        &mut self,
        what: lead::Waiting,
        something: impl Future<Output = ()>,
    ) -> Result<(), End> {
        let mut something = pin!(self.held.during(what, something));
        loop {
            self.advance()?;
            let next = self.commits.next;
            tokio::select! {
                biased;
                moved = self.commits.moved() => moved?,
                () = self.shutdown.requested() => return Err(End::Shutdown),
                () = &mut something => return Ok(()),
                () = sleep_until(next), if !self.flight.is_empty() => {
                    if self.flight.lane.has_failed() {
                        return Ok(());
                    }
                    self.advance()?;
                    self.commits.pause();
                }
            }
        }
    }

    /// Moves the offset over what is acknowledged; and where that is all, behind it over what nobody is given: markers of
    /// transactions, what was aborted.
    pub(super) fn advance(&mut self) -> Result<(), End> {
        self.commits.go_on()?;
        if self.commits.is_under_way() {
            return Ok(());
        }
        if self.commits.next <= Instant::now()
            && let Some(done) = self.flight.take_acknowledged()
        {
            self.commits.begin(done);
        } else if let Some(end) = self.end.take_if(|_| self.waiting.is_empty() && self.flight.is_empty())
            && end > self.commits.standing.offset
        {
            self.commits.begin(Done::before(end));
        } else {
            self.commits.look();
        }
        Ok(())
    }

    /// Where very many messages were sent while a commit is under way, waits for its end.
    pub(super) async fn hold_back(&mut self) -> Result<(), End> {
        if self.flight.is_full() && self.commits.is_under_way() {
            tokio::select! {
                moved = self.commits.moved() => moved?,
                () = self.shutdown.requested() => return Err(End::Shutdown),
            }
        }
        Ok(())
    }

    /// As [`Forwarder::land_at_last`], unless it is to end.
    pub(super) async fn land(&mut self) -> Result<(), End> {
        let shutdown = self.shutdown;
        tokio::select! {
            landed = self.land_at_last() => landed,
            () = shutdown.requested() => Err(End::Shutdown),
        }
    }

    /// Waits until each message in flight has its report, and moves the offset over those before the first failure. Can be given
    /// up at any time.
    async fn land_at_last(&mut self) -> Result<(), End> {
        while self.flight.lane.in_flight() > 0 {
            tokio::select! {
                () = self.held.during(lead::Waiting::Kafka, self.flight.lane.reported()) => {}
                moved = self.commits.moved() => moved?,
            }
        }
        self.commits.finish().await?;
        if let Some(done) = self.flight.take_acknowledged() {
            self.commits.begin(done);
        }
        self.commits.finish().await
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
        let (standing, transient) = (self.commits.standing, undelivered.is_transient());
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
            end => match timeout(LAST_REPORTS, self.land_at_last()).await {
                Ok(Err(lost)) => lost,
                Ok(Ok(())) | Err(_) => end,
            },
        }
    }
}
