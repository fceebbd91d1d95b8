//! How long to wait before the same batch is tried again.

use std::time::Duration;

use rand::Rng;

/// The shortest and the longest pause.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
}

/// Pauses that double, each with a random part, so that many do not come back at the same moment.
#[derive(Debug)]
pub struct Backoff {
    pauses: Pauses,
    failures: u32,
}

impl Backoff {
    pub fn new(pauses: Pauses) -> Backoff {
        Backoff { pauses, failures: 0 }
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let Pauses { first, longest } = self.pauses;
        let doubled = first.saturating_mul(1 << self.failures.min(30));
        self.failures = self.failures.saturating_add(1);
        // Up to a quarter on top, which no pause but the longest may lack.
        doubled.min(longest.mul_f64(0.8)).mul_f64(rand::rng().random_range(1.0..1.25))
    }

    /// Begins again at the first pause: something succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

    #[test]
    fn pauses_double_from_one_second_to_sixty_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(PAUSES);
        for round in 0..2 {
            for shortest in [1, 2, 4, 8, 16, 32, 48, 48] {
                let pause = backoff.next_pause().as_secs_f64();
                let shortest = f64::from(shortest);
                assert!((shortest..=shortest * 1.25).contains(&pause), "round {round}: {pause} for {shortest}");
            }
            backoff.reset();
        }
    }

    #[test]
    fn a_hundred_failures_do_not_overflow() {
        let mut backoff = Backoff { pauses: PAUSES, failures: u32::MAX - 1 };
        for _ in 0..100 {
            assert!(backoff.next_pause() <= PAUSES.longest);
        }
    }
}
