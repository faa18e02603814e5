//! A limit on log lines that a guest or peer can cause. Called before such a line, from any thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Allows `burst` lines in each period and counts what it refuses. Meant to be a `static`:
///
/// ```
/// static BAD_CHAIN: strata_virtio::limit::Throttle = strata_virtio::limit::Throttle::new(5, 60);
/// if BAD_CHAIN.allow() { /* log */ }
/// ```
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    seconds: u32,
    // Upper half: number of the period plus one (0: never used); lower half: lines asked for in it.
    state: AtomicU64,
}

impl Throttle {
    /// `burst` lines in each `seconds` seconds.
    #[must_use]
    pub const fn new(burst: u32, seconds: u32) -> Self {
        Self { burst, seconds: if seconds == 0 { 1 } else { seconds }, state: AtomicU64::new(0) }
    }

    /// Whether a line may be written now.
    pub fn allow(&self) -> bool {
        static START: OnceLock<Instant> = OnceLock::new();
        self.allow_at(START.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn allow_at(&self, second: u64) -> bool {
        let period = (second / u64::from(self.seconds) + 1) & 0xffff_ffff;
        let next = |old: u64| {
            let asked = if old >> 32 == period { (old & 0xffff_ffff).min(0xffff_fffe) } else { 0 };
            period << 32 | (asked + 1)
        };
        let old = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(next(old)))
            .unwrap_or_else(|old| old);
        next(old) & 0xffff_ffff <= u64::from(self.burst)
    }
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod limit_test;
