//! Which partitions of a consumer may be read ahead: so many at once, in turns.
//!
//! For each partition librdkafka holds at least a whole batch of its producer, whatever its limits are, and half a kilobyte
//! besides for each record. Where 64 partitions have much to be read that makes 50 MiB and more. A partition that was read
//! to its end needs no slot, nor for a few new records.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// After so long a slot goes to a partition that waits for one. What was read ahead is then fetched again later, so that
/// this is to happen seldom.
const TURN: Duration = Duration::from_secs(1);

/// The slots of a consumer.
pub(super) struct Slots {
    most: usize,
    given: Mutex<Table>,
    /// Held by who waits longest.
    first: tokio::sync::Mutex<()>,
    given_back: Notify,
}

#[derive(Default)]
struct Table {
    next_number: u64,
    /// The longest given is the first.
    given: VecDeque<Given>,
}

struct Given {
    number: u64,
    since: Instant,
    recall: Box<dyn FnOnce() + Send>,
}

/// Leave to read ahead. Dropped, it is given back.
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

impl Slots {
    pub fn new(most: usize) -> Arc<Slots> {
        let (given, first, given_back) = Default::default();
        Arc::new(Slots { most, given, first, given_back })
    }

    /// One that nobody has or waits for. `recall` is called where the slot is taken away again.
    pub fn free(self: &Arc<Slots>, recall: impl FnOnce() + Send + 'static) -> Option<Slot> {
        let _first = self.first.try_lock().ok()?;
        let mut table = self.table();
        (table.given.len() < self.most).then(|| self.give(&mut table, recall))
    }

    /// Waits for one, at most until it is this one's turn: then it is taken from who has one longest.
    pub async fn get(self: &Arc<Slots>, recall: impl FnOnce() + Send + 'static) -> Slot {
        let _first = self.first.lock().await;
        loop {
            let turn_ends = {
                let mut table = self.table();
                match table.given.front() {
                    Some(oldest) if table.given.len() >= self.most => oldest.since + TURN,
                    _ => return self.give(&mut table, recall),
                }
            };
            tokio::select! {
                () = self.given_back.notified() => {}
                () = sleep_until(turn_ends) => {
                    let oldest = self.table().given.pop_front_if(|oldest| oldest.since + TURN <= Instant::now());
                    if let Some(oldest) = oldest {
                        (oldest.recall)();
                    }
                }
            }
        }
    }

    fn give(self: &Arc<Slots>, table: &mut Table, recall: impl FnOnce() + Send + 'static) -> Slot {
        let number = table.next_number;
        table.next_number += 1;
        table.given.push_back(Given { number, since: Instant::now(), recall: Box::new(recall) });
        Slot { slots: self.clone(), number }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        // Else it was taken away.
        if let Ok(at) = table.given.binary_search_by_key(&self.number, |given| given.number) {
            table.given.remove(at);
            self.slots.given_back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_gets_a_slot_once_the_turn_of_the_first_is_over() {
        let (recalled, mut recalls) = mpsc::unbounded_channel();
        let recall = |name: &'static str| {
            let recalled = recalled.clone();
            move || recalled.send(name).unwrap()
        };
        let slots = Slots::new(2);
        let begun = Instant::now();
        let a = slots.get(recall("a")).await;
        let b = slots.free(recall("b")).expect("there are two");
        assert!(slots.free(recall("c")).is_none());
        let c = slots.get(recall("c")).await;
        assert!(recalls.recv().await == Some("a") && begun.elapsed() >= TURN);
        // To give back what was taken away means nothing.
        drop(a);
        assert!(slots.free(recall("d")).is_none());
        drop(b);
        let d = slots.free(recall("d")).expect("b's is free");
        drop(c);
        let e = slots.get(recall("e")).await;
        drop(d);
        assert!(slots.free(recall("f")).is_some() && recalls.try_recv().is_err());
        drop(e);
    }

    #[tokio::test]
    async fn those_that_wait_get_their_slots_in_their_order_and_nobody_passes_them() {
        let slots = Slots::new(1);
        let first = slots.get(|| ()).await;
        let (order, mut got) = mpsc::unbounded_channel();
        for number in 0..20 {
            let (slots, order) = (slots.clone(), order.clone());
            tokio::spawn(async move {
                let slot = slots.get(|| ()).await;
                order.send(number).unwrap();
                drop(slot);
            });
            tokio::task::yield_now().await;
        }
        assert!(slots.free(|| ()).is_none());
        drop(first);
        let mut all = vec![];
        while all.len() < 20 {
            all.push(got.recv().await.unwrap());
        }
        assert!(all.is_sorted(), "{all:?}");
    }
}
