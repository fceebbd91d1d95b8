//! What a run waits for between two chunks, and nowhere else: never between action and instant messages. A chunk that was read
//! ahead has its delay messages by then: where it has to wait it is read again, and they were for nothing.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::gauge::{Gauge, Hold};
use super::pace::{Due, Pace, Rate};
use super::status::{By, Console, Wishes};
use crate::announce::Announcer;
use crate::message::Change;
use crate::progress::Progress;
use crate::shutdown::Shutdown;

/// How often a long pause is told of, where somebody looks.
const TELL: Duration = Duration::from_secs(1);

/// Holds a run up.
pub struct Throttle {
    console: Console,
    wishes: watch::Receiver<Wishes>,
    pause: Duration,
    pace: Pace,
    gauges: Vec<Gauge>,
    /// Whether somebody may ask for a pause.
    is_steered: bool,
    /// The records of chunks that have begun and are not done.
    under_way: usize,
}

impl Throttle {
    pub fn new(console: Console, pause: Duration, gauges: Vec<Gauge>, is_steered: bool) -> Throttle {
        let (wishes, pace) = (console.wishes(), Pace::new(pause));
        Throttle { wishes, console, pause, pace, gauges, is_steered, under_way: 0 }
    }

    /// Returns when the next chunk may begin: true, or false once `shutdown` is asked for, which ends any pause at once.
    ///
    /// Fails where something that has to be looked at could not be seen for a minute.
    pub async fn wait(&mut self, announcer: &Announcer, progress: &mut Progress, shutdown: &Shutdown) -> Result<bool> {
        let may_begin = loop {
            let hold = tokio::select! {
                biased;
                () = shutdown.requested() => break false,
                hold = self.hold(announcer) => hold?,
            };
            let Some(Hold { by, why, until }) = hold else { break true };
            self.console.held(by, &why);
            progress.hold(&why);
            tokio::select! {
                () = shutdown.requested() => break false,
                () = sleep_until(until.min(Instant::now() + TELL)) => {}
                // The sender is the console, which lives as long as this.
                _ = self.wishes.changed() => {}
            }
        };
        self.console.go_on();
        progress.go_on();
        self.pace.begin(self.wishes.borrow().rate, Instant::now());
        Ok(may_begin)
    }

    /// Whether nothing holds up the next chunk, nor counts when it begins.
    pub async fn is_free(&mut self, announcer: &Announcer) -> Result<bool> {
        let rate = self.wishes.borrow().rate;
        if !self.pause.is_zero() || rate != Rate::Unlimited || self.hold(announcer).await?.is_some() {
            return Ok(false);
        }
        self.pace.begin(rate, Instant::now());
        Ok(true)
    }

    /// Whether it looks at something that has to know what was written.
    pub fn looks(&self) -> bool {
        !self.gauges.is_empty()
    }

    /// Whether anything can ever hold the run up.
    pub fn may_hold(&self) -> bool {
        self.is_steered || self.looks() || !self.pause.is_zero() || self.wishes.borrow().rate != Rate::Unlimited
    }

    /// A chunk begins: its records count as written already, since nothing holds them up any more.
    pub fn begin(&mut self, changes: &[Change]) {
        self.under_way += changes.len();
        for gauge in &mut self.gauges {
            gauge.wrote(changes.len());
        }
    }

    /// A chunk is done.
    pub fn done(&mut self, changes: &[Change]) {
        self.under_way -= changes.len();
        self.pace.end(changes.len(), Instant::now());
        self.console.done(changes);
    }

    async fn hold(&mut self, announcer: &Announcer) -> Result<Option<Hold>> {
        let (wishes, now) = (*self.wishes.borrow_and_update(), Instant::now());
        if wishes.is_paused {
            return Ok(Some(Hold { by: By::Control, why: "asked to by --control".to_owned(), until: now + TELL }));
        }
        match self.pace.due(wishes.rate, now) {
            Some(Due::Rate(until)) => {
                return Ok(Some(Hold { by: By::Rate, why: format!("the rate is {}", wishes.rate), until }));
            }
            Some(Due::Pause(until)) => {
                let pause = humantime::format_duration(self.pause);
                return Ok(Some(Hold { by: By::Pause, why: format!("{pause} between two chunks"), until }));
            }
            None => {}
        }
        // Last, so that what was seen is not old when the chunk begins.
        for gauge in &mut self.gauges {
            if let Some(hold) = gauge.hold(self.under_way + announcer.in_flight()).await? {
                return Ok(Some(hold));
            }
        }
        Ok(None)
    }
}
