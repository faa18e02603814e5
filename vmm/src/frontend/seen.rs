//! What others may know of a device without the link's lock, which may be held for as long as a backend takes to
//! answer. Written by the link and the monitor, read by status, statistics and the machine's owner.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Called whenever a backend is lost or back; must not wait.
#[derive(Clone)]
pub struct Hook(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// A ring that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// Which.
    pub queue: u16,
    /// For how long it has held requests without one being answered.
    pub time: Duration,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Seen {
    connected: AtomicBool,
    losses: AtomicU64,
    outage: AtomicU64,
    longest: AtomicU64,
    since: Mutex<Option<Instant>>,
    trouble: Mutex<Option<String>>,
    stall: Mutex<Option<Stall>>,
    hook: Option<Hook>,
}

impl Seen {
    /// Of a device whose backend is there.
    pub(super) fn new(hook: Option<Hook>) -> Self {
        Self {
            connected: true.into(),
            losses: 0.into(),
            outage: 0.into(),
            longest: 0.into(),
            since: Mutex::new(None),
            trouble: Mutex::new(None),
            stall: Mutex::new(None),
            hook,
        }
    }

    pub(super) fn lost(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
        set(&self.since, Some(Instant::now()));
        self.connected.store(false, Ordering::Release);
        self.call();
    }

    pub(super) fn back(&self) {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outage = since.map_or(0, |since| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.outage.fetch_add(outage, Ordering::Relaxed);
        self.longest.fetch_max(outage, Ordering::Relaxed);
        self.refused(None);
        self.connected.store(true, Ordering::Release);
        self.call();
    }

    fn call(&self) {
        if let Some(Hook(call)) = &self.hook {
            call();
        }
    }

    /// Why the backend that is there is not taken.
    pub(super) fn refused(&self, why: Option<String>) {
        set(&self.trouble, why);
    }

    pub(super) fn stalled(&self, stall: Option<Stall>) {
        set(&self.stall, stall);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Microseconds without a backend: of all outages that have ended, and of the longest.
    pub(super) fn outages(&self) -> (u64, u64) {
        (self.outage.load(Ordering::Relaxed), self.longest.load(Ordering::Relaxed))
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn stall(&self) -> Option<Stall> {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set<T>(slot: &Mutex<T>, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = value;
}
