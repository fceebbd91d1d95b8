//! When a partition was last seen to end: what comes after that is not older.

use std::time::Duration;

use log::debug;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kafka::Reader;
use crate::topic::{Offset, TopicPartition};

/// Asks the partition's leader now and then whether there is more than was read.
///
/// librdkafka's own notice of the end does not do: it waits in the same queue as the messages, and so tells nothing of
/// when it was written.
pub struct EndSeen {
    reader: Reader,
    partition: TopicPartition,
    every: Duration,
    asked: Option<Instant>,
    /// The last question, which may have no answer yet.
    asking: Option<JoinHandle<()>>,
    seen: watch::Sender<Option<Instant>>,
}

impl EndSeen {
    pub fn new(reader: &Reader, partition: &TopicPartition, delay: Duration) -> EndSeen {
        let every = (delay / 60).clamp(Duration::from_millis(100), Duration::from_secs(5));
        let (seen, _) = watch::channel(None);
        EndSeen { reader: reader.clone(), partition: partition.clone(), every, asked: None, asking: None, seen }
    }

    /// How long ago the partition was last seen to end where the reading was then.
    pub fn ago(&self) -> Option<Duration> {
        self.seen.borrow().map(|seen| seen.elapsed())
    }

    /// Asks, if it is time to: all before `position` was read, and nothing more came. Does not wait for the answer.
    pub fn look(&mut self, position: Offset) {
        // Each question holds a thread until it is answered, or for seconds where the leader is away.
        let is_asking = self.asking.as_ref().is_some_and(|asking| !asking.is_finished());
        if is_asking || self.asked.is_some_and(|asked| asked.elapsed() < self.every) {
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

    /// For when messages are read again, which may be older.
    pub fn forget(&mut self) {
        // An answer that is still on its way belongs to the old channel.
        (self.seen, self.asked) = (watch::channel(None).0, None);
    }
}
