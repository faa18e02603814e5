//! Whether a process's threads come round: what its service manager's watchdog is fed by.
//!
//! Owns the judgement and the thread that makes it. Each [`crate::worker`] notes its rounds in a [`Pulse`]; a backend's
//! `main` calls [`feed`] when a manager watches it. Silence is not enough, since killing a backend that is only slow
//! would make a bad moment of the host worse: a thread that sleeps, that waits in the kernel for storage, or that gets
//! no processor is well. One that burns a processor and never comes round is not, and then nobody is told that all is
//! well. A process that is stopped, or a host that runs none of its threads, does not come as far as telling.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::vring::Counter;
use crate::worker::WorkerStats;

/// Enough for a loop that calls nothing deep.
const STACK: usize = 256 << 10;

/// What one thread says of itself. Written by it alone.
#[derive(Debug, Default)]
pub struct Pulse {
    rounds: Counter,
    /// The thread while it is awake; 0 while it sleeps, or there is none.
    awake: AtomicI32,
}

impl Pulse {
    /// Begins another round of its loop.
    #[inline]
    pub(crate) fn round(&self) {
        self.rounds.add(1);
    }

    /// Is awake, as thread `id`.
    pub(crate) fn wakes(&self, id: i32) {
        self.awake.store(id, Ordering::Relaxed);
    }

    /// Goes to sleep, from which the kernel wakes it, or ends.
    pub(crate) fn rests(&self) {
        self.awake.store(0, Ordering::Relaxed);
    }
}

/// The calling thread's id.
pub(crate) fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Where a thread was when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    thread: i32,
    rounds: u64,
    cpu: Duration,
}

impl Seen {
    fn of(thread: i32, rounds: u64) -> Option<Self> {
        Some(Self { thread, rounds, cpu: cpu_of(thread)? })
    }

    /// The same thread in the same round, in which it has used a processor for at least half of the time since.
    fn hangs_in(self, now: Self, since: Duration) -> bool {
        (self.thread, self.rounds) == (now.thread, now.rounds)
            && now.cpu.saturating_sub(self.cpu) >= since / 2
    }
}

/// The processor time of a thread of this process.
fn cpu_of(thread: i32) -> Option<Duration> {
    // A thread's clock as pthread_getcpuclockid(3) makes it: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
    let clock = ClockId::from_raw((!thread << 3) | 4 | 2);
    clock_gettime(clock).ok().filter(|_| thread > 0).map(Duration::from)
}

/// All threads that are looked at.
#[derive(Debug)]
struct Watch {
    /// The control loop: what it does is short, so it never burns a processor for long.
    control: i32,
    queues: Vec<Arc<WorkerStats>>,
    seen: Vec<Option<Seen>>,
}

impl Watch {
    fn new(control: i32, queues: Vec<Arc<WorkerStats>>) -> Self {
        Self { control, queues, seen: Vec::new() }
    }

    /// Whether none hangs, `since` the last look.
    fn is_well(&mut self, since: Duration) -> bool {
        let queues = self.queues.iter().map(|stats| {
            let pulse = &stats.pulse;
            Seen::of(pulse.awake.load(Ordering::Relaxed), pulse.rounds.get())
        });
        let now: Vec<Option<Seen>> = std::iter::once(Seen::of(self.control, 0)).chain(queues).collect();
        let before = std::mem::replace(&mut self.seen, now);
        let mut pairs = before.iter().zip(&self.seen).filter_map(|(before, now)| before.zip(*now));
        !pairs.any(|(before, now)| before.hangs_in(now, since))
    }
}

/// Calls `tell` every so often from a thread of its own, as long as the calling thread, which is the control loop's, and
/// the threads behind `queues` come round.
///
/// # Errors
/// No thread is left.
pub fn feed(
    every: Duration,
    queues: Vec<Arc<WorkerStats>>,
    tell: impl Fn() + Send + 'static,
) -> io::Result<()> {
    let mut watch = Watch::new(thread_id(), queues);
    let look = move || {
        let mut last = Instant::now();
        loop {
            if watch.is_well(last.elapsed()) {
                tell();
            } else {
                tracing::error!(
                    "a thread has not come round for {:?}; the watchdog is not fed",
                    last.elapsed()
                );
            }
            last = Instant::now();
            std::thread::sleep(every);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).stack_size(STACK).spawn(look).map(drop)
}

#[cfg(test)]
#[path = "pulse_test.rs"]
mod pulse_test;
