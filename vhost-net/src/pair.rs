//! A queue pair: a receive and a transmit queue over one queue of the tap, served by one thread. Made by
//! [`crate::device`], which moves it into a [`strata_virtio::worker::Worker`] while either queue is started.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service, Source};

use crate::batch::Batch;
use crate::rx::{Rx, Waits};
use crate::tx::Tx;

/// While polling, the tap is asked once in so many looks at the rings: it takes a system call.
const TAP_EVERY: u32 = 24;

/// What one thread serves.
#[derive(Debug)]
pub struct Pair {
    batch: Box<Batch>,
    /// The receive queue, while it is started.
    pub rx: Option<Box<Rx>>,
    /// The transmit queue, while it is started.
    pub tx: Option<Box<Tx>>,
    looks: u32,
}

impl Pair {
    /// A pair with both queues stopped.
    #[must_use]
    pub fn new(batch: Batch) -> Self {
        Self { batch: Box::new(batch), rx: None, tx: None, looks: 0 }
    }

    /// Whether a queue is started.
    #[must_use]
    pub fn started(&self) -> bool {
        self.rx.is_some() || self.tx.is_some()
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Vring> {
        let rx = self.rx.as_mut().map(|rx| rx.vring_mut());
        rx.into_iter().chain(self.tx.as_mut().map(|tx| tx.vring_mut()))
    }
}

impl Service for Pair {
    fn process(&mut self) -> Progress {
        // What the guest sends may be answered on the spot by the host's own network stack; receiving second
        // takes such an answer along in the same wake-up.
        let tx = self.tx.as_mut().is_some_and(|tx| tx.process(&mut self.batch));
        let rx = self.rx.as_mut().is_some_and(|rx| rx.process(&mut self.batch));
        if tx || rx { Progress::Worked } else { Progress::Idle }
    }

    fn has_work(&mut self) -> bool {
        if self.tx.as_ref().is_some_and(|tx| tx.has_work()) {
            return true;
        }
        let Some(rx) = &self.rx else { return false };
        match rx.waits() {
            Waits::Buffers => rx.vring().queue().has_work(),
            Waits::Limit(time) => time.is_zero(),
            Waits::Frames => {
                self.looks = self.looks.wrapping_add(1);
                self.looks.is_multiple_of(TAP_EVERY) && readable(&self.batch)
            }
        }
    }

    fn suppress_kicks(&mut self) {
        self.rings().for_each(|ring| ring.queue_mut().suppress_kicks());
    }

    fn prepare_sleep(&mut self) -> bool {
        let mut work = self.tx.as_mut().is_some_and(|tx| tx.arm_kicks());
        // New buffers matter only to who waits for them; otherwise the tap ends the sleep.
        if let Some(rx) = self.rx.as_mut().filter(|rx| rx.waits() == Waits::Buffers) {
            work |= rx.vring_mut().queue_mut().arm_kicks();
        }
        work
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let mut sources = Vec::with_capacity(3);
        if let Some(tx) = &self.tx {
            sources.push(Source::kick(tx.vring()));
        }
        if let Some(rx) = &self.rx {
            sources.push(Source::kick(rx.vring()));
            sources.push(Source::readable_lazily(self.batch.as_fd()));
        }
        sources
    }

    fn wake_after(&self) -> Option<Duration> {
        let tx = self.tx.as_ref().and_then(|tx| tx.throttled());
        let rx = self.rx.as_ref().and_then(|rx| match rx.waits() {
            Waits::Limit(time) => Some(time),
            Waits::Buffers | Waits::Frames => None,
        });
        let first = tx.into_iter().chain(rx).min()?;
        // Sleeps are whole milliseconds; one that ends too early would be one more.
        Some(Duration::from_millis(
            first.as_millis() as u64 + u64::from(first.subsec_nanos() % 1_000_000 > 0),
        ))
    }

    fn drain(&mut self) {
        // A transmit batch is complete when `process` returns, and `process` ran before this.
        if let Some(tx) = &mut self.tx {
            tx.release();
        }
        if let Some(rx) = &mut self.rx {
            rx.release();
        }
    }
}

/// Answers requests an earlier backend left in the inflight region: they count as taken, and a frame may be
/// lost.
pub(crate) fn answer_resubmitted(vring: &mut Vring) {
    let mut chain = Chain::new();
    while vring.next(&mut chain) {
        if !chain.is_resubmitted() {
            vring.unpop(&chain);
            break;
        }
        vring.push(chain.head(), 0);
    }
    vring.flush();
}

/// Whether the tap has a frame.
fn readable(batch: &Batch) -> bool {
    let mut fds = [PollFd::new(batch.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        && fds.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))
}
