//! Where vCPU threads stand when they do not run.
//!
//! The machine opens, closes and ends the gate; a power device closes it for good from within a vCPU; vCPU
//! threads ask it before every entry into the guest. Closing does not reach a vCPU that is inside the guest: the
//! machine kicks it ([`super::kick`]) and waits here until all stand.
//!
//! ```text
//!             open()                      end()
//!   Closed <---------> Open    (any) ----------> Ended: pass() says false
//!             close()
//!   doom(): Closed, and open() does nothing any more: the guest asked for its own end
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const ENDED: u8 = 2;

#[derive(Debug)]
struct Inner {
    // vCPU threads that are neither standing at the gate nor gone.
    running: usize,
    doomed: bool,
}

/// One per life of a machine.
#[derive(Debug)]
pub struct Gate {
    // Changes only under the lock; read without it on every entry.
    state: AtomicU8,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate for `vcpus` threads, all of which count as running until they arrive.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            state: AtomicU8::new(CLOSED),
            inner: Mutex::new(Inner { running: vcpus, doomed: false }),
            changed: Condvar::new(),
        }
    }

    /// Called by a vCPU thread before it enters the guest. Waits while the gate is closed; false: end the thread
    /// (then [`Gate::leave`] must not be called).
    pub fn pass(&self) -> bool {
        if self.state.load(Ordering::Acquire) == OPEN {
            return true;
        }
        let mut inner = self.lock();
        inner.running = inner.running.saturating_sub(1);
        self.changed.notify_all();
        loop {
            match self.state.load(Ordering::Acquire) {
                OPEN => {
                    inner.running += 1;
                    return true;
                }
                ENDED => return false,
                _ => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Called by a vCPU thread that ends on its own.
    pub fn leave(&self) {
        let mut inner = self.lock();
        inner.running = inner.running.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Lets vCPUs run, unless doomed or ended.
    pub fn open(&self) {
        let inner = self.lock();
        if !inner.doomed && self.state.load(Ordering::Acquire) == CLOSED {
            self.state.store(OPEN, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Holds vCPUs at their next exit.
    pub fn close(&self) {
        let _inner = self.lock();
        if self.state.load(Ordering::Acquire) == OPEN {
            self.state.store(CLOSED, Ordering::Release);
        }
    }

    /// Closes for good: called on a vCPU thread when the guest resets or powers off, so that it does not run on.
    pub fn doom(&self) {
        self.lock().doomed = true;
        self.close();
    }

    /// Sends all vCPU threads home.
    pub fn end(&self) {
        let _inner = self.lock();
        self.state.store(ENDED, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until no vCPU runs; false: time is up.
    #[must_use]
    pub fn wait_standing(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        while inner.running > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether vCPUs are held or sent home.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) != OPEN
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod gate_test;
