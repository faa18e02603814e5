#![allow(unsafe_code)] // write(2) of eight bytes, without a lock or an allocation
//! A [`Queue`] with the descriptors around it: kick, call and err eventfds, and counters.
//!
//! Owned by the one thread that serves the queue; the counters are read by anyone. Turns the two ways a guest
//! can be wrong into what the specification wants: a chain that makes no sense is answered with length 0, a ring
//! that makes no sense stops and its err descriptor is written (vhost-user, SET_VRING_ERR).
//!
//! A call may be put off ([`Vring::calling_within`]): the answers are shown at once, a driver that looks sees them, and
//! one that sleeps is called a little later, with what has been answered until then. Whoever asks for that looks at
//! [`Vring::call_is_due`] while it waits, and does not sleep before [`Vring::call_now`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::chain::{Chain, ChainError};
use crate::device::{QueueSetup, QueueState, StartError};
use crate::limit::Throttle;
use crate::queue::{Popped, Queue, RingError};

/// Answers after which a call is not put off any longer: a driver with so much to do can begin.
const MOST_UNCALLED: u16 = 64;

/// What happened on a queue since it was started. Written by its thread alone, read at any time.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Requests taken.
    pub requests: Counter,
    /// Requests answered unread because their chain made no sense.
    pub malformed: Counter,
    /// Kicks that ended a sleep.
    pub kicks: Counter,
    /// Calls sent.
    pub calls: Counter,
    /// Batches shown to the driver, with or without a call.
    pub batches: Counter,
}

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only ever called by the one thread that owns the counter.
    #[inline]
    pub fn add(&self, n: u64) {
        // One writer, so no read-modify-write cycle on the bus is needed.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A queue being served.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    index: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    /// Answers have been shown that the driver wants a call for.
    owes_call: bool,
    /// How long a call may be put off, and until when the one that is owed is.
    patience: Duration,
    later: Option<Later>,
    stats: Arc<QueueStats>,
}

/// A call that is owed and put off.
#[derive(Debug, Clone, Copy)]
struct Later {
    until: Instant,
    /// The used index before the first answer it is for.
    from: u16,
}

impl Vring {
    /// Takes over the queue described.
    ///
    /// # Errors
    /// The ring cannot be used.
    pub fn new(setup: QueueSetup) -> Result<Self, StartError> {
        let index = setup.index;
        let queue = Queue::new(&setup).map_err(|source| StartError::Ring { index, source })?;
        let QueueSetup { kick, call, err, inherited, .. } = setup;
        for fd in [&kick, &call, &err].into_iter().flatten() {
            set_nonblocking(fd).map_err(|source| StartError::Resource {
                index,
                what: "an eventfd",
                source,
            })?;
        }
        let stats = Arc::default();
        Ok(Self {
            index,
            kick,
            call,
            err,
            owes_call: inherited && queue.shown() != 0,
            patience: Duration::ZERO,
            later: None,
            stats,
            queue,
        })
    }

    /// From now on a call may come up to `patience` after the first answer it is for. Zero, the default: at once.
    #[must_use]
    pub fn calling_within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Counts in `stats` from now on, for counts that go on when the queue is started again.
    #[must_use]
    pub fn counting_in(mut self, stats: Arc<QueueStats>) -> Self {
        self.stats = stats;
        self
    }

    /// Takes the next request that makes sense; false if there is none. Others are answered on the way, which
    /// the next [`Vring::flush`] shows.
    #[inline]
    pub fn next(&mut self, chain: &mut Chain) -> bool {
        loop {
            match self.queue.pop(chain) {
                Ok(Popped::Chain) => {
                    self.stats.requests.add(1);
                    return true;
                }
                Ok(Popped::Empty) => return false,
                Ok(Popped::Malformed { head, why }) => self.refuse(head, &why),
                Err(why) => {
                    self.fail(&why);
                    return false;
                }
            }
        }
    }

    #[cold]
    fn refuse(&mut self, head: u16, why: &ChainError) {
        static BAD_CHAIN: Throttle = Throttle::new(5, 60);
        self.stats.malformed.add(1);
        self.queue.push(head, 0);
        if BAD_CHAIN.allow() {
            tracing::warn!(queue = self.index, head, error = %Causes(why), "the driver posted a request that makes no sense");
        }
    }

    #[cold]
    fn fail(&mut self, why: &RingError) {
        static BAD_RING: Throttle = Throttle::new(5, 60);
        if matches!(why, RingError::Broken) {
            return;
        }
        if BAD_RING.allow() {
            tracing::error!(queue = self.index, error = %Causes(why), "the ring is broken; the queue stops");
        }
        if let Some(err) = &self.err {
            signal(err);
        }
    }

    /// Answers a request: the device wrote `written` bytes. Shown by the next [`Vring::flush`].
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) {
        self.queue.push(head, written);
    }

    /// Puts back the request last taken.
    #[inline]
    pub fn unpop(&mut self, chain: &Chain) {
        self.queue.unpop(chain);
    }

    /// Shows what has been answered and puts the call off to the next [`Vring::flush`]: within a batch, a
    /// driver that polls goes on at once and one that sleeps is still woken once. Returns whether anything was
    /// shown.
    #[inline]
    pub fn show(&mut self) -> bool {
        let pending = self.queue.unpublished() > 0;
        if pending {
            self.stats.batches.add(1);
            let from = self.queue.shown();
            let first = self.queue.publish() && !std::mem::replace(&mut self.owes_call, true);
            if first && !self.patience.is_zero() {
                self.later = Some(Later { until: Instant::now() + self.patience, from });
            }
        }
        pending
    }

    /// Shows what has been answered and calls the driver if it wants that, and the call is not put off. Returns whether
    /// anything was shown.
    #[inline]
    pub fn flush(&mut self) -> bool {
        let shown = self.show();
        if self.owes_call && !self.is_put_off() {
            self.call_now();
        }
        shown
    }

    /// Makes the call that is owed, put off or not, if the driver still wants it.
    #[inline]
    pub fn call_now(&mut self) {
        let owed = std::mem::take(&mut self.owes_call);
        let seen = self.later.take().is_some_and(|later| !self.queue.still_wants_call(later.from));
        if let Some(call) = &self.call
            && owed
            && !seen
        {
            self.stats.calls.add(1);
            signal(call);
        }
    }

    #[inline]
    fn is_put_off(&self) -> bool {
        self.later.is_some_and(|later| {
            self.queue.shown().wrapping_sub(later.from) < MOST_UNCALLED && Instant::now() < later.until
        })
    }

    /// Whether a call was put off until now: the next [`Vring::flush`] makes it.
    #[inline]
    #[must_use]
    pub fn call_is_due(&self) -> bool {
        self.later.is_some() && !self.is_put_off()
    }

    /// The queue itself.
    #[inline]
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue itself, for what is not said here ([`Queue::arm_kicks`] and the like).
    #[inline]
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Index of the queue within its device.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The driver's doorbell; `None` if the ring is to be polled for ever.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }

    /// What the driver's side is signalled through: call and err.
    #[must_use]
    pub(crate) fn outlets(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.call, &self.err].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<QueueStats> {
        &self.stats
    }

    /// Where the next owner goes on, once everything taken is answered and shown.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState { base: self.queue.base() }
    }
}

/// Adds one to an eventfd. A full one is signalled already; a broken one is its owner's loss.
#[inline]
pub fn signal(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes of our own.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// A peer chose the descriptor: one that blocks when full (a pipe, a socket) must not hold up a thread of ours. An
/// eventfd is left as it is, since the flag is shared with the peer, who may want to block on reading it; what happens
/// when the peer fills it is [`crate::worker`]'s business. Nothing else is written to: a file may be served by the peer
/// itself, who then decides when the write ends.
fn set_nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    match nix::sys::stat::fstat(fd)?.st_mode & libc::S_IFMT {
        // Anonymous inodes, of which eventfd is one, have no file type.
        0 => Ok(()),
        libc::S_IFIFO | libc::S_IFSOCK => {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            Ok(())
        }
        _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "neither an eventfd nor a pipe")),
    }
}

/// An error with everything behind it, on one line.
pub(crate) struct Causes<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "vring_test.rs"]
mod vring_test;
