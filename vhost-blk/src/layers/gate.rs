//! The gate between requests that go to a file and the moments in which clusters change hands.
//!
//! Entered and left by each queue ([`crate::server`]), closed by the lanes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Keeps requests that go straight to a file away from the moments in which imago gives clusters back: a write
/// that is still under way to a cluster which by then belongs to something else, a table perhaps, would destroy
/// it. Costs a queue a store and a load per request; closing it waits for the requests under way.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicUsize,
    /// By queue: requests under way to a file. Only the queue's thread writes it.
    passing: Box<[AtomicUsize]>,
}

impl Gate {
    /// Open, with nothing under way.
    pub(super) fn new(queues: usize) -> Self {
        Self { closed: AtomicUsize::new(0), passing: (0..queues).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Counts one more, unless the gate is closed.
    #[inline]
    pub fn enter(&self, queue: u16) -> bool {
        let Some(passing) = self.passing.get(usize::from(queue)) else { return false };
        let now = passing.load(Ordering::Relaxed);
        // Sequentially consistent with `closed`: either this is seen there, or the gate is seen closed here.
        passing.store(now + 1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) == 0 {
            return true;
        }
        passing.store(now, Ordering::Release);
        false
    }

    /// Counts one less.
    #[inline]
    pub fn leave(&self, queue: u16) {
        if let Some(passing) = self.passing.get(usize::from(queue)) {
            passing.store(passing.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        }
    }

    /// Counts nothing any more for a queue that has ended.
    pub fn reset(&self, queue: u16) {
        if let Some(passing) = self.passing.get(usize::from(queue)) {
            passing.store(0, Ordering::Release);
        }
    }

    /// Does something while nothing passes. Several may, at the same time.
    pub(super) fn while_closed<T>(&self, action: impl FnOnce() -> T) -> T {
        self.closed.fetch_add(1, Ordering::SeqCst);
        while self.passing.iter().any(|passing| passing.load(Ordering::SeqCst) > 0) {
            std::thread::sleep(Duration::from_micros(20));
        }
        let result = action();
        self.closed.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod gate_test;
