//! Clients that have lost all brokers.
//!
//! A broker that has just started, or that the controller takes for dead, may answer that the cluster has no brokers. librdkafka
//! then forgets all that it knows, those of `bootstrap.servers` included, and never connects again
//! (confluentinc/librdkafka#5301, open; since 2.10.0). So each client of ours is looked at every second, and told where to begin.

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

    fn begin_at(&self, bootstrap: &str);
}

macro_rules! client {
    ($type:ident, $context:ident, $inner:ident) => {
        impl<C: $context + 'static> Client for $type<C> {
            fn has_brokers(&self) -> bool {
                sys::brokers_learned(self.$inner()) > 0
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
    /// When it is told, and how long after that it is again.
    due: Instant,
    pause: Duration,
}

trait Look: Send {
    /// Gives whether there is a client still.
    fn look(&mut self) -> bool;
}

impl<C: Client + 'static> Look for Watched<C> {
    fn look(&mut self) -> bool {
        // It may be that its last owner leaves it meanwhile.
        let Some(client) = self.client.upgrade().map(Aside::from) else { return false };
        if client.has_brokers() {
            (self.due, self.pause) = (Instant::now(), INTERVAL);
        } else if self.due <= Instant::now() {
            client.begin_at(&self.bootstrap);
            self.due += self.pause;
            self.pause = (2 * self.pause).min(AGAIN);
        }
        true
    }
}

/// Looks after the client as long as there is one.
///
/// Fails where there can be no thread for that.
pub(super) fn look_after<C: Client + 'static>(client: &Arc<C>, bootstrap: &str) -> std::io::Result<()> {
    static NEW: Mutex<Option<Sender<Box<dyn Look>>>> = Mutex::new(None);
    let (client, bootstrap) = (Arc::downgrade(client), bootstrap.to_owned());
    let mut watched: Box<dyn Look> = Box::new(Watched { client, bootstrap, due: Instant::now(), pause: INTERVAL });
    let mut new = NEW.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(new) = &*new {
        match new.send(watched) {
            Ok(()) => return Ok(()),
            // The thread has panicked.
            Err(unsent) => watched = unsent.0,
        }
    }
    let (sender, receiver) = channel();
    thread::Builder::new().name("lost".to_owned()).spawn(move || watch(&receiver, vec![watched]))?;
    *new = Some(sender);
    Ok(())
}

fn watch(new: &Receiver<Box<dyn Look>>, mut all: Vec<Box<dyn Look>>) {
    loop {
        match new.recv_timeout(INTERVAL) {
            Ok(watched) => all.push(watched),
            Err(RecvTimeoutError::Timeout) => all.retain_mut(|watched| watched.look()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
