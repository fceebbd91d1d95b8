//! Announcing changes: delay messages acknowledged, then the action, then instant messages. The one place where that
//! order stands; only an application that asks [`crate::serve`] acts by itself, and keeps it by what it asks.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use log::{info, warn};
use tokio::time::{Instant, timeout, timeout_at};

use crate::exit::Exit;
use crate::handler;
use crate::kafka::{Lane, Plain, Undelivered, Writer};
use crate::message::{Change, partition_of};
use crate::mutants::Mutant;
use crate::topic::Topic;

/// What it means that delay messages of changes do not arrive.
pub const UNCOVERED: &str = "cannot send the delay messages; nothing that they announce was changed";
/// What it means that instant messages of a change do not arrive.
pub const UNANNOUNCED: &str = "cannot send the instant messages; the delay messages cover the change";
/// The same where there are no delay messages.
const LOST: &str =
    "cannot send the instant messages; what was changed is announced to nobody: announce the rows of this chunk";

/// How often delay messages are sent that take too long.
const COVERINGS: usize = 10;

/// Sends the messages of changed records, those of one set of changes after those of the one before.
pub struct Announcer {
    /// How long the delayer holds a message back.
    delay: Duration,
    delays: Lane,
    /// Delay messages of what is changed next.
    ahead: Lane,
    instants: Lane,
    /// How long the longest action took that delay messages were sent for.
    longest: Duration,
    has_lost_before: bool,
}

/// A topic and its delay topic, to which messages go.
#[derive(Clone, Debug)]
pub struct Destination {
    topic: Topic,
    delay_topic: Topic,
    /// Only these; empty means all.
    partitions: Vec<i32>,
}

/// Changed records of one topic. Those of several topics make one set of changes.
#[derive(Clone, Copy, Debug)]
pub struct Changed<'a> {
    pub to: &'a Destination,
    pub changes: &'a [Change],
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

    /// What it means that instant messages of these changes do not arrive.
    pub fn unannounced(self, changed: &[Changed<'_>]) -> String {
        let changes = changed.last().map(|changed| changed.changes).unwrap_or_default();
        match self {
            Phases::Both | Phases::DelayOnly => UNANNOUNCED.to_owned(),
            Phases::InstantOnly => format!("{LOST}{} again", named(changes)),
        }
    }

    /// How many of them a record gets.
    pub fn count(self) -> u64 {
        match self {
            Phases::Both => 2,
            Phases::DelayOnly | Phases::InstantOnly => 1,
        }
    }
}

impl Announcer {
    /// `delay` is how long the delayer holds a message back.
    pub fn new(writer: &Writer, delay: Duration) -> Announcer {
        let (delays, ahead, instants) = (writer.lane(), writer.lane(), writer.lane());
        Announcer { delay, delays, ahead, instants, longest: Duration::ZERO, has_lost_before: false }
    }

    /// All of it for somebody who waits: for the delay messages, and again for the instant messages, at most for `patience`. The
    /// action takes as long as it takes, as in [`Announcer::act`].
    pub async fn announce<T>(
        mut self,
        changed: &[Changed<'_>],
        patience: Duration,
        action: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late = || anyhow!("Kafka has not acknowledged them within {}", humantime::format_duration(patience));
        let covered = timeout(patience, self.cover(changed, Phases::Both)).await;
        let covered = covered.unwrap_or_else(|_| Err(late().context(UNCOVERED)))?;
        // The instant messages not by it, but in time.
        let (done, _) = self.act(covered, (changed, &[]), Phases::DelayOnly, action).await?;
        let announced = timeout(patience, self.announce_now(changed)).await;
        announced.unwrap_or_else(|_| Err(late())).context(UNANNOUNCED)?;
        Ok(done)
    }

    /// Has delay messages of the changes acknowledged.
    pub async fn cover(&mut self, changed: &[Changed<'_>], phases: Phases) -> Result<Covered> {
        covered(self.delay, &mut self.delays, changed, phases).await
    }

    /// Runs the action, and queues the instant messages of what it has changed; [`Announcer::settled`] tells whether they
    /// arrived. Those of the changes before have arrived by then. Each half of the delay the delay messages are sent again, and
    /// the action is not polled while these are older than that, so that what it commits itself is covered. A command, which
    /// needs no polling, stands still from three quarters of the delay on until they are sent again.
    ///
    /// Meanwhile delay messages of the `next` changes are sent; what became of them is given besides.
    ///
    /// Fails where the action fails, and drops an action whose delay messages cannot be sent again. There are no instant
    /// messages then; the delay messages, where there are any, stay and heal what a half-done action may have left.
    pub async fn act<T>(
        &mut self,
        now: Covered,
        (changed, next): (&[Changed<'_>], &[Changed<'_>]),
        phases: Phases,
        action: impl Future<Output = Result<T>>,
    ) -> Result<(T, Result<Covered>)> {
        let Announcer { delay, delays, ahead, instants, longest, has_lost_before } = self;
        let (delay, renews) = (*delay, now.since.is_some() && !Mutant::RenewsNothing.is_on());
        let mut since = now.since.unwrap_or_else(Instant::now);
        if renews && since.elapsed() >= half(delay) {
            since = cover(delay, delays, changed).await.context(UNCOVERED)?;
        }
        let (started, mut held) = (Instant::now(), Duration::ZERO);
        let mut ahead = std::pin::pin!(covered(delay, ahead, next, phases));
        let mut next_covered = None;
        let done = {
            let mut action = std::pin::pin!(action);
            loop {
                tokio::select! {
                    // Whoever wakes up after a long sleep sends them first.
                    biased;
                    () = tokio::time::sleep_until(since + half(delay)), if renews => {
                        info!("the action is still at work: sending its {} delay messages again", count(changed));
                        let old = since + half(delay) + half(delay) / 2;
                        since = holding(old, &mut held, cover(delay, delays, changed)).await.context(
                            "cannot send delay messages again; the action was ended, since nothing would tell of what it \
                             changes from now on",
                        )?;
                    }
                    done = &mut action => break done,
                    covered = &mut ahead, if next_covered.is_none() => next_covered = Some(covered),
                }
            }
        };
        if now.since.is_some() {
            *longest = (*longest).max(started.elapsed().saturating_sub(held));
        }
        let done = done?;
        if phases != Phases::DelayOnly {
            // Of the changes before; what was changed since is announced whatever became of these.
            let before = settled(instants).await;
            *has_lost_before = before.is_err();
            let now = instant_messages(instants, changed).await;
            if let Err(error) = before.and(now) {
                // Those that are on their way may arrive all the same.
                drop(settled(instants).await);
                return Err(error.context(phases.unannounced(changed)));
            }
        }
        let next_covered = match next_covered {
            Some(covered) => covered,
            None => ahead.await,
        };
        Ok((done, next_covered))
    }

    /// Whether instant messages of the changes before have not arrived, which ended [`Announcer::act`].
    pub fn has_lost_before(&self) -> bool {
        self.has_lost_before
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
    pub async fn instant_messages(&mut self, changed: &[Changed<'_>]) -> Result<()> {
        instant_messages(&mut self.instants, changed).await
    }

    /// What becomes of the messages.
    pub fn outlook(&self, phases: Phases) -> String {
        let delay = humantime::format_duration(self.delay);
        match phases {
            Phases::Both => {
                format!("consumers get the instant ones now, the delay messages {delay} after they were sent")
            }
            Phases::DelayOnly => format!("consumers get them {delay} after they were sent"),
            Phases::InstantOnly => "consumers get them now".to_owned(),
        }
    }

    /// How many messages are queued and not acknowledged yet.
    pub fn in_flight(&self) -> usize {
        self.delays.in_flight() + self.ahead.in_flight() + self.instants.in_flight()
    }

    /// Has instant messages of the changes acknowledged.
    pub async fn announce_now(&mut self, changed: &[Changed<'_>]) -> Result<()> {
        self.instant_messages(changed).await?;
        self.settled().await
    }

    /// Waits until all instant messages that were queued are acknowledged.
    pub async fn settled(&mut self) -> Result<()> {
        settled(&mut self.instants).await
    }
}

impl Destination {
    /// `partitions` are the only ones that messages go to; none means all.
    ///
    /// Fails where the topic's name is too long for one of a delay topic.
    pub fn new(topic: &Topic, partitions: &[i32]) -> Result<Destination> {
        // However it is written: all writers are to choose alike.
        let partitions = BTreeSet::from_iter(partitions.iter().copied()).into_iter().collect();
        Ok(Destination { topic: topic.clone(), delay_topic: topic.delay()?, partitions })
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
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

/// By which keys a person finds them, where they have keys. Lines of stdin are in no order.
pub fn named(changes: &[Change]) -> String {
    let key = |change: Option<&Change>| Some(String::from_utf8_lossy(change?.key.as_deref()?).into_owned());
    match (key(changes.first()), key(changes.last())) {
        (Some(first), Some(last)) => format!(" (the first has the key {first}, the last one {last})"),
        _ => String::new(),
    }
}

async fn covered(delay: Duration, lane: &mut Lane, changed: &[Changed<'_>], phases: Phases) -> Result<Covered> {
    if phases == Phases::InstantOnly || Mutant::SendsInstantOnly.is_on() {
        return Ok(Covered { since: None });
    }
    let since = cover(delay, lane, changed).await.context(UNCOVERED)?;
    Ok(Covered { since: Some(since) })
}

/// Waits for delay messages that are sent again. From the time on at which the last ones are old, commands stand still: what
/// they commit would not be covered. Where it fails they stay so, to be ended. `held` grows by the time.
async fn holding(old: Instant, held: &mut Duration, renewal: impl Future<Output = Result<Instant>>) -> Result<Instant> {
    let mut renewal = std::pin::pin!(renewal);
    if let Ok(renewed) = timeout_at(old, &mut renewal).await {
        return renewed;
    }
    let begun = Instant::now();
    let is_command = handler::hold();
    if is_command {
        warn!(
            "Kafka does not acknowledge the delay messages; the action stands still, or nothing might tell of what it changes"
        );
    }
    let renewed = renewal.await?;
    if is_command {
        handler::let_go();
        info!("the delay messages are acknowledged; the action goes on");
    }
    *held += begun.elapsed();
    Ok(renewed)
}

/// Sends delay messages until all of them were acknowledged within half of the delay, and tells when that sending
/// began: those that were on their way for longer, or waited for others that were, may be sent on already.
async fn cover(delay: Duration, lane: &mut Lane, changed: &[Changed<'_>]) -> Result<Instant> {
    for _ in 0..COVERINGS {
        let begun = Instant::now();
        delay_messages(lane, changed).await?;
        let took = begun.elapsed();
        if took <= half(delay) {
            return Ok(begun);
        }
        info!("{} delay messages took {:.1} s: sending them again", count(changed), took.as_secs_f64());
    }
    Err(Exit::Again.because(anyhow!(
        "{} delay messages took longer than half of the delay each of {COVERINGS} times; give a longer --delay, also \
         to ksync-delayer, or a smaller --chunk-size",
        count(changed)
    )))
}

/// After which time delay messages are sent again: half of the delay, but no sooner than they may well take.
pub fn half(delay: Duration) -> Duration {
    (delay / 2).max(Duration::from_millis(100))
}

fn count(changed: &[Changed<'_>]) -> usize {
    changed.iter().map(|changed| changed.changes.len()).sum()
}

async fn delay_messages(lane: &mut Lane, changed: &[Changed<'_>]) -> Result<()> {
    let mut sent = Ok(());
    for Changed { to, changes } in changed {
        let values: Vec<_> = changes.iter().map(|change| change.delay_message(SystemTime::now())).collect();
        let messages: Vec<_> = changes.iter().zip(&values).map(|(change, value)| to.plain(change, value)).collect();
        sent = lane.send_all(&to.delay_topic, &messages).await;
        if sent.is_err() {
            break;
        }
    }
    // The lane does not know of a message that was not even queued.
    lane.settled().await.and(sent).map_err(failure)
}

async fn instant_messages(lane: &mut Lane, changed: &[Changed<'_>]) -> Result<()> {
    for Changed { to, changes } in changed {
        let messages: Vec<_> = changes.iter().map(|change| to.plain(change, &change.payload)).collect();
        lane.send_all(&to.topic, &messages).await.map_err(failure)?;
    }
    Ok(())
}

async fn settled(instants: &mut Lane) -> Result<()> {
    if Mutant::ExitsUnflushed.is_on() {
        return Ok(());
    }
    instants.settled().await.map_err(failure)
}

fn failure(undelivered: Undelivered) -> anyhow::Error {
    let exit = if undelivered.is_transient() { Exit::Again } else { Exit::Person };
    let topic = format!("cannot write to topic {}", undelivered.topic());
    exit.because(anyhow::Error::new(undelivered).context(topic))
}
