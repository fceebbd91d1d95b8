//! Clients that have lost all brokers.
//!
//! A broker that has just started, or that the controller takes for dead, may answer that the cluster has no brokers. librdkafka
//! then forgets all that it knows, those of `bootstrap.servers` included, and never connects again
//! (confluentinc/librdkafka#5301, open; since 2.10.0). So each client of ours is looked at every second, and told where to begin.
//! One that has not learned of any broker yet forgets nothing (rdkafka_metadata.c), and is left alone.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

use super::Aside;
use crate::sys;

const INTERVAL: Duration = Duration::from_secs(1);

/// After how long at most a client that goes on to know none is told again: librdkafka keeps what it is told for good, and there
/// may be no broker for days.
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
        Watched { client, bootstrap, had_brokers: false, due: Instant::now(), pause: INTERVAL }
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
        if client.has_brokers() {
            (self.had_brokers, self.due, self.pause) = (true, now, INTERVAL);
            return true;
        }
        // Between two looks it may have learned of some, and lost them.
        self.had_brokers = self.had_brokers || client.knows_cluster();
        if self.had_brokers && self.due <= now {
            client.begin_at(&self.bootstrap);
            self.due = now + self.pause;
            self.pause = (2 * self.pause).min(AGAIN);
        }
        true
    }
}

/// What the thread is told of that looks after all clients, if there is one.
static NEW: Mutex<Option<Sender<Box<dyn Look>>>> = Mutex::new(None);

/// Makes sure that there is a thread for [`look_after`]. Fails where there can be none.
pub(super) fn begin() -> io::Result<()> {
    let mut new = NEW.lock().unwrap_or_else(PoisonError::into_inner);
    if new.is_none() {
        let (sender, receiver) = channel();
        thread::Builder::new().name("lost".to_owned()).spawn(move || watch(&receiver))?;
        *new = Some(sender);
    }
    Ok(())
}

/// Looks after the client as long as there is one.
pub(super) fn look_after<C: Client + 'static>(client: &Arc<C>, bootstrap: &str) {
    let mut new = NEW.lock().unwrap_or_else(PoisonError::into_inner);
    let is_told = |new: &Sender<Box<dyn Look>>| new.send(Box::new(Watched::new(client, bootstrap))).is_ok();
    if !new.as_ref().is_some_and(is_told) {
        // The thread has panicked; the next client has another one.
        *new = None;
    }
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
    fn told(client: &Arc<Told>, watched: &mut Watched<Told>, seconds: &[u64]) -> Vec<u64> {
        let begun = watched.due;
        let is_told = |second: &u64| {
            let before = client.begun.load(Ordering::Relaxed);
            assert!(watched.look(begun + Duration::from_secs(*second)));
            client.begun.load(Ordering::Relaxed) > before
        };
        seconds.iter().copied().filter(is_told).collect()
    }

    #[test]
    fn a_client_that_has_lost_its_brokers_is_told_ever_more_seldom_and_one_that_never_had_any_is_not() {
        let client = Arc::new(Told::default());
        let mut watched = Watched::new(&client, "a:1");
        let seconds: Vec<u64> = (0..=100).collect();
        assert_eq!(told(&client, &mut watched, &seconds), [0; 0]);
        client.has_brokers.store(true, Ordering::Relaxed);
        assert_eq!(told(&client, &mut watched, &seconds), [0; 0]);
        client.has_brokers.store(false, Ordering::Relaxed);
        assert_eq!(told(&client, &mut watched, &seconds), [0, 1, 3, 7, 15, 31, 61, 91]);
        // The process stood still meanwhile.
        assert_eq!(told(&client, &mut watched, &[1000, 1001, 1029, 1030]), [1000, 1030]);
        drop(client);
        assert!(!watched.look(Instant::now()));
    }

    #[test]
    fn a_client_that_has_lost_its_brokers_between_two_looks_is_told_too() {
        let client = Arc::new(Told { knows_cluster: AtomicBool::new(true), ..Told::default() });
        assert_eq!(told(&client, &mut Watched::new(&client, "a:1"), &[0, 1, 2]), [0, 1]);
    }
}
