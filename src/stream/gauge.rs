//! What is looked at outside while a run is at work, and how often: the lag of consumers, the answer to a query.

use std::time::Duration;

use anyhow::Result;
use log::{info, warn};
use tokio::time::Instant;

use super::lag::{Behind, Lag};
use super::query::Query;
use super::status::By;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// How soon it is looked again where what was written since may have been too much already.
const SOON: Duration = Duration::from_millis(100);

/// How long a look may fail before that ends the run.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How often it is looked where the last look failed and the run goes on all the same: each look may take seconds then.
const SELDOM: Duration = Duration::from_secs(30);

/// One of the things that may hold a run up.
pub struct Gauge {
    look: Look,
    /// Whether it was asked for by an option: then nothing goes on without an answer.
    is_asked_for: bool,
    looked: Option<Instant>,
    answer: Answer,
    /// The records written since the last look, and those that it could not see yet.
    written: u64,
    /// Since when there is no answer.
    failing: Option<Instant>,
}

enum Look {
    Lag(Lag),
    Query(Query),
}

/// What the last look saw.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Lag(Option<Behind>),
    Number(Option<f64>),
    /// Why there is none.
    Missing(String),
}

/// That a run has to wait: why, and until the next look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub by: By,
    pub why: String,
    pub until: Instant,
}

impl Gauge {
    /// Has looked for the first time, so that what is set wrong is told before anything is sent.
    pub async fn lag(lag: Lag, is_asked_for: bool) -> Result<Gauge> {
        if is_asked_for {
            lag.check().await?;
        }
        Gauge::begin(Look::Lag(lag), is_asked_for).await
    }

    /// Has asked for the first time.
    pub async fn query(query: Query) -> Result<Gauge> {
        Gauge::begin(Look::Query(query), true).await
    }

    async fn begin(look: Look, is_asked_for: bool) -> Result<Gauge> {
        let mut gauge =
            Gauge { look, is_asked_for, looked: None, answer: Answer::Lag(None), written: 0, failing: None };
        let seen = gauge.look().await;
        if is_asked_for && let Err(error) = seen {
            return Err(error);
        }
        gauge.note(seen, Instant::now())?;
        Ok(gauge)
    }

    /// So many records more.
    pub(super) fn wrote(&mut self, records: usize) {
        self.written += records as u64;
    }

    /// Looks where it is time to, and says whether the run has to wait. So many records are on their way, which no look
    /// sees yet. Cancelling loses nothing but the look.
    ///
    /// Fails where there was no answer for a minute.
    pub(super) async fn hold(&mut self, in_flight: usize) -> Result<Option<Hold>> {
        let now = Instant::now();
        if self.due().is_none_or(|due| due <= now) {
            let seen = self.look().await;
            self.note(seen, Instant::now())?;
            self.wrote(in_flight);
        }
        Ok(self.judge())
    }

    async fn look(&mut self) -> Result<Answer> {
        match &mut self.look {
            Look::Lag(lag) => lag.look().await.map(Answer::Lag),
            Look::Query(query) => query.look().await.map(Answer::Number),
        }
    }

    /// When it is time to look; `None` means at once.
    fn due(&self) -> Option<Instant> {
        let pause = match self.answer {
            Answer::Missing(_) if !self.is_asked_for => SELDOM,
            _ if self.may_be_too_much() => SOON,
            _ => EVERY,
        };
        self.looked.map(|looked| looked + pause)
    }

    /// Whether consumers are over their limit if they did nothing since the last look.
    fn may_be_too_much(&self) -> bool {
        let Answer::Lag(Some(behind)) = &self.answer else { return false };
        !behind.is_over() && self.written > behind.room()
    }

    fn note(&mut self, seen: Result<Answer>, now: Instant) -> Result<()> {
        (self.looked, self.written) = (Some(now), 0);
        match seen {
            Ok(answer) => {
                self.answer = answer;
                if let Some(since) = self.failing.take() {
                    info!("{}: it is seen again after {:.1} s", self.what(), (now - since).as_secs_f64());
                }
            }
            Err(error) => {
                let failing = *self.failing.get_or_insert(now);
                if self.is_asked_for && now - failing >= GIVE_UP {
                    return Err(error.context(format!("{}: no answer for {GIVE_UP:?}", self.what())));
                }
                if failing == now {
                    let so = if self.is_asked_for { "pausing until it can be seen" } else { "going on without it" };
                    warn!("{}: {error:#}; {so}", self.what());
                }
                self.answer = Answer::Missing(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn what(&self) -> &'static str {
        match self.look {
            Look::Lag(_) => "--max-lag",
            Look::Query(_) => "--throttle-query",
        }
    }

    fn judge(&self) -> Option<Hold> {
        let why = match &self.answer {
            Answer::Lag(Some(behind)) if behind.is_over() => behind.to_string(),
            Answer::Lag(Some(behind)) if self.may_be_too_much() => {
                format!("lag of {} may be {}, more than {}", behind.name, behind.lag + self.written, behind.limit)
            }
            Answer::Number(Some(number)) => format!("the throttle query says {number}"),
            Answer::Missing(why) if self.is_asked_for => format!("cannot be seen: {why}"),
            Answer::Lag(_) | Answer::Number(None) | Answer::Missing(_) => return None,
        };
        let by = match self.look {
            Look::Lag(_) => By::Lag,
            Look::Query(_) => By::Query,
        };
        Some(Hold { by, why, until: self.due().unwrap_or_else(Instant::now) })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::database::{Dialect, Question};

    /// It never looks: what it has seen is told to it.
    fn gauge(is_asked_for: bool) -> Gauge {
        let question = Question::parse("SELECT 1", Dialect::Sqlite).unwrap();
        let look = Look::Query(Query::new("sqlite:nowhere.db".to_owned(), question));
        Gauge { look, is_asked_for, looked: None, answer: Answer::Number(None), written: 0, failing: None }
    }

    fn why(gauge: &Gauge) -> Option<String> {
        gauge.judge().map(|hold| hold.why)
    }

    #[test]
    fn it_is_looked_once_a_second_whatever_was_written() {
        let (mut gauge, now) = (gauge(true), Instant::now());
        assert_eq!(gauge.due(), None);
        gauge.note(Ok(Answer::Number(Some(0.5))), now).unwrap();
        gauge.wrote(1_000_000);
        assert_eq!(gauge.due(), Some(now + EVERY));
        let why = "the throttle query says 0.5".to_owned();
        assert_eq!(gauge.judge(), Some(Hold { by: By::Query, why, until: now + EVERY }));
        gauge.note(Ok(Answer::Number(None)), now + EVERY).unwrap();
        assert_eq!((gauge.judge(), gauge.due()), (None, Some(now + 2 * EVERY)));
    }

    #[test]
    fn what_was_written_since_the_last_look_counts_as_lag_until_the_next() {
        let (mut gauge, now) = (gauge(true), Instant::now());
        let behind = |lag| Some(Behind { name: "indexer".parse().unwrap(), lag, limit: 100 });
        gauge.note(Ok(Answer::Lag(behind(40))), now).unwrap();
        gauge.wrote(60);
        assert_eq!((gauge.judge(), gauge.due()), (None, Some(now + EVERY)));
        gauge.wrote(1);
        assert_eq!(why(&gauge).unwrap(), "lag of indexer may be 101, more than 100");
        assert_eq!(gauge.due(), Some(now + SOON));
        // They have kept pace.
        gauge.note(Ok(Answer::Lag(behind(100))), now + SOON).unwrap();
        assert_eq!(gauge.judge(), None);
        gauge.note(Ok(Answer::Lag(behind(101))), now).unwrap();
        gauge.wrote(500);
        assert_eq!(why(&gauge).unwrap(), "lag of indexer is 101, more than 100");
        assert_eq!(gauge.due(), Some(now + EVERY));
    }

    #[test]
    fn without_an_answer_a_run_waits_for_a_minute_and_then_fails() {
        let (mut gauge, now) = (gauge(true), Instant::now());
        let away = || Err(anyhow!("away"));
        gauge.note(away(), now).unwrap();
        assert_eq!(why(&gauge).unwrap(), "cannot be seen: away");
        gauge.note(away(), now + GIVE_UP - EVERY).unwrap();
        // An answer begins the minute anew.
        gauge.note(Ok(Answer::Number(None)), now + GIVE_UP - EVERY).unwrap();
        assert_eq!(gauge.judge(), None);
        gauge.note(away(), now + GIVE_UP).unwrap();
        gauge.note(away(), now + 2 * GIVE_UP - EVERY).unwrap();
        let error = gauge.note(away(), now + 2 * GIVE_UP).unwrap_err();
        assert_eq!(format!("{error:#}"), "--throttle-query: no answer for 60s: away");
    }

    #[test]
    fn what_nobody_asked_for_holds_nothing_up_while_it_cannot_be_seen() {
        let (mut gauge, now) = (gauge(false), Instant::now());
        for after in [0, 30, 60, 3600] {
            let now = now + Duration::from_secs(after);
            gauge.note(Err(anyhow!("away")), now).unwrap();
            assert_eq!((gauge.judge(), gauge.due()), (None, Some(now + SELDOM)));
        }
    }
}
