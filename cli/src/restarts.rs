//! When a dead backend is started again: at once, and later and later while it dies young.
//!
//! It is never given up: the guest waits for it, and whatever kills it (a full disk, a missing image, a bad upgrade)
//! may be mended meanwhile.

use std::time::Duration;

/// A life at least this long was one, and the next death is the first again.
const YOUNG: Duration = Duration::from_secs(1);

/// How long to wait after the first, second, ... death in a row; the last for all that follow.
const DELAYS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// One backend's deaths.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    in_a_row: usize,
    total: u64,
}

impl Restarts {
    /// Notes a death after a life of `lived`; the delay until the next start.
    pub(crate) fn died(&mut self, lived: Duration) -> Duration {
        self.in_a_row = if lived < YOUNG { self.in_a_row.saturating_add(1) } else { 1 };
        self.total = self.total.saturating_add(1);
        let at = self.in_a_row.saturating_sub(1).min(DELAYS.len() - 1);
        DELAYS.get(at).copied().unwrap_or_default()
    }

    /// How often it died in all.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_while_it_dies_young_and_do_not_end() {
        let mut restarts = Restarts::default();
        let delays: Vec<_> = (0..8).map(|_| restarts.died(Duration::from_millis(999)).as_millis()).collect();
        assert_eq!(delays, [0, 100, 500, 2000, 5000, 10_000, 10_000, 10_000]);
        assert_eq!(restarts.died(YOUNG), Duration::ZERO);
        assert_eq!(restarts.died(Duration::ZERO), Duration::from_millis(100));
        assert_eq!(restarts.total(), 10);
    }
}
