//! How a queue's thread waits: first by looking, for a bounded time that tunes itself, then asleep.
//!
//! [`Poller`] decides how long looking is worth it, [`Wait`] is the sleep. Called by [`crate::worker`]; devices
//! do not wait themselves. Polling pays while the next request comes sooner than a sleep and a wake-up would
//! cost, and costs a whole processor when it does not, so the window follows what happened lately:
//!
//! ```text
//!   woken soon after falling asleep (within the maximum)  -> longer: looking a bit more would have caught it
//!   slept long                                            -> shorter, down to not looking at all
//!   others want the processor (a yield let one of them    -> not at all, for a while; longer each time, until a
//!   run, and came back late)                                 while as long has passed without it
//!   not looking, but not idle either                      -> once in a while a try: where waking up itself takes
//!                                                            long, every gap looks long from a sleeper's side
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{UsageWho, getrusage};

/// The first window after none, in nanoseconds.
const START: u64 = 8_000;
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 24;
/// How often the processor is offered to others, in nanoseconds.
const YIELD_EVERY: u64 = 4_000;
/// A yield that takes longer than this has perhaps let someone else run, in nanoseconds.
const LATE: u64 = 15_000;
/// A yield that takes longer than this has let someone run until the kernel took the processor from them, in
/// nanoseconds: a tick at least. Whoever has something to wait for gives it back sooner.
const SPELL: u64 = 1_000_000;
/// A sleep of this many maximal windows is idleness, not a gap.
const IDLE: u64 = 64;
/// Time asleep with the window closed after contention, the least and the most, in nanoseconds. A try costs a spell of
/// some milliseconds where the driver spins on this very processor.
const REST: (u64, u64) = (500_000, 1_000_000_000);
/// What looking and finding something counts for, as time without contention, in nanoseconds.
const HIT: u64 = 1_000;

/// Sleeps between two tries with the window closed; doubles, up to the second, while the tries find nothing.
const TRY_EVERY: (u32, u32) = (16, 1024);

/// How long a thread may look before it sleeps. Zero never looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollLimit(pub Duration);

impl Default for PollLimit {
    fn default() -> Self {
        Self(Duration::from_micros(50))
    }
}

/// How a round of looking ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// There is work.
    Hit,
    /// There was none in the time allowed.
    Miss,
    /// Given up early, since others want the processor; there may be work by now.
    Contended,
    /// Not tried: the window is zero.
    Skipped,
}

/// The self-tuning window of one thread. Times in nanoseconds.
#[derive(Debug)]
pub struct Poller {
    max: u64,
    window: u64,
    /// Time to be slept before a window is opened again after contention.
    rest: u64,
    /// What `rest` is set to next time; doubles while contention lasts.
    penalty: u64,
    /// Time without contention since, towards the next halving of `penalty`.
    calm: u64,
    /// Sleeps to go before the next try.
    next_try: u32,
    try_every: u32,
    trying: bool,
}

impl Poller {
    /// Begins without looking; the first quick wake-up opens the window.
    #[must_use]
    pub fn new(limit: PollLimit) -> Self {
        let max = u64::try_from(limit.0.as_nanos()).unwrap_or(u64::MAX).min(10_000_000);
        let (try_every, _) = TRY_EVERY;
        Self {
            max,
            window: 0,
            rest: 0,
            penalty: REST.0,
            calm: 0,
            next_try: try_every,
            try_every,
            trying: false,
        }
    }

    /// Looks until there is work or the window is over.
    #[inline]
    pub fn look(&mut self, mut has_work: impl FnMut() -> bool) -> Looked {
        if self.window == 0 {
            return Looked::Skipped;
        }
        let start = Instant::now();
        let (mut yielded, mut switched) = (0, 0);
        loop {
            for _ in 0..LOOKS {
                if has_work() {
                    if self.trying {
                        self.trying = false;
                        (self.try_every, _) = TRY_EVERY;
                    }
                    self.calm_for(HIT);
                    return Looked::Hit;
                }
                std::hint::spin_loop();
            }
            let elapsed = nanos(start);
            if elapsed >= self.window {
                return Looked::Miss;
            }
            // Whoever was just called and waits for this very processor runs at once, not a spell of looking later.
            if yielded == 0 || elapsed - yielded >= YIELD_EVERY {
                if yielded == 0 {
                    switched = switches();
                }
                std::thread::yield_now();
                yielded = nanos(start);
                // Late alone says little where the host is itself a VM: an interrupt takes as long, and so does a
                // processor that is elsewhere for a moment. And if it was the driver that ran meanwhile, that was the
                // quickest way to the next request: unless it spins for the answer, and would have had it a spell ago
                // from somebody whom its kick wakes.
                let away = yielded - elapsed;
                if away > LATE && switches() != switched && (away > SPELL || !has_work()) {
                    self.contended();
                    return Looked::Contended;
                }
            }
        }
    }

    /// Tells how long the thread had nothing to do, from the start of looking to the wake-up.
    pub fn idle_for(&mut self, gap: Duration) {
        let gap = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        if self.rest > 0 {
            self.rest = self.rest.saturating_sub(gap);
            return;
        }
        self.calm_for(gap);
        let tried = std::mem::take(&mut self.trying);
        if gap <= self.max {
            self.window = (self.window * 2).clamp(START.min(self.max), self.max);
        } else if gap >= self.max.saturating_mul(IDLE) {
            self.window = 0;
        } else if tried {
            self.window = 0;
            self.try_every = (self.try_every * 2).min(TRY_EVERY.1);
            self.next_try = self.try_every;
        } else if self.window > 0 {
            self.window = if self.window / 2 < START { 0 } else { self.window / 2 };
        } else if self.next_try > 0 {
            self.next_try -= 1;
        } else {
            self.next_try = self.try_every;
            self.window = self.max;
            self.trying = self.max > 0;
        }
    }

    fn contended(&mut self) {
        self.window = 0;
        self.rest = self.penalty;
        self.penalty = (self.penalty * 2).min(REST.1);
        self.calm = 0;
    }

    /// The penalty halves when it has gone well for as long.
    #[inline]
    fn calm_for(&mut self, time: u64) {
        if self.penalty > REST.0 {
            self.calm = self.calm.saturating_add(time);
            if self.calm >= self.penalty {
                self.calm = 0;
                self.penalty = (self.penalty / 2).max(REST.0);
            }
        }
    }

    /// How long the next round would look.
    #[must_use]
    pub fn window(&self) -> Duration {
        Duration::from_nanos(self.window)
    }
}

/// How often this thread's processor was given to another while it could have run (getrusage(2), `ru_nivcsw`).
fn switches() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

#[inline]
fn nanos(since: Instant) -> u64 {
    // A span of 584 years fits.
    since.elapsed().as_nanos() as u64
}

/// The sleep: until one of its descriptors is signalled.
///
/// Descriptors are watched edge-triggered: an eventfd written again wakes again without being read, which saves
/// a system call per wake-up. Whoever is woken therefore tries everything there is to do, until nothing is left.
#[derive(Debug)]
pub struct Wait {
    epoll: Epoll,
    events: [EpollEvent; 8],
}

impl Wait {
    /// A sleep nothing ends yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: [EpollEvent::empty(); 8] })
    }

    /// Wakes whenever `fd` becomes readable; `token` then names it. The descriptor stays open as long as this.
    ///
    /// # Errors
    /// The descriptor cannot be waited for (a regular file).
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token))?)
    }

    /// No longer wakes for `fd`.
    ///
    /// # Errors
    /// It was not added.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Sleeps until something is signalled or the time is over; gives the tokens of what was. An
    /// interruption by a signal counts as nothing.
    ///
    /// # Errors
    /// The system's; none is known to happen.
    #[inline]
    pub fn sleep(&mut self, limit: Option<Duration>) -> std::io::Result<impl Iterator<Item = u64> + '_> {
        let limit = match limit {
            None => EpollTimeout::NONE,
            Some(time) => EpollTimeout::try_from(time).unwrap_or(EpollTimeout::MAX),
        };
        let count = match self.epoll.wait(&mut self.events, limit) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(self.events.iter().take(count).map(EpollEvent::data))
    }
}

impl AsFd for Wait {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
#[path = "poller_test.rs"]
mod poller_test;
