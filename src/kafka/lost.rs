//! Clients that have lost all brokers.
//!
//! A broker that has just started, or that the controller takes for dead, may answer that the cluster has no brokers. librdkafka
//! then forgets all that it knows, those of `bootstrap.servers` included, and never connects again
//! (confluentinc/librdkafka#5301, open; since 2.10.0). So each client of ours is looked at every second, and told where to begin.
//! One that has not learned of any broker yet forgets nothing (rdkafka_metadata.c); but where the machine allowed no thread for
//! those of `bootstrap.servers` it has none (rdkafka_broker.c). So it is told, too, only more seldom.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

use super::{Aside, thread};
use crate::sys;

const INTERVAL: Duration = Duration::from_secs(1);

/// After how long at most a client that goes on to know none is told again, and one that never knew any for the first time:
/// librdkafka keeps what it is told for good, and there may be no broker for days.
const AGAIN: Duration = Duration::from_secs(30);

/// A client of librdkafka.
pub(super) trait Client: Send + Sync {
    fn has_brokers(&self) -> bool;

    /// Whether a broker has ever answered.
    fn knows_cluster(&self) -> bool;

    fn begin_at(&self, bootstrap: &str);
}

macro_rules! client {
    ($type:ident, $context:ident, $inner:ident) => {
        impl<C: $context + 'static> Client for $type<C> {
            fn has_brokers(&self) -> bool {
                sys::brokers_learned(self.$inner()) > 0
            }

            fn knows_cluster(&self) -> bool {
                // In no time it asks nobody.
                self.$inner().fetch_cluster_id(Duration::ZERO).is_some()
            }

            fn begin_at(&self, bootstrap: &str) {
                sys::add_brokers(self.$inner(), bootstrap);
            }
        }
    };
}

client!(AdminClient, ClientContext, inner);
client!(BaseConsumer, ConsumerContext, client);
client!(ThreadedProducer, ProducerContext, client);

struct Watched<C> {
    client: Weak<C>,
    bootstrap: String,
    had_brokers: bool,
    /// When it is told, and how long after that it is again.
    due: Instant,
    pause: Duration,
}

impl<C: Client + 'static> Watched<C> {
    fn new(client: &Arc<C>, bootstrap: &str) -> Watched<C> {
        let (client, bootstrap) = (Arc::downgrade(client), bootstrap.to_owned());
        Watched { client, bootstrap, had_brokers: false, due: Instant::now() + AGAIN, pause: AGAIN }
    }
}

trait Look: Send {
    /// Gives whether there is a client still.
    fn look(&mut self, now: Instant) -> bool;
}

impl<C: Client + 'static> Look for Watched<C> {
    fn look(&mut self, now: Instant) -> bool {
        // It may be that its last owner leaves it meanwhile.
        let Some(client) = self.client.upgrade().map(Aside::from) else { return false };
        let has_brokers = client.has_brokers();
        // Between two looks it may have learned of some, and lost them.
        if has_brokers || !self.had_brokers && client.knows_cluster() {
            (self.had_brokers, self.due, self.pause) = (true, now, INTERVAL);
        }
        if !has_brokers && self.due <= now {
            client.begin_at(&self.bootstrap);
            self.due = now + self.pause;
            self.pause = (2 * self.pause).min(AGAIN);
        }
        true
    }
}

/// What the thread is told of that looks after all clients, once there is one.
static NEW: Mutex<Option<Sender<Box<dyn Look>>>> = Mutex::new(None);

/// Looks after the client as long as there is one. Fails where there can be no thread for that.
pub(super) fn look_after<C: Client + 'static>(client: &Arc<C>, bootstrap: &str) -> Result<()> {
    let mut new = NEW.lock().unwrap_or_else(PoisonError::into_inner);
    let new = match &mut *new {
        Some(new) => new,
        none => none.insert(begin()?),
    };
    new.send(Box::new(Watched::new(client, bootstrap))).ok(); // A panic of the thread is the end of the process.
    Ok(())
}

fn begin() -> Result<Sender<Box<dyn Look>>> {
    let (new, told) = channel();
    thread("lost", move || watch(&told))?;
    Ok(new)
}

fn watch(new: &Receiver<Box<dyn Look>>) {
    let (mut all, mut due) = (Vec::<Box<dyn Look>>::new(), Instant::now() + INTERVAL);
    loop {
        match new.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(watched) => all.push(watched),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Also where new ones come all the time.
        let now = Instant::now();
        if due <= now {
            all.retain_mut(|watched| watched.look(now));
            due = now + INTERVAL;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    /// A client that knows what it is told to know.
    #[derive(Default)]
    struct Told {
        has_brokers: AtomicBool,
        knows_cluster: AtomicBool,
        begun: AtomicU64,
    }

    impl Client for Told {
        fn has_brokers(&self) -> bool {
            self.has_brokers.load(Ordering::Relaxed)
        }

        fn knows_cluster(&self) -> bool {
            self.knows_cluster.load(Ordering::Relaxed)
        }

        fn begin_at(&self, bootstrap: &str) {
            assert_eq!(bootstrap, "a:1");
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// At which of the seconds a client is told where to begin.
    fn told(client: &Arc<Told>, watched: &mut Watched<Told>, begun: Instant, seconds: &[u64]) -> Vec<u64> {
        let is_told = |second: &u64| {
            let before = client.begun.load(Ordering::Relaxed);
            assert!(watched.look(begun + Duration::from_secs(*second)));
            client.begun.load(Ordering::Relaxed) > before
        };
        seconds.iter().copied().filter(is_told).collect()
    }

    #[test]
    fn a_client_that_has_lost_its_brokers_is_told_ever_more_seldom_and_one_that_never_had_any_is_at_that_pace() {
        let client = Arc::new(Told::default());
        let mut watched = Watched::new(&client, "a:1");
        let begun = watched.due - AGAIN;
        let mut told = |seconds: &[u64]| told(&client, &mut watched, begun, seconds);
        let seconds: Vec<u64> = (0..=100).collect();
        assert_eq!(told(&seconds), [30, 60, 90]);
        client.has_brokers.store(true, Ordering::Relaxed);
        assert_eq!(told(&seconds), [0; 0]);
        client.has_brokers.store(false, Ordering::Relaxed);
        // At the last second it had some.
        let seconds: Vec<u64> = (100..=200).collect();
        assert_eq!(told(&seconds), [100, 101, 103, 107, 115, 131, 161, 191]);
        // The process stood still meanwhile.
        assert_eq!(told(&[1000, 1001, 1029, 1030]), [1000, 1030]);
        drop(client);
        assert!(!watched.look(Instant::now()));
    }

    #[test]
    fn a_client_that_has_lost_its_brokers_between_two_looks_is_told_too() {
        let client = Arc::new(Told { knows_cluster: AtomicBool::new(true), ..Told::default() });
        let mut watched = Watched::new(&client, "a:1");
        assert_eq!(told(&client, &mut watched, Instant::now(), &[0, 1, 2]), [0, 1]);
    }
}
