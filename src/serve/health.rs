//! Whether Kafka answers: while it is known to be away nobody waits for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use log::{info, warn};
use tokio::time::Instant;

/// How often it is tried whether Kafka is back.
const TRY: Duration = Duration::from_secs(1);

/// What the last requests have come to.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When messages were acknowledged last.
    acknowledged: Option<Instant>,
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    tried: Instant,
    why: String,
}

impl Health {
    /// Fails at once while Kafka is away, but for one request now and then that finds out.
    pub fn may_try(&self) -> Result<()> {
        let mut state = self.state();
        let Some(Away { since, tried, why }) = &mut state.away else { return Ok(()) };
        let now = Instant::now();
        if now.duration_since(*tried) >= TRY {
            *tried = now;
            return Ok(());
        }
        Err(anyhow!("Kafka is away for {:.1} s: {why}", since.elapsed().as_secs_f64()))
    }

    /// Messages were acknowledged.
    pub fn is_well(&self) {
        let mut state = self.state();
        state.acknowledged = Some(Instant::now());
        if let Some(Away { since, .. }) = state.away.take() {
            info!("Kafka is back after {:.1} s", since.elapsed().as_secs_f64());
        }
    }

    /// Messages that were sent since then were not acknowledged in time. If others were, it is a matter of these alone.
    pub fn is_away(&self, since: Instant, why: &str) {
        let mut state = self.state();
        if state.acknowledged.is_none_or(|acknowledged| acknowledged < since) && state.away.is_none() {
            warn!("Kafka is away: {why}; until it is back each request is answered so at once");
            state.away = Some(Away { since, tried: Instant::now(), why: why.to_owned() });
        }
    }

    /// Since when it is away.
    pub fn away_since(&self) -> Option<Instant> {
        self.state().away.as_ref().map(|away| away.since)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
