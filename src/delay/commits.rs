//! Commits, and looks at the topic between them, that are under way while messages go on being read and sent: slow servers make
//! none of them late.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use tokio::time::Instant;

use crate::fit::Standing;
use crate::lead::{Checked, Done, End, Held};
use crate::mutants::Mutant;

/// How long after a commit the next one begins while messages flow.
const PAUSE: Duration = Duration::from_millis(200);

fn pause() -> Duration {
    if Mutant::CommitsSeldom.is_on() { Duration::from_secs(20) } else { PAUSE }
}

/// Where the partition stands, and the one commit that may be under way.
pub(super) struct Commits<'a> {
    held: &'a Held<'a>,
    pub standing: Standing,
    under_way: Option<BoxFuture<'a, Result<Standing, End>>>,
    /// Whether the topic is still the same, while there is nothing to commit.
    looking: Option<BoxFuture<'a, Result<Checked, End>>>,
    /// When the topic was still the same.
    seen: Instant,
    /// From when on the next one may begin.
    pub next: Instant,
}

impl<'a> Commits<'a> {
    pub fn new(held: &'a Held<'a>) -> Commits<'a> {
        let now = Instant::now();
        Commits { held, standing: held.standing, under_way: None, looking: None, seen: now, next: now + pause() }
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Puts the next one off.
    pub fn pause(&mut self) {
        self.next = Instant::now() + pause();
    }

    /// Begins one. None may be under way.
    pub fn begin(&mut self, done: Done) {
        debug_assert!(self.under_way.is_none(), "of two commits the first could be carried out later");
        // It looks itself.
        self.looking = None;
        let (held, from) = (self.held, self.standing);
        self.under_way = Some(Box::pin(async move { held.commit(from, check(held).await?, done).await }));
    }

    /// Where nothing was committed for long, looks whether the topic is still the same: one that is gone or was made again may
    /// stay without messages.
    pub fn look(&mut self) {
        if self.under_way.is_none() && self.looking.is_none() && self.seen.elapsed() >= Held::LOOK {
            self.looking = Some(Box::pin(check(self.held)));
        }
    }

    /// Goes on with what is under way, as far as nothing has to be waited for.
    pub fn go_on(&mut self) -> Result<(), End> {
        if let Some(looked) = self.looking.as_mut().and_then(FutureExt::now_or_never) {
            self.saw(looked)?;
        }
        match self.under_way.as_mut().and_then(FutureExt::now_or_never) {
            Some(ended) => self.end_by(ended),
            None => Ok(()),
        }
    }

    /// Returns once the offset was moved or the topic looked at, or the lease is lost; never, while none of it happens. Can be
    /// given up at any time.
    pub async fn moved(&mut self) -> Result<(), End> {
        tokio::select! {
            biased;
            Some(ended) = OptionFuture::from(self.under_way.as_mut()) => self.end_by(ended),
            Some(looked) = OptionFuture::from(self.looking.as_mut()) => self.saw(looked),
            why = self.held.lease.lost() => Err(End::Lost(why)),
        }
    }

    /// Waits for what is under way.
    pub async fn finish(&mut self) -> Result<(), End> {
        match self.under_way.as_mut() {
            Some(under_way) => {
                let ended = under_way.await;
                self.end_by(ended)
            }
            None => Ok(()),
        }
    }

    fn end_by(&mut self, ended: Result<Standing, End>) -> Result<(), End> {
        self.under_way = None;
        self.seen = Instant::now();
        self.pause();
        self.standing = ended?;
        Ok(())
    }

    fn saw(&mut self, looked: Result<Checked, End>) -> Result<(), End> {
        self.looking = None;
        self.seen = Instant::now();
        looked.map(drop)
    }
}

async fn check(held: &Held<'_>) -> Result<Checked, End> {
    tokio::select! {
        checked = held.check_topic() => checked,
        why = held.lease.lost() => Err(End::Lost(why)),
    }
}
