//! A rate limit: so many bits and so many frames per second, with bursts. Set by the control side at any time, asked
//! and paid by queue threads, all through atomics: there is no lock between them, and a limit that is off costs two
//! loads a batch.
//!
//! Each rate is a virtual clock (GCRA, ITU-T I.371): a frame moves it on by the time it takes at that rate, and frames
//! pass while the clock is less than a burst ahead of the real one. A frame larger than what is left passes whole, and
//! the next ones wait longer: a limit may be lower than one frame per burst.
//!
//! Frames over the limit are not dropped here. Whoever asks takes no more of them: a guest's frames wait in its ring,
//! a guest's input waits in the tap, where the kernel drops what does not fit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The burst of a limit that names none.
pub const BURST: Duration = Duration::from_millis(20);
/// Bursts allowed: below, the millisecond a thread sleeps at least would eat into the rate.
pub const BURSTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(10);

/// A burst of so many milliseconds, if that is allowed.
#[must_use]
pub fn burst(milliseconds: u64) -> Option<Duration> {
    Some(Duration::from_millis(milliseconds)).filter(|burst| BURSTS.contains(burst))
}

/// What may pass. `None`: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits of Ethernet frames per second, headers of virtio not counted.
    pub bits: Option<u64>,
    /// Frames per second, as they are on a wire: one to be cut into segments counts as its segments.
    pub packets: Option<u64>,
    /// How long the full speed of whoever sends may last after a pause, as the time it takes to earn at the rate.
    pub burst: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self { bits: None, packets: None, burst: BURST }
    }
}

/// One of the two rates.
#[derive(Debug, Default)]
struct Clock {
    /// Per second; 0: unlimited.
    rate: AtomicU64,
    /// How far it is, in nanoseconds since the limit was made.
    at: AtomicU64,
}

impl Clock {
    /// What may pass when it is `now`; `None`: any number.
    fn room(&self, now: u64, burst: u64) -> Option<u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        let ahead = now.saturating_add(burst).saturating_sub(self.at.load(Ordering::Relaxed));
        (rate > 0).then(|| {
            let room = u128::from(ahead.min(burst)) * u128::from(rate) / 1_000_000_000;
            u64::try_from(room).unwrap_or(u64::MAX).max(u64::from(ahead > 0))
        })
    }

    fn spend(&self, now: u64, amount: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate > 0 {
            let cost = u128::from(amount) * 1_000_000_000 / u128::from(rate);
            self.at.fetch_max(now, Ordering::Relaxed);
            self.at.fetch_add(u64::try_from(cost).unwrap_or(u64::MAX / 4), Ordering::Relaxed);
        }
    }

    fn set(&self, rate: Option<u64>) {
        // A rate of zero would be a cut cable, for which there is the link.
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
        self.at.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

/// A limit for one direction, shared by all that send in it.
#[derive(Debug)]
pub struct Limit {
    base: Instant,
    bits: Clock,
    packets: Clock,
    /// Nanoseconds.
    burst: AtomicU64,
}

impl Default for Limit {
    fn default() -> Self {
        Self::new(Rate::default())
    }
}

impl Limit {
    /// A limit of `rate`.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let limit = Self {
            base: Instant::now(),
            bits: Clock::default(),
            packets: Clock::default(),
            burst: AtomicU64::new(0),
        };
        limit.set(rate);
        limit
    }

    /// Another rate from now on, with a burst to begin with.
    pub fn set(&self, rate: Rate) {
        let burst = rate.burst.clamp(*BURSTS.start(), *BURSTS.end());
        self.burst.store(burst.as_nanos() as u64, Ordering::Relaxed);
        self.bits.set(rate.bits);
        self.packets.set(rate.packets);
    }

    /// The rate.
    #[must_use]
    pub fn get(&self) -> Rate {
        let burst = Duration::from_nanos(self.burst.load(Ordering::Relaxed));
        Rate { bits: self.bits.get(), packets: self.packets.get(), burst }
    }

    /// Whether anything is limited.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.bits.rate.load(Ordering::Relaxed) | self.packets.rate.load(Ordering::Relaxed) != 0
    }

    fn now(&self) -> u64 {
        // 584 years fit.
        self.base.elapsed().as_nanos() as u64
    }

    /// What may pass now; [`Allowance::settle`] pays for what did.
    #[inline]
    #[must_use]
    pub fn allowance(&self) -> Allowance {
        if !self.is_on() {
            return Allowance { bits: u64::MAX, packets: u64::MAX, used_bits: 0, used_packets: 0 };
        }
        self.measured(self.now())
    }

    fn measured(&self, now: u64) -> Allowance {
        let burst = self.burst.load(Ordering::Relaxed);
        Allowance {
            bits: self.bits.room(now, burst).unwrap_or(u64::MAX),
            packets: self.packets.room(now, burst).unwrap_or(u64::MAX),
            used_bits: 0,
            used_packets: 0,
        }
    }

    fn spend(&self, now: u64, bits: u64, packets: u64) {
        self.bits.spend(now, bits);
        self.packets.spend(now, packets);
    }

    /// How long until a frame may pass; zero if it may now.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.wait_at(self.now())
    }

    fn wait_at(&self, now: u64) -> Duration {
        // Woken for every single frame a thread would do nothing else: half a burst is waited for.
        let burst = self.burst.load(Ordering::Relaxed);
        let late = |clock: &Clock| match clock.get() {
            Some(_) => clock.at.load(Ordering::Relaxed).saturating_sub(now.saturating_add(burst / 2)),
            None => 0,
        };
        Duration::from_nanos(late(&self.bits).max(late(&self.packets)))
    }
}

/// What a batch may pass of a limit.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    bits: u64,
    packets: u64,
    used_bits: u64,
    used_packets: u64,
}

impl Allowance {
    /// Whether nothing more may pass.
    #[inline]
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.used_bits >= self.bits || self.used_packets >= self.packets
    }

    /// Frames of `bytes` each that may pass, at least one while it is not spent.
    #[inline]
    #[must_use]
    pub fn frames(&self, bytes: usize) -> usize {
        if self.is_spent() {
            return 0;
        }
        let by_bits = (self.bits - self.used_bits) / (8 * bytes.max(1) as u64);
        let frames = by_bits.max(1).min(self.packets - self.used_packets);
        usize::try_from(frames).unwrap_or(usize::MAX)
    }

    /// A frame of `bytes` passes, as `segments` on the wire.
    #[inline]
    pub fn take(&mut self, bytes: usize, segments: u64) {
        self.used_bits = self.used_bits.saturating_add(8 * bytes as u64);
        self.used_packets = self.used_packets.saturating_add(segments);
    }

    /// Pays for what passed.
    #[inline]
    pub fn settle(self, limit: &Limit) {
        if self.used_packets > 0 && limit.is_on() {
            limit.spend(limit.now(), self.used_bits, self.used_packets);
        }
    }
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod limit_test;
