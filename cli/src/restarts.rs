//! When a dead backend is started again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Deaths within this time count together.
const WINDOW: Duration = Duration::from_secs(30);

/// How long to wait after the first, second, ... death within the window. One more is one too many.
const DELAYS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// One backend's recent deaths.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    deaths: VecDeque<Instant>,
    ever: bool,
}

impl Restarts {
    /// Notes a death. The delay until the next start, or `None`: it dies too often.
    pub(crate) fn died(&mut self, now: Instant) -> Option<Duration> {
        self.deaths.retain(|death| now.saturating_duration_since(*death) < WINDOW);
        self.deaths.push_back(now);
        self.ever = true;
        DELAYS.get(self.deaths.len() - 1).copied()
    }

    /// Whether it never died before.
    pub(crate) fn first(&self) -> bool {
        !self.ever
    }

    /// What `None` from [`Restarts::died`] means, for people.
    pub(crate) const TOO_OFTEN: &str = "died more than 5 times in 30 s";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_the_sixth_death_in_the_window_is_the_last() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let delays: Vec<_> = (0..6).map(|second| restarts.died(at(second))).collect();
        let millis = |n| Some(Duration::from_millis(n));
        assert_eq!(delays, [millis(0), millis(100), millis(500), millis(2000), millis(5000), None]);
    }

    #[test]
    fn deaths_long_ago_do_not_count() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for n in 0..20 {
            assert!(restarts.died(start + Duration::from_secs(7 * n)).is_some(), "{n}");
        }
        assert_eq!(restarts.died(start + Duration::from_secs(1000)), Some(Duration::ZERO));
    }
}
