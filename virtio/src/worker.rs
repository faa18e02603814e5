//! A thread that serves one queue, or the few queues that belong together (a receive and a transmit queue).
//!
//! Made and stopped by a device's `start_queue` and `stop_queue`; runs a [`Service`]. Between the two the
//! control side shares nothing with the thread but a flag, an eventfd and counters: no lock.
//!
//! ```text
//!        +--------------------------------------------- stop? --> drain, hand the service back
//!        v                                            |
//!     process --idle--> look --miss--> arm, look once more --none--> sleep on kicks, sources, stop
//!        ^               |hit                 |work                    |
//!        +---------------+--------------------+------------------------+
//! ```
//!
//! A wake-up cannot be lost: kicks are asked for before the last look (virtio 1.2 section 2.7.10.1), and
//! sources are watched edge-triggered from before the service last found them empty.

mod end;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::poller::{Looked, PollLimit, Poller, Wait};
use crate::pulse::{Pulse, thread_id};
use crate::vring::{Counter, QueueStats, Vring, signal};
use end::End;

/// Whether a call of [`Service::process`] found something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It did; there may be more.
    Worked,
    /// There was nothing.
    Idle,
}

/// What a worker runs. Every method is called on the worker's thread, except [`Service::sources`].
pub trait Service: Send + 'static {
    /// Does what can be done now, a bounded amount (a queue's worth): takes requests, starts and finishes them,
    /// shows the answers. Never blocks. `Idle` only if every queue and every source has been found empty.
    fn process(&mut self) -> Progress;

    /// Whether `process` would find something: new requests, completions. Looked at over and over while
    /// polling, so it only peeks at memory.
    fn has_work(&mut self) -> bool;

    /// No kicks are wanted for now ([`crate::queue::Queue::suppress_kicks`] of every queue).
    fn suppress_kicks(&mut self);

    /// Makes the calls it has put off, asks for kicks on every queue it wants to be woken for, then looks at the rings
    /// again: true if there is work, and the worker will not sleep ([`crate::queue::Queue::arm_kicks`]).
    fn prepare_sleep(&mut self) -> bool;

    /// What ends a sleep: the queues' kicks and descriptors of the service's own (io_uring, tap). Asked once,
    /// before the thread begins; the service keeps the descriptors open.
    fn sources(&self) -> Vec<Source<'_>>;

    /// How long the next sleep may last at most, for what no descriptor tells (a rate limit); `None`: any time.
    /// Asked after [`Service::prepare_sleep`]; kept to the millisecond.
    fn wake_after(&self) -> Option<Duration> {
        None
    }

    /// Whether requests it has taken wait for a device of the host. How long that takes says nothing about when
    /// the driver comes back, so the two waits tune their polling separately.
    fn is_under_way(&self) -> bool {
        false
    }

    /// Takes what the control side has left for it, after [`Nudge::nudge`]: a queue more, a queue less. What ends a
    /// sleep may change with it.
    fn nudged(&mut self, _sources: &mut Sources<'_>) {}

    /// Completes and shows every request taken, waiting for what is under way; takes no new one. Requests that
    /// came out of an inflight region count as taken.
    fn drain(&mut self);
}

/// Something that ends a worker's sleep.
#[derive(Debug)]
pub struct Source<'a> {
    fd: Option<BorrowedFd<'a>>,
    stats: Option<Arc<QueueStats>>,
    /// Watched only while the worker is not busy.
    lazy: bool,
    /// What its peer is signalled through.
    outlets: [Option<BorrowedFd<'a>>; 2],
}

impl<'a> Source<'a> {
    /// A queue's kick. If it has none the worker never sleeps for long.
    #[must_use]
    pub fn kick(vring: &'a Vring) -> Self {
        let stats = Some(Arc::clone(vring.stats()));
        Self { fd: vring.kick(), stats, lazy: false, outlets: vring.outlets() }
    }

    /// A descriptor that becomes readable when there is work. Watched edge-triggered, never read by the worker.
    #[must_use]
    pub fn readable(fd: BorrowedFd<'a>) -> Self {
        Self { fd: Some(fd), stats: None, lazy: false, outlets: [None; 2] }
    }

    /// The same for a descriptor whose watching costs somebody: whoever sends into a tap runs a callback of the
    /// watcher for each frame. While `process` says `Worked` again and again it is not watched at all.
    #[must_use]
    pub fn readable_lazily(fd: BorrowedFd<'a>) -> Self {
        Self { fd: Some(fd), stats: None, lazy: true, outlets: [None; 2] }
    }
}

/// What ends a running worker's sleep, while it is changed by [`Service::nudged`].
#[derive(Debug)]
pub struct Sources<'a> {
    wait: &'a Wait,
    kicks: &'a mut Vec<Option<Arc<QueueStats>>>,
}

impl Sources<'_> {
    /// A service's own place for `source`, which it keeps open until it is removed; places are few and small. True if
    /// the source ends a sleep by itself: a queue without a kick does not.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn add(&mut self, place: usize, source: &Source<'_>) -> std::io::Result<bool> {
        if self.kicks.len() <= place {
            self.kicks.resize(place + 1, None);
        }
        if let Some(fd) = source.fd {
            self.wait.add(fd, place as u64)?;
        }
        if let Some(slot) = self.kicks.get_mut(place) {
            slot.clone_from(&source.stats);
        }
        Ok(source.fd.is_some())
    }

    /// `source` no longer ends a sleep. To be said before its descriptor is closed: a copy of it in another process
    /// would keep the watch alive.
    pub fn remove(&mut self, place: usize, source: &Source<'_>) {
        if let Some(fd) = source.fd
            && let Err(error) = self.wait.remove(fd)
        {
            tracing::error!(%error, "a source stays watched");
        }
        if let Some(slot) = self.kicks.get_mut(place) {
            *slot = None;
        }
    }
}

/// Has a worker look for what was left for it ([`Service::nudged`]).
#[derive(Debug, Clone)]
pub struct Nudge {
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
}

impl Nudge {
    /// Soon, and at least once after everything that was left before.
    pub fn nudge(&self) {
        self.shared.nudged.store(true, Ordering::Release);
        signal(&self.wake);
    }
}

/// How a worker runs.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The thread's name; 15 bytes are seen in /proc.
    pub name: String,
    /// The processor to stay on.
    pub cpu: Option<usize>,
    /// How long to look before sleeping.
    pub poll: PollLimit,
    /// Where to count, for counts that go on when the queue is started again.
    pub stats: Arc<WorkerStats>,
}

/// What a worker's thread did. Written by it alone.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Rounds of looking that found work.
    pub poll_hits: Counter,
    /// Rounds that did not.
    pub poll_misses: Counter,
    /// Rounds given up because others wanted the processor.
    pub poll_contended: Counter,
    /// Sleeps.
    pub sleeps: Counter,
    /// Sleeps not taken because work came while kicks were being asked for.
    pub near_misses: Counter,
    /// Whether it comes round.
    pub pulse: Pulse,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    nudged: AtomicBool,
    stats: Arc<WorkerStats>,
}

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Worker<S: Service> {
    thread: Option<JoinHandle<S>>,
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    end: End,
}

/// How long a sleep is at most when a queue has no kick.
const WITHOUT_KICK: Duration = Duration::from_millis(1);
/// The stop eventfd's token; sources are numbered from 0.
const STOP: u64 = u64::MAX;

impl<S: Service> Worker<S> {
    /// Starts a thread that serves `service`.
    ///
    /// # Errors
    /// No thread or descriptor is left, or a source cannot be waited for. The service is dropped.
    pub fn spawn(service: S, options: Options) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
            stats: options.stats,
        });
        let wake: OwnedFd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into();
        let wake = Arc::new(wake);
        let wait = Wait::new()?;
        wait.add(wake.as_fd(), STOP)?;
        let mut kicks = Vec::new();
        let mut limit = None;
        let mut lazy = Vec::new();
        let mut outlets = Vec::new();
        for (token, source) in service.sources().into_iter().enumerate() {
            match source.fd {
                // A copy is watched: the thread outlives no borrow.
                Some(fd) if source.lazy => lazy.push((fd.try_clone_to_owned()?, token as u64)),
                Some(fd) => wait.add(fd, token as u64)?,
                None => limit = Some(WITHOUT_KICK),
            }
            kicks.push(source.stats);
            outlets.extend(source.outlets.into_iter().flatten());
        }
        let (end, ending) = End::new(&outlets)?;
        let mut run = Run {
            service,
            id: 0,
            wait,
            kicks,
            lazy,
            watching: false,
            busy: false,
            limit,
            shared: Arc::clone(&shared),
            for_driver: Poller::new(options.poll),
            for_host: Poller::new(options.poll),
        };
        let thread = std::thread::Builder::new().name(options.name).spawn(move || {
            let _ending = ending;
            if let Some(cpu) = options.cpu {
                pin(cpu);
            }
            run.id = thread_id();
            run.run()
        })?;
        Ok(Self { thread: Some(thread), shared, wake, end })
    }

    /// Stops the thread: it completes what it has taken and gives the service back. `None` only if the service
    /// panicked.
    #[must_use]
    pub fn stop(mut self) -> Option<S> {
        self.halt()
    }

    fn halt(&mut self) -> Option<S> {
        let thread = self.thread.take()?;
        self.shared.stop.store(true, Ordering::Release);
        signal(&self.wake);
        self.end.wait();
        thread.join().ok()
    }

    /// What tells the thread that something was left for it; works as long as there is a thread.
    #[must_use]
    pub fn nudger(&self) -> Nudge {
        Nudge { shared: Arc::clone(&self.shared), wake: Arc::clone(&self.wake) }
    }

    /// The thread's counters.
    #[must_use]
    pub fn stats(&self) -> &WorkerStats {
        &self.shared.stats
    }
}

impl<S: Service> Drop for Worker<S> {
    fn drop(&mut self) {
        self.halt();
    }
}

fn pin(cpu: usize) {
    use nix::sched::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(cpu, %error, "a queue thread stays unpinned");
    }
}

/// What the thread owns.
struct Run<S> {
    service: S,
    /// The thread's.
    id: i32,
    wait: Wait,
    kicks: Vec<Option<Arc<QueueStats>>>,
    /// Sources that are not always watched, and whether they are now.
    lazy: Vec<(OwnedFd, u64)>,
    watching: bool,
    /// There was work already since it slept.
    busy: bool,
    limit: Option<Duration>,
    shared: Arc<Shared>,
    for_driver: Poller,
    for_host: Poller,
}

impl<S: Service> Run<S> {
    fn run(mut self) -> S {
        self.service.suppress_kicks();
        self.shared.stats.pulse.wakes(self.id);
        loop {
            self.shared.stats.pulse.round();
            // At least once before the first look at the flag: what an inflight region holds is then taken, and
            // drained, even if the queue is stopped at once.
            let progress = self.service.process();
            if self.shared.nudged.load(Ordering::Relaxed) {
                self.shared.nudged.swap(false, Ordering::AcqRel);
                self.service.nudged(&mut Sources { wait: &self.wait, kicks: &mut self.kicks });
                continue;
            }
            if self.shared.stop.load(Ordering::Acquire) {
                break;
            }
            match progress {
                Progress::Idle if !self.idle() => break,
                Progress::Idle => {}
                // The second time since it slept: a single frame and its answer are not worth two system calls.
                Progress::Worked if self.busy => self.watch(false),
                Progress::Worked => self.busy = true,
            }
        }
        self.service.drain();
        self.shared.stats.pulse.rests();
        self.service
    }

    /// Watches the lazy sources, or no longer. Whatever happened while they were not watched counts: a descriptor
    /// that is readable when it is added wakes at once.
    #[inline]
    fn watch(&mut self, watching: bool) {
        if self.watching == watching {
            return;
        }
        self.watching = watching;
        for (fd, token) in &self.lazy {
            let done =
                if watching { self.wait.add(fd.as_fd(), *token) } else { self.wait.remove(fd.as_fd()) };
            if let Err(error) = done {
                tracing::error!(%error, "a source cannot be watched");
            }
        }
    }

    /// Waits for something to do; false if waiting does not work.
    fn idle(&mut self) -> bool {
        let Self { service, shared, for_driver, for_host, .. } = self;
        let poller = if service.is_under_way() { for_host } else { for_driver };
        let stats = &shared.stats;
        let told = || shared.stop.load(Ordering::Relaxed) || shared.nudged.load(Ordering::Relaxed);
        let looked = poller.look(|| service.has_work() || told());
        match looked {
            Looked::Hit => {
                stats.poll_hits.add(1);
                return true;
            }
            Looked::Miss => stats.poll_misses.add(1),
            Looked::Contended => stats.poll_contended.add(1),
            Looked::Skipped => {}
        }
        if service.prepare_sleep() {
            stats.near_misses.add(1);
            service.suppress_kicks();
            return true;
        }
        self.watch(true);
        let Self { service, shared, for_driver, for_host, .. } = self;
        let poller = if service.is_under_way() { for_host } else { for_driver };
        let stats = &shared.stats;
        stats.sleeps.add(1);
        let since = Instant::now();
        let window = if looked == Looked::Miss { poller.window() } else { Duration::ZERO };
        let limit = match (self.limit, service.wake_after()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        stats.pulse.rests();
        let slept = self.wait.sleep(limit);
        stats.pulse.wakes(self.id);
        match slept {
            Ok(woken) => {
                for token in woken {
                    let kick = usize::try_from(token).ok().and_then(|at| self.kicks.get(at));
                    if let Some(Some(queue)) = kick {
                        queue.kicks.add(1);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "a queue thread cannot wait and ends");
                return false;
            }
        }
        poller.idle_for(window + since.elapsed());
        self.busy = false;
        self.service.suppress_kicks();
        true
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod worker_test;
