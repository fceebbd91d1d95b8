//! How many rows a chunk has: fewer where the action is slow.

use std::time::Duration;

/// Follows how long actions take.
pub(super) struct Sizing {
    most: usize,
    wanted: Duration,
    rows: usize,
}

impl Sizing {
    /// An action is to take about as long as `wanted`, and a chunk to have `most` rows at most.
    pub fn new(most: usize, wanted: Duration) -> Sizing {
        Sizing { most, wanted, rows: most }
    }

    /// Of the next chunk.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The action of a chunk of so many rows took so long.
    pub fn took(&mut self, rows: usize, time: Duration) {
        let fitting = rows as f64 * self.wanted.as_secs_f64() / time.as_secs_f64().max(1e-6);
        // One that had to wait for a lock, or found nothing to do, says little of the next.
        let (least, most) = ((self.rows / 4).max(1), (self.rows * 2).min(self.most));
        self.rows = (fitting as usize).clamp(least.min(most), most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_becomes_smaller_while_actions_are_slow_and_larger_again_when_they_are_not() {
        let mut sizing = Sizing::new(1000, Duration::from_millis(500));
        let mut took = |millis_a_row: f64| {
            let rows = sizing.rows();
            sizing.took(rows, Duration::from_secs_f64(rows as f64 * millis_a_row / 1000.0));
            sizing.rows()
        };
        assert_eq!([0.1, 0.5, 1.0].map(&mut took), [1000, 1000, 500]);
        assert_eq!([50.0, 50.0, 50.0, 50.0].map(&mut took), [125, 31, 10, 10]);
        assert_eq!([600.0, 600.0, 600.0].map(&mut took), [2, 1, 1]);
        assert_eq!([0.1, 0.1, 0.1].map(&mut took), [2, 4, 8]);
        assert_eq!((0..9).map(|_| took(0.1)).last(), Some(1000));
    }
}
