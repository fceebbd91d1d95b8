//! How the partitions of a process stand, for people and service managers that ask.
//!
//! Nothing is decided by it: the flows write down what they wait for, and nobody who works reads it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{self, Future};
use std::pin::pin;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::election::{Place, Seat, Term};
use crate::topic::Offset;

/// A line for each partition that a process wants to lead. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Board {
    lines: watch::Sender<BTreeMap<Seat, Line>>,
}

/// Where one partition's line is written. With it the line goes.
#[derive(Debug)]
pub struct Post {
    board: Board,
    seat: Seat,
}

/// What the work on a partition waits for.
#[derive(Clone, Debug)]
pub enum Waiting {
    Records,
    /// A run of the handler with the records between these offsets.
    Handler {
        first: Offset,
        last: Offset,
        attempt: u32,
    },
    /// That fewer handlers run than may at once.
    Slot,
    /// The time of the next attempt.
    Pause(Instant),
    /// A person, until it is tried again.
    Halted {
        why: String,
        until: Instant,
    },
    /// The time at which the delay message at this offset may go on.
    Due {
        offset: Offset,
        at: Instant,
    },
    Kafka,
    ZooKeeper,
}

#[derive(Debug, Default)]
struct Line {
    role: Role,
    /// Where the offset stood when this process led the partition last.
    left: Option<Offset>,
    /// By numbers of their own: with several handlers a partition waits for several things.
    waits: BTreeMap<u64, Wait>,
    waited: u64,
}

#[derive(Debug)]
enum Role {
    Queueing(Place),
    Leading { term: Term, since: SystemTime, offset: Option<Offset> },
}

#[derive(Debug)]
struct Wait {
    what: Waiting,
    since: Instant,
}

impl Default for Role {
    fn default() -> Role {
        Role::Queueing(Place::Outside)
    }
}

impl Board {
    /// Begins the lines of these partitions, all at once, so that none is missing in what is told of them together.
    pub fn posts(&self, seats: impl IntoIterator<Item = Seat>) -> Vec<Post> {
        let posts: Vec<_> = seats.into_iter().map(|seat| Post { board: self.clone(), seat }).collect();
        self.lines.send_modify(|lines| lines.extend(posts.iter().map(|post| (post.seat.clone(), Line::default()))));
        posts
    }

    /// Goes off when a partition changes hands, or halts; not with everything that is waited for.
    pub fn changes(&self) -> Changes {
        Changes(self.lines.subscribe())
    }

    /// Whether this process queues for all of its partitions, or leads them.
    pub fn is_candidate(&self) -> bool {
        let lines = self.lines.borrow();
        !lines.is_empty() && !lines.values().any(Line::is_outside)
    }

    /// The partitions that this process leads, and where their offsets stand.
    pub fn led(&self) -> BTreeMap<Seat, Offset> {
        let lines = self.lines.borrow();
        let led = lines.iter().filter_map(|(seat, line)| match line.role {
            Role::Leading { offset: Some(offset), .. } => Some((seat.clone(), offset)),
            _ => None,
        });
        led.collect()
    }

    /// In a few words: `leading 3 of 4 partitions, 1 halted`.
    pub fn summary(&self) -> String {
        let lines = self.lines.borrow();
        if lines.is_empty() {
            return "at no partition yet".to_owned();
        }
        let count = |is_so: fn(&Line) -> bool| lines.values().filter(|line| is_so(line)).count();
        let mut summary = format!("leading {} of {} partitions", count(Line::is_leading), lines.len());
        if let halted @ 1.. = count(Line::is_halted) {
            summary += &format!(", {halted} halted");
        }
        if count(Line::is_outside) > 0 {
            summary += ", ZooKeeper is not reached";
        }
        summary
    }

    /// All that is known: the summary, then each partition.
    pub fn lines(&self) -> Vec<String> {
        let mut all = vec![self.summary()];
        all.extend(self.lines.borrow().iter().map(|(seat, line)| format!("{seat}: {line}")));
        all
    }
}

/// That something on a board has changed.
pub struct Changes(watch::Receiver<BTreeMap<Seat, Line>>);

impl Changes {
    /// Returns once something has changed since this was called last. Cancelling loses nothing.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            future::pending().await
        }
    }
}

impl Post {
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Shows where in the queue it is, until `lease` is there.
    pub async fn queue<T>(&self, mut places: watch::Receiver<Place>, lease: impl Future<Output = T>) -> T {
        let follow = async {
            loop {
                let place = places.borrow_and_update().clone();
                self.write(true, |line| line.role = Role::Queueing(place));
                if places.changed().await.is_err() {
                    break future::pending::<Infallible>().await;
                }
            }
        };
        tokio::select! {
            biased;
            lease = lease => lease,
            never = follow => match never {},
        }
    }

    pub fn leads(&self, term: Term) {
        self.write(true, |line| line.role = Role::Leading { term, since: SystemTime::now(), offset: None });
    }

    /// The offset stands here now.
    pub fn moves(&self, to: Offset) {
        self.write(false, |line| {
            if let Role::Leading { offset, .. } = &mut line.role {
                *offset = Some(to);
            }
            line.left = Some(to);
        });
    }

    /// Where the offset stood when this process led the partition last.
    pub fn left(&self) -> Option<Offset> {
        self.board.lines.borrow().get(&self.seat)?.left
    }

    /// Awaits `something`, and shows so long that it is waited for. What need not be waited for costs nothing.
    pub async fn during<T>(&self, what: Waiting, something: impl Future<Output = T>) -> T {
        let (mut something, mut what, mut shown) = (pin!(something), Some(what), None);
        let done = future::poll_fn(|context| {
            let polled = something.as_mut().poll(context);
            if polled.is_pending()
                && let Some(what) = what.take()
            {
                shown = Some(self.show(what));
            }
            polled
        });
        done.await
    }

    fn show(&self, what: Waiting) -> Shown<'_> {
        let (mut number, is_halt) = (0, matches!(what, Waiting::Halted { .. }));
        self.write(is_halt, |line| {
            line.waited += 1;
            number = line.waited;
            line.waits.insert(number, Wait { what, since: Instant::now() });
        });
        Shown { post: self, number, is_halt }
    }

    fn write(&self, is_told: bool, change: impl FnOnce(&mut Line)) {
        self.board.lines.send_if_modified(|lines| {
            if let Some(line) = lines.get_mut(&self.seat) {
                change(line);
            }
            is_told
        });
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.board.lines.send_modify(|lines| drop(lines.remove(&self.seat)));
    }
}

/// Something that is shown until it is dropped, also where the waiting was cancelled.
struct Shown<'a> {
    post: &'a Post,
    number: u64,
    is_halt: bool,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.post.write(self.is_halt, |line| drop(line.waits.remove(&self.number)));
    }
}

impl Line {
    fn is_leading(&self) -> bool {
        matches!(self.role, Role::Leading { .. })
    }

    fn is_halted(&self) -> bool {
        self.waits.values().any(|wait| matches!(wait.what, Waiting::Halted { .. }))
    }

    fn is_outside(&self) -> bool {
        matches!(self.role, Role::Queueing(Place::Outside))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Queueing(Place::Outside) => f.write_str("not in the queue: waits for ZooKeeper")?,
            Role::Queueing(Place::First) => f.write_str("first in the queue: about to lead")?,
            Role::Queueing(Place::Behind(host)) => write!(f, "standby, behind {host}")?,
            Role::Leading { term, since, offset } => {
                let since = humantime::format_rfc3339_seconds(*since);
                write!(f, "leading term {term} since {since}")?;
                if let Some(offset) = offset {
                    write!(f, ", offset {offset}")?;
                }
            }
        }
        self.waits.values().try_for_each(|wait| write!(f, "; {wait}"))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).as_secs_f64();
        let time = self.since.elapsed().as_secs_f64();
        match &self.what {
            Waiting::Records => write!(f, "waits for records, {time:.1} s so far"),
            Waiting::Handler { first, last, attempt } => {
                write!(f, "the handler has offsets {first} to {last}, attempt {attempt}, for {time:.1} s so far")
            }
            Waiting::Slot => write!(f, "waits for a handler to be free (-j), {time:.1} s so far"),
            Waiting::Pause(until) => write!(f, "tries again in {:.1} s", left(*until)),
            Waiting::Halted { why, until } => write!(f, "halted: {why}; tries again in {:.1} s", left(*until)),
            Waiting::Due { offset, at } => write!(f, "the message at offset {offset} is due in {:.1} s", left(*at)),
            Waiting::Kafka => write!(f, "waits for Kafka, {time:.1} s so far"),
            Waiting::ZooKeeper => write!(f, "waits for ZooKeeper, {time:.1} s so far"),
        }
    }
}
