//! Limits on requests and bytes per second, of a disk as a whole, changed while it runs.
//!
//! Each limit is a token bucket in its "virtual scheduling" form (ITU-T I.371, GCRA): one number, the time at
//! which the bucket would be full again, moved on by what each request costs. Queues share it by compare-and-swap;
//! with no limit set a queue only reads one flag. A request may go into debt, so one larger than the burst is
//! served and the next waits for it.
//!
//! Called by [`crate::server`] before a request is started; set by [`crate::control`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What is allowed. 0: unlimited; a burst of 0: a tenth of a second's worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Requests per second.
    pub iops: u64,
    /// Requests that may come at once after a pause.
    pub iops_burst: u64,
    /// Bytes read and written per second.
    pub bytes_per_second: u64,
    /// Bytes that may be transferred at once after a pause.
    pub bytes_burst: u64,
}

/// A disk's limits.
#[derive(Debug)]
pub struct Limiter {
    begun: Instant,
    limited: AtomicBool,
    requests: Bucket,
    bytes: Bucket,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            limited: AtomicBool::new(false),
            requests: Bucket::default(),
            bytes: Bucket::default(),
        }
    }
}

impl Limiter {
    /// Sets all limits; one that is as it was keeps its debts.
    pub fn set(&self, rates: &Rates) {
        self.requests.set(rates.iops, rates.iops_burst);
        self.bytes.set(rates.bytes_per_second, rates.bytes_burst);
        self.limited.store(rates.iops > 0 || rates.bytes_per_second > 0, Ordering::Release);
    }

    /// The limits now.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates {
            iops: self.requests.rate.load(Ordering::Relaxed),
            iops_burst: self.requests.burst.load(Ordering::Relaxed),
            bytes_per_second: self.bytes.rate.load(Ordering::Relaxed),
            bytes_burst: self.bytes.burst.load(Ordering::Relaxed),
        }
    }

    /// Lets a request of `bytes` pass, or says when to ask again.
    ///
    /// # Errors
    /// The time from which on it may pass, if no other comes first.
    #[inline]
    pub fn admit(&self, bytes: u64) -> Result<(), Instant> {
        if self.limited.load(Ordering::Relaxed) { self.admit_at(self.now(), bytes) } else { Ok(()) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn admit_at(&self, now: u64, bytes: u64) -> Result<(), Instant> {
        let later = |at: u64| self.begun + Duration::from_nanos(at);
        let paid = self.requests.take(now, 1).map_err(later)?;
        self.bytes.take(now, bytes).map(drop).map_err(|at| {
            self.requests.give_back(paid);
            later(at)
        })
    }
}

/// One limit. Times in nanoseconds since the limiter was made.
#[derive(Debug, Default)]
struct Bucket {
    /// Units per second; 0 for no limit.
    rate: AtomicU64,
    burst: AtomicU64,
    /// When all that was taken is paid for.
    paid_at: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;

impl Bucket {
    fn set(&self, rate: u64, burst: u64) {
        let burst = match (rate, burst) {
            (0, _) => 0,
            (rate, 0) => (rate / 10).max(1),
            (_, burst) => burst,
        };
        let was = (self.rate.load(Ordering::Relaxed), self.burst.load(Ordering::Relaxed));
        if was == (rate, burst) {
            return;
        }
        self.burst.store(burst, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
        // Debts at the old rate are forgiven.
        self.paid_at.store(0, Ordering::Relaxed);
    }

    /// Takes `units`; what that cost, or when there will be some.
    fn take(&self, now: u64, units: u64) -> Result<u64, u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return Ok(0);
        }
        // Rounded up: the limit is kept even by small requests.
        let time =
            |units: u64| u64::try_from((u128::from(units) * u128::from(SECOND)).div_ceil(u128::from(rate)));
        let cost = time(units).unwrap_or(u64::MAX / 2);
        let credit = time(self.burst.load(Ordering::Relaxed)).unwrap_or(u64::MAX / 2);
        let mut paid_at = self.paid_at.load(Ordering::Relaxed);
        loop {
            // Credit is spent by what is under way already; the request itself may go into debt.
            let base = paid_at.max(now);
            if base - now >= credit && base > now {
                return Err(base - credit + 1);
            }
            let next = base.saturating_add(cost);
            match self.paid_at.compare_exchange_weak(paid_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(cost),
                Err(seen) => paid_at = seen,
            }
        }
    }

    fn give_back(&self, cost: u64) {
        // Never below zero: nothing but `set` lowers it otherwise, and that forgives all.
        let lower = |paid_at: u64| Some(paid_at.saturating_sub(cost));
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
    }
}

#[cfg(test)]
#[path = "rate_test.rs"]
mod rate_test;
