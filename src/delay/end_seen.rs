//! When a partition was last seen to end: what comes after that is not older.

use std::time::Duration;

use log::debug;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kafka::Reader;
use crate::topic::{Offset, TopicPartition};

/// How much later than the next look was due a message may be read that counts as new.
const LATE: Duration = Duration::from_secs(1);

/// Asks the partition's leader now and then whether there is more than was read.
///
/// librdkafka's own notice of the end does not do: it waits in the same queue as the messages, and so tells nothing of
/// when it was written.
pub struct EndSeen {
    reader: Reader,
    partition: TopicPartition,
    every: Duration,
    /// How long after a look what is read counts as new.
    new: Duration,
    asked: Option<Instant>,
    /// The last question, which may have no answer yet.
    asking: Option<JoinHandle<()>>,
    seen: watch::Sender<Option<Instant>>,
}

impl EndSeen {
    pub fn new(reader: &Reader, partition: &TopicPartition, delay: Duration) -> EndSeen {
        let every = (delay / 60).clamp(Duration::from_millis(100), Duration::from_secs(5));
        let new = (every + LATE).min(delay / 2);
        let (seen, _) = watch::channel(None);
        EndSeen { reader: reader.clone(), partition: partition.clone(), every, new, asked: None, asking: None, seen }
    }

    /// How old a message counts that is read now and whose time tells that it is `told`.
    pub fn age(&self, told: Duration) -> Duration {
        let ago = self.seen.borrow().map(|seen| seen.elapsed());
        age(told, ago, self.new)
    }

    /// When it is time to look again.
    pub fn next(&self) -> Instant {
        let last = if self.is_asking() { None } else { self.asked };
        last.unwrap_or_else(Instant::now) + self.every
    }

    /// Asks, if it is time to: all before `position` was read, and nothing more came. Does not wait for the answer.
    pub fn look(&mut self, position: Offset) {
        // Each question holds a thread until it is answered, or for seconds where the leader is away.
        if self.is_asking() || self.asked.is_some_and(|asked| asked.elapsed() < self.every) {
            return;
        }
        let asked = Instant::now();
        self.asked = Some(asked);
        let (reader, partition, seen) = (self.reader.clone(), self.partition.clone(), self.seen.clone());
        self.asking = Some(tokio::spawn(async move {
            match reader.log(&partition).await {
                Ok(log) if log.end <= position => drop(seen.send_replace(Some(asked))),
                Ok(_) => {}
                Err(error) => debug!("{error:#}"),
            }
        }));
    }

    fn is_asking(&self) -> bool {
        self.asking.as_ref().is_some_and(|asking| !asking.is_finished())
    }

    /// For when messages are read again, which may be older.
    pub fn forget(&mut self) {
        // An answer that is still on its way belongs to the old channel.
        (self.seen, self.asked) = (watch::channel(None).0, None);
    }
}

/// `ago` is how long ago the partition was seen to end before the message, which is no older than that. If that was less than
/// `new` ago, the message was read as soon as it came, and no clock knows better: so neither a wrong one nor a forged time lets
/// it through.
fn age(told: Duration, ago: Option<Duration>, new: Duration) -> Duration {
    match ago {
        Some(ago) if ago < new => Duration::ZERO,
        Some(ago) => told.min(ago),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_believed_only_of_what_was_there_before_the_last_look() {
        let secs = Duration::from_secs;
        assert_eq!(age(secs(100), None, secs(6)), secs(100));
        assert_eq!(age(secs(100), Some(secs(200)), secs(6)), secs(100));
        assert_eq!(age(secs(4000), Some(secs(200)), secs(6)), secs(200));
        assert_eq!(age(secs(4000), Some(secs(5)), secs(6)), secs(0));
    }
}
