//! Announcing changes: delay messages acknowledged, then the action, then instant messages. The one place where that
//! order stands.

use std::future::Future;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use log::{info, warn};
use tokio::time::Instant;

use crate::exit::Exit;
use crate::kafka::{Lane, Plain, Undelivered, Writer};
use crate::message::{Change, partition_of};
use crate::mutants::Mutant;
use crate::topic::Topic;

const UNCOVERED: &str = "cannot send the delay messages; nothing was changed";
/// What it means that instant messages of a change do not arrive.
pub const UNANNOUNCED: &str = "cannot send the instant messages; the delay messages cover the change";

/// How often delay messages are sent that take too long.
const COVERINGS: usize = 10;

/// Sends the messages of changed records to a topic and its delay topic.
pub struct Announcer {
    topic: Topic,
    delay_topic: Topic,
    delay: Duration,
    /// Only these; empty means all.
    partitions: Vec<i32>,
    delays: Lane,
    instants: Lane,
    /// How long the longest action took that delay messages were sent for.
    longest: Duration,
}

/// That delay messages were acknowledged, and when their sending began; `None` where there are none.
#[must_use = "the action is to follow"]
pub struct Covered {
    since: Option<Instant>,
}

/// Which of its two messages a record gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phases {
    Both,
    DelayOnly,
    InstantOnly,
}

impl Phases {
    /// The topics that are written to.
    pub fn topics(self, topic: &Topic) -> Result<Vec<Topic>> {
        Ok(match self {
            Phases::Both => vec![topic.clone(), topic.delay()?],
            Phases::DelayOnly => vec![topic.delay()?],
            Phases::InstantOnly => vec![topic.clone()],
        })
    }
}

impl Announcer {
    /// `delay` is how long the delayer holds a message back.
    pub fn new(writer: &Writer, topic: &Topic, partitions: &[i32], delay: Duration) -> Result<Announcer> {
        let delay_topic = topic.delay()?;
        let (topic, partitions) = (topic.clone(), partitions.to_vec());
        let (delays, instants) = (writer.lane(), writer.lane());
        Ok(Announcer { topic, delay_topic, delay, partitions, delays, instants, longest: Duration::ZERO })
    }

    /// Has delay messages of the changes acknowledged, while `meanwhile` runs.
    pub async fn cover_while<M>(
        &mut self,
        changes: &[Change],
        phases: Phases,
        meanwhile: impl Future<Output = M>,
    ) -> Result<(Covered, M)> {
        if phases == Phases::InstantOnly || Mutant::SendsInstantOnly.is_on() {
            return Ok((Covered { since: None }, meanwhile.await));
        }
        let (since, done) = tokio::join!(self.cover(changes), meanwhile);
        let since = since.context(UNCOVERED)?;
        Ok((Covered { since: Some(since) }, done))
    }

    /// Runs the action, and queues the instant messages of what it has changed; [`Announcer::settled`] tells whether they
    /// arrived. Each half of the delay the delay messages are sent again, and the action is not polled while these are older
    /// than that, so that what it commits itself is covered.
    ///
    /// Fails where the action fails, and drops an action whose delay messages cannot be sent again. There are no instant
    /// messages then; the delay messages stay and heal what a half-done action may have left.
    pub async fn act<T>(
        &mut self,
        covered: Covered,
        changes: &[Change],
        phases: Phases,
        action: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let renews = covered.since.is_some() && !Mutant::RenewsNothing.is_on();
        let mut since = covered.since.unwrap_or_else(Instant::now);
        if renews && since.elapsed() >= self.half() {
            since = self.cover(changes).await.context(UNCOVERED)?;
        }
        let started = Instant::now();
        let done = {
            let mut action = std::pin::pin!(action);
            loop {
                tokio::select! {
                    // Whoever wakes up after a long sleep sends them first.
                    biased;
                    () = tokio::time::sleep_until(since + self.half()), if renews => {
                        info!("the action is still at work: sending its {} delay messages again", changes.len());
                        since = self.cover(changes).await.context(
                            "cannot send delay messages again; the action was ended, since nothing would tell of what it \
                             changes from now on",
                        )?;
                    }
                    done = &mut action => break done,
                }
            }
        };
        if covered.since.is_some() {
            self.longest = self.longest.max(started.elapsed());
        }
        let done = done?;
        if phases != Phases::DelayOnly
            && let Err(error) = self.instant_messages(changes).await
        {
            // Those before it may arrive all the same.
            drop(self.settled().await);
            return Err(error.context(UNANNOUNCED));
        }
        Ok(done)
    }

    /// Sends delay messages until all of them were acknowledged within half of the delay, and tells when that sending
    /// began: those that were on their way for longer, or waited for others that were, may be sent on already.
    async fn cover(&mut self, changes: &[Change]) -> Result<Instant> {
        for _ in 0..COVERINGS {
            let begun = Instant::now();
            self.delay_messages(changes).await?;
            let took = begun.elapsed();
            if took <= self.half() {
                return Ok(begun);
            }
            info!("{} delay messages took {:.1} s: sending them again", changes.len(), took.as_secs_f64());
        }
        Err(Exit::Again.because(anyhow!(
            "{} delay messages took longer than half of the delay each of {COVERINGS} times; give a longer --delay, also \
             to ksync-delayer, or a smaller --chunk-size",
            changes.len()
        )))
    }

    /// Of the delay; but no shorter than what messages may well take.
    fn half(&self) -> Duration {
        (self.delay / 2).max(Duration::from_millis(100))
    }

    /// Says so where an action took longer than the delay.
    pub fn warn_of_short_delay(&self) {
        if self.longest > self.delay {
            warn!(
                "the longest action took {:.1} s, the delay is {}: what it changes is covered only while ksync-stream lives \
                 to send its delay messages again; give a longer --delay, also to ksync-delayer, or a smaller --chunk-size",
                self.longest.as_secs_f64(),
                humantime::format_duration(self.delay)
            );
        }
    }

    /// Queues the instant messages; [`Announcer::settled`] tells whether they arrived.
    pub async fn instant_messages(&mut self, changes: &[Change]) -> Result<()> {
        let plain = |change| self.plain(change, &change.payload);
        let messages: Vec<_> = changes.iter().map(plain).collect();
        self.instants.send_all(&self.topic, &messages).await.map_err(|undelivered| failure(undelivered, &self.topic))
    }

    /// How many messages are queued and not acknowledged yet.
    pub fn in_flight(&self) -> usize {
        self.delays.in_flight() + self.instants.in_flight()
    }

    /// Waits until all instant messages that were queued are acknowledged.
    pub async fn settled(&mut self) -> Result<()> {
        if Mutant::ExitsUnflushed.is_on() {
            return Ok(());
        }
        self.instants.settled().await.map_err(|undelivered| failure(undelivered, &self.topic))
    }

    async fn delay_messages(&mut self, changes: &[Change]) -> Result<()> {
        let values: Vec<_> = changes.iter().map(|change| change.delay_message(SystemTime::now())).collect();
        let messages: Vec<_> = changes.iter().zip(&values).map(|(change, value)| self.plain(change, value)).collect();
        let sent = self.delays.send_all(&self.delay_topic, &messages).await;
        // The lane does not know of a message that was not even queued.
        self.delays.settled().await.and(sent).map_err(|undelivered| failure(undelivered, &self.delay_topic))
    }

    fn plain<'a>(&self, change: &'a Change, value: &'a [u8]) -> Plain<'a> {
        Plain { partition: self.partition(change), key: change.key.as_deref(), value: Some(value) }
    }

    /// `None` leaves the choice to the producer: by key, or any partition.
    fn partition(&self, change: &Change) -> Option<i32> {
        match (self.partitions.as_slice(), &change.key) {
            ([], _) => None,
            (among, Some(key)) => Some(partition_of(key, among)),
            (among, None) => Some(among[rand::random_range(0..among.len())]),
        }
    }
}

fn failure(undelivered: Undelivered, topic: &Topic) -> anyhow::Error {
    let exit = if undelivered.is_transient() { Exit::Again } else { Exit::Person };
    exit.because(anyhow::Error::new(undelivered).context(format!("cannot write to topic {topic}")))
}
