//! Where a partition ended at times: so messages are not older than a look that did not see them, and not younger than one that
//! did, whatever clocks say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::debug;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kafka::Reader;
use crate::topic::{Offset, TopicPartition};

/// How much later than the next look was due a message may be read that counts as new; and by how much clocks may differ.
const LATE: Duration = Duration::from_secs(1);
/// How many looks are kept. They are a delay's time, divided by this, apart.
const MOST: u32 = 64;

/// Asks the partition's leader now and then where the partition ends.
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
    looks: Arc<Mutex<Looks>>,
}

impl EndSeen {
    pub fn new(reader: &Reader, partition: &TopicPartition, delay: Duration) -> EndSeen {
        let every = (delay / 60).clamp(Duration::from_millis(100), Duration::from_secs(5));
        let looks = Looks { kept: VecDeque::new(), apart: delay / MOST, new: (every + LATE).min(delay / 2) };
        let (reader, partition, looks) = (reader.clone(), partition.clone(), Arc::new(Mutex::new(looks)));
        EndSeen { reader, partition, every, asked: None, asking: None, looks }
    }

    /// How old the message at `offset` counts that is read now and whose time tells that it is `told`.
    pub fn age(&self, offset: Offset, told: Duration) -> Duration {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).age(offset, told, Instant::now())
    }

    /// How old the message at `offset` is at most that is read now, where it is read as soon as it came.
    pub fn at_most(&self, offset: Offset) -> Option<Duration> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.at_most(offset, Instant::now()).filter(|at_most| *at_most < looks.new)
    }

    /// When it is time to look again.
    pub fn next(&self) -> Instant {
        let last = if self.is_asking() { None } else { self.asked };
        last.unwrap_or_else(Instant::now) + self.every
    }

    /// Asks, if it is time to. Does not wait for the answer.
    pub fn look(&mut self) {
        // Each question holds a thread until it is answered, or for seconds where the leader is away.
        if self.is_asking() || self.asked.is_some_and(|asked| asked.elapsed() < self.every) {
            return;
        }
        let asked = Instant::now();
        self.asked = Some(asked);
        let (reader, partition, looks) = (self.reader.clone(), self.partition.clone(), self.looks.clone());
        self.asking = Some(tokio::spawn(async move {
            match reader.log(&partition).await {
                Ok(log) => {
                    let look = Look { asked, answered: Instant::now(), end: log.end };
                    looks.lock().unwrap_or_else(PoisonError::into_inner).add(look);
                }
                Err(error) => debug!("{error:#}"),
            }
        }));
    }

    fn is_asking(&self) -> bool {
        self.asking.as_ref().is_some_and(|asking| !asking.is_finished())
    }
}

/// Whatever lies before `end` was there when it was answered, and whatever does not was not when it was asked.
struct Look {
    asked: Instant,
    answered: Instant,
    end: Offset,
}

struct Looks {
    /// The oldest first.
    kept: VecDeque<Look>,
    apart: Duration,
    /// How long after a look what it did not see counts as new.
    new: Duration,
}

impl Looks {
    fn add(&mut self, look: Look) {
        // The last one was kept only for as long as there was no later one.
        if let [.., before, last] = self.kept.make_contiguous()
            && last.asked - before.asked < self.apart
        {
            self.kept.pop_back();
        }
        self.kept.push_back(look);
        if self.kept.len() > MOST as usize + 2 {
            self.kept.pop_front();
        }
    }

    /// As `told`, where that can be. Of what was read as soon as it came no clock is asked; and one that tells what cannot be
    /// does not make a message older than it is for certain.
    fn age(&self, offset: Offset, told: Duration, now: Instant) -> Duration {
        let seen = match self.kept.back() {
            Some(last) if last.end > offset => self.kept.iter().find(|look| look.end > offset),
            _ => None,
        };
        let at_least = seen.map_or(Duration::ZERO, |look| now - look.answered);
        match self.at_most(offset, now) {
            Some(at_most) if at_most < self.new || told > at_most + LATE => at_least,
            Some(at_most) => told.clamp(at_least.min(at_most), at_most),
            None => told.max(at_least),
        }
    }

    /// It is not older than the last look that did not see it.
    fn at_most(&self, offset: Offset, now: Instant) -> Option<Duration> {
        self.kept.iter().rev().find(|look| look.end <= offset).map(|look| now - look.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    /// Of (seconds ago, end), each of them answered at once.
    fn looks(ends: &[(u64, i64)], now: Instant) -> Looks {
        let mut looks = Looks { kept: VecDeque::new(), apart: SECS(5), new: SECS(6) };
        for (ago, end) in ends {
            let at = now - SECS(*ago);
            looks.add(Look { asked: at, answered: at, end: Offset(*end) });
        }
        looks
    }

    #[test]
    fn a_time_is_believed_as_far_as_the_looks_let_it_be_true() {
        let now = Instant::now() + SECS(10_000);
        let age = |ends: &[(u64, i64)], told| looks(ends, now).age(Offset(100), SECS(told), now).as_secs();
        // Nobody has looked.
        assert_eq!((age(&[], 0), age(&[], 4000)), (0, 4000));
        // Read as soon as it came, whatever else has come by then.
        assert_eq!((age(&[(5, 100)], 4000), age(&[(5, 90)], 4)), (0, 0));
        // Read late: it is not older than the look that did not see it, and a clock that says so is wrong.
        assert_eq!((age(&[(200, 100)], 100), age(&[(200, 100)], 201)), (100, 200));
        assert_eq!((age(&[(200, 100)], 4000), age(&[(200, 100), (195, 101)], 4000)), (0, 195));
        // Nor younger than the one that did.
        assert_eq!((age(&[(200, 100), (195, 101)], 0), age(&[(195, 101)], 0)), (195, 195));
        assert_eq!(age(&[(195, 101)], 4000), 4000);
        // Read again: what was new then is not now.
        assert_eq!(age(&[(60, 90), (55, 100), (50, 101), (45, 200)], 52), 52);
        assert_eq!(age(&[(60, 90), (55, 100), (50, 101), (45, 200)], 4000), 50);
    }

    #[test]
    fn a_delay_is_covered_by_few_looks_and_the_last_one_is_always_there() {
        let now = Instant::now() + SECS(10_000);
        let all: Vec<_> = (0..5000).map(|number| (5000 - number, number as i64)).collect();
        let looks = looks(&all, now);
        assert!(looks.kept.len() <= MOST as usize + 2);
        assert!(now - looks.kept[0].asked >= SECS(5) * MOST);
        assert_eq!(looks.kept.back().unwrap().end, Offset(4999));
        let worst = looks.kept.iter().zip(looks.kept.iter().skip(1)).map(|(one, next)| next.asked - one.asked).max();
        assert_eq!(worst, Some(SECS(5)));
    }
}
