//! One transaction of an application: its delay messages, until it is told what has become of it. It is the application that
//! acts in between, once its requests are answered.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt};
use log::{info, warn};
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Reply;
use super::request::Changes;
use super::{KEPT as KEPT_BYTES, Shared};
use crate::announce::{Announcer, Phases, UNANNOUNCED, UNCOVERED, half};
use crate::exit::Exit;

/// How long a transaction is kept whose end nobody tells, unless ten times the delay is longer.
const KEPT: Duration = Duration::from_secs(3600);
/// After which time delay messages that were not acknowledged are sent again, while the transaction lasts.
const RETRY: Duration = Duration::from_secs(1);
/// How many delay requests are served at once.
const AT_ONCE: usize = 250;
/// What a transaction takes in memory besides its parts, and a part besides its changes, about.
const BESIDE: usize = 4 << 10;
const BESIDE_PART: usize = 300;
/// What it means for a transaction of which some delay messages were not acknowledged.
const UNTOLD: &str =
    "cannot send the instant messages, and not all delay messages were sent; announce the change once more";

/// A transaction that is under way. Dropped, it is forgotten.
pub(super) struct Transaction {
    asked: UnboundedSender<Asked>,
}

enum Asked {
    /// With the room in memory that the changes take; without any they are not kept.
    Delay(Changes, Option<OwnedSemaphorePermit>, Reply),
    Instant(Changes, Reply),
}

impl Transaction {
    /// In this room in memory.
    pub fn begin(shared: &Arc<Shared>, room: OwnedSemaphorePermit) -> Transaction {
        let (asked, asking) = unbounded_channel();
        let shared = shared.clone();
        tokio::spawn(async move {
            let _room = room;
            shared.open.fetch_add(1, Ordering::Relaxed);
            serve(&shared, asking).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
        Transaction { asked }
    }

    /// Has delay messages of the changes acknowledged, and sends them again and again until the transaction has ended.
    pub fn cover(&self, changes: Changes, room: Option<OwnedSemaphorePermit>, reply: Reply) {
        self.ask(Asked::Delay(changes, room, reply));
    }

    /// Sends the instant messages of all its changes, and of these.
    pub fn commit(self, changes: Changes, reply: Reply) {
        self.ask(Asked::Instant(changes, reply));
    }

    fn ask(&self, asked: Asked) {
        // Its task ends only with this; else the reply answers by its own end.
        drop(self.asked.send(asked));
    }
}

/// What is known of a transaction.
#[derive(Default)]
struct Kept {
    parts: Vec<Arc<Changes>>,
    rooms: Vec<OwnedSemaphorePermit>,
    /// Some of it is not kept: only the application knows all.
    is_partial: bool,
    /// Some of it was never covered.
    is_uncovered: bool,
    /// Nothing of it is kept any more, whatever comes.
    is_given_up: bool,
}

impl Kept {
    fn add(&mut self, part: Arc<Changes>, room: Option<OwnedSemaphorePermit>) {
        match room {
            Some(room) if !self.is_given_up => {
                self.parts.push(part);
                self.rooms.push(room);
            }
            _ => self.is_partial = true,
        }
    }

    /// Only the application knows what was changed.
    fn give_up(&mut self) {
        let is_uncovered = self.is_uncovered;
        *self = Kept { is_partial: true, is_uncovered, is_given_up: true, ..Kept::default() };
    }
}

/// From its first request to its end.
async fn serve(shared: &Arc<Shared>, mut asking: UnboundedReceiver<Asked>) {
    let (mut kept, mut coverings, mut some) = (Kept::default(), FuturesUnordered::new(), vec![]);
    let (begun, kept_for) = (Instant::now(), KEPT.max(10 * shared.delay));
    let (mut renewing, mut renew_at) = (false, None::<Instant>);
    let committed = loop {
        let renewal = async {
            match renew_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        select! {
            biased;
            count = asking.recv_many(&mut some, AT_ONCE) => {
                if count == 0 {
                    break None;
                }
                let (mut parts, mut replies, mut committed) = (vec![], vec![], None);
                for asked in some.drain(..) {
                    match asked {
                        Asked::Delay(changes, room, reply) => {
                            let part = Arc::new(changes);
                            kept.add(part.clone(), room);
                            parts.push(part);
                            replies.push(reply);
                        }
                        Asked::Instant(changes, reply) => committed = Some((changes, reply)),
                    }
                }
                if !parts.is_empty() {
                    coverings.push(covering(shared, parts, replies, false));
                }
                if committed.is_some() {
                    break committed;
                }
            }
            Some(Covering { sent, count, was_renewal }) = coverings.next() => {
                renewing &= !was_renewal;
                let covers_all = sent.is_ok() && was_renewal && count == kept.parts.len() && !kept.is_partial;
                kept.is_uncovered = sent.is_err() || (kept.is_uncovered && !covers_all);
                let at = match sent {
                    Ok(since) => since + half(shared.delay),
                    Err(Exit::Again) => Instant::now() + RETRY,
                    // It will hardly be taken later.
                    Err(_) => Instant::now() + half(shared.delay).max(RETRY),
                };
                renew_at = Some(renew_at.map_or(at, |other| other.min(at)));
            }
            () = renewal, if !renewing => {
                (renewing, renew_at) = (true, None);
                if !kept.parts.is_empty() {
                    coverings.push(covering(shared, kept.parts.clone(), vec![], true));
                }
            }
            () = sleep_until(begun + kept_for), if !kept.parts.is_empty() => {
                let time = humantime::format_duration(kept_for);
                warn!("a transaction has no end after {time}: its delay messages are not sent again any more");
                kept.give_up();
            }
        }
    };
    let Some((changes, reply)) = committed else {
        drop(asking);
        // What was asked is answered yet. Until then it takes its room.
        while coverings.next().await.is_some() {}
        return;
    };
    let mut announcing = pin!(announce(shared, kept, changes, reply));
    loop {
        select! {
            () = &mut announcing => break,
            Some(_) = coverings.next() => {}
        }
    }
    while coverings.next().await.is_some() {}
}

/// How delay messages were sent.
struct Covering {
    /// Since when they cover, where they were acknowledged.
    sent: Result<Instant, Exit>,
    /// Of parts.
    count: usize,
    was_renewal: bool,
}

/// Has delay messages acknowledged of which nothing can be kept.
pub(super) fn cover_once(shared: &Arc<Shared>, changes: Changes, reply: Reply) {
    let shared = shared.clone();
    tokio::spawn(async move {
        covering(&shared, vec![Arc::new(changes)], vec![reply], false).await;
    });
}

/// Sends delay messages, and answers those who have asked.
async fn covering(shared: &Arc<Shared>, parts: Vec<Arc<Changes>>, replies: Vec<Reply>, was_renewal: bool) -> Covering {
    let begun = Instant::now();
    let changed: Vec<_> = parts.iter().flat_map(|part| part.to(&shared.topics)).collect();
    let mut announcer = Announcer::new(&shared.writer, shared.delay);
    let sending = announcer.cover(&changed, Phases::Both);
    let covered = if was_renewal {
        // Nobody waits for it.
        sending.await.inspect(|_| shared.health.is_well())
    } else {
        match shared.health.may_try() {
            Ok(()) => shared.in_time(UNCOVERED, sending).await,
            Err(away) => Err(Exit::Again.because(away.context(UNCOVERED))),
        }
    };
    let told = covered.as_ref().map(drop).map_err(|error| format!("{error:#}"));
    for reply in replies {
        reply.give(told.clone().map_err(anyhow::Error::msg));
    }
    let sent = covered.map(|_| begun).map_err(|error| Exit::of(&error));
    Covering { sent, count: parts.len(), was_renewal }
}

/// Sends the instant messages of a transaction that was committed, each record's once.
async fn announce(shared: &Arc<Shared>, kept: Kept, changes: Changes, reply: Reply) {
    if kept.is_partial && changes.is_empty() {
        return reply.give(Err(anyhow!("the transaction is not known as a whole; send its messages along")));
    }
    let all = Changes::last_of_each(kept.parts.iter().map(|part| &**part).chain([&changes]));
    let what = if kept.is_uncovered { UNTOLD } else { UNANNOUNCED };
    let mut rooms = Some(kept.rooms);
    if !changes.is_empty() {
        rooms = rooms.zip(shared.room_for(&changes)).map(|(rooms, room)| rooms.into_iter().chain([room]).collect());
    }
    send(shared, all, rooms, what, reply).await;
}

/// Sends instant messages, and answers in time. Where there is room in memory for them they are sent to their end, whether that is
/// in time or not; else no longer than that. None are sent while Kafka is known to be away.
pub(super) async fn send(
    shared: &Arc<Shared>,
    changes: Changes,
    rooms: Option<Vec<OwnedSemaphorePermit>>,
    what: &'static str,
    reply: Reply,
) {
    if let Err(away) = shared.health.may_try() {
        return reply.give(Err(away.context(what)));
    }
    let has_room = rooms.is_some();
    let sending = tokio::spawn({
        let shared = shared.clone();
        async move {
            let _rooms = rooms;
            let mut announcer = Announcer::new(&shared.writer, shared.delay);
            announcer.announce_now(&changes.to(&shared.topics)).await.context(what)
        }
    });
    let abort = sending.abort_handle();
    reply.give(shared.in_time(what, async { sending.await? }).await);
    if !has_room {
        abort.abort();
    }
}

impl Shared {
    /// Room in memory for changes, where there is any.
    pub fn room_for(&self, changes: &Changes) -> Option<OwnedSemaphorePermit> {
        self.room(BESIDE_PART + changes.weight())
    }

    /// Room in memory for a transaction, where there is any.
    pub fn room_for_one_more(&self) -> Option<OwnedSemaphorePermit> {
        self.room(BESIDE)
    }

    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room = self.kept.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).ok();
        let is_half_free = self.kept.available_permits() >= KEPT_BYTES / 2;
        if room.is_none() && !self.is_full.swap(true, Ordering::Relaxed) {
            warn!(
                "the transactions that are under way take {} MiB: what has no room is announced, but not once more while its \
                 transaction lasts",
                KEPT_BYTES >> 20
            );
        } else if is_half_free && self.is_full.swap(false, Ordering::Relaxed) {
            info!("there is room for transactions again");
        }
        room
    }

    /// What Kafka says in time, or that it has not; notes whether it is there.
    async fn in_time<T>(&self, what: &'static str, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let begun = Instant::now();
        let asked = match timeout(self.ack_timeout, asking).await {
            Ok(Err(error)) if Exit::of(&error) != Exit::Again => return Err(error),
            Ok(asked) => asked,
            Err(_) => {
                let time = humantime::format_duration(self.ack_timeout);
                Err(Exit::Again.because(anyhow!("Kafka has not acknowledged the messages within {time}")).context(what))
            }
        };
        match &asked {
            Ok(_) => self.health.is_well(),
            Err(error) => self.health.is_away(begun, &error.root_cause().to_string()),
        }
        asked
    }
}
