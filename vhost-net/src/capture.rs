//! Copies of a NIC's frames for whoever wants to see them. [`Captures`] is the list of those, changed by the control
//! side; each queue has a [`View`] of it and offers frames; a [`Sink`] takes them, up to a bound, and a thread of its
//! own (`stream`) writes them out as pcapng.
//!
//! ```text
//!   queue threads: View --offer--> Sink (bounded, never waited for) --take--> stream --pcapng--> client's socket
//! ```
//!
//! A queue thread never waits: what a sink has no room for is counted there and missing in the capture. With no sink
//! the whole of it costs one load a batch.

pub mod pcapng;
mod stream;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};

pub use stream::stream;

/// Captures of one NIC at a time.
pub const MOST: usize = 4;
/// Frames that may wait in a sink.
const FRAMES: usize = 4096;
/// Bytes that may.
const BYTES: usize = 4 << 20;
/// The longest part of a frame that is kept, in bytes; more than any frame has.
pub const WHOLE: usize = 262_144;

/// Which way a frame goes, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    Inbound,
    /// From the guest.
    Outbound,
}

/// A frame as it passed.
#[derive(Debug)]
pub struct Frame {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Which way.
    pub direction: Direction,
    /// Its length in bytes.
    pub length: usize,
    /// The part that is kept, from its beginning.
    pub data: Vec<u8>,
}

/// All captures of a NIC are taken.
#[derive(Debug, thiserror::Error)]
#[error("{MOST} captures of this NIC are running; end one of them")]
pub struct TooMany;

/// One capture's end at the queues.
#[derive(Debug)]
pub struct Sink {
    sender: SyncSender<Frame>,
    keep: usize,
    waiting: AtomicUsize,
    taken: AtomicU64,
    missed: AtomicU64,
}

/// The other end.
#[derive(Debug)]
pub struct Source {
    sink: Arc<Sink>,
    receiver: Receiver<Frame>,
    captures: Arc<Captures>,
}

impl Sink {
    fn offer(&self, direction: Direction, length: usize, copy: &mut dyn FnMut(&mut [u8]) -> bool) {
        let keep = length.min(self.keep);
        let waiting = self.waiting.fetch_add(keep, Ordering::Relaxed);
        let mut data = Vec::new();
        let fits = waiting + keep <= BYTES && {
            data.resize(keep, 0);
            copy(&mut data)
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        if fits && self.sender.try_send(Frame { time, direction, length, data }).is_ok() {
            self.taken.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.waiting.fetch_sub(keep, Ordering::Relaxed);
        self.missed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Source {
    /// The next frame, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Frame> {
        let frame = self.receiver.try_recv().ok()?;
        self.sink.waiting.fetch_sub(frame.data.len(), Ordering::Relaxed);
        Some(frame)
    }

    /// Frames that passed since the beginning, and of these the ones there was no room for.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let missed = self.sink.missed.load(Ordering::Relaxed);
        (self.sink.taken.load(Ordering::Relaxed) + missed, missed)
    }

    /// Bytes of a frame that are kept at most.
    #[must_use]
    pub fn keep(&self) -> usize {
        self.sink.keep
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.captures.change(|sinks| sinks.retain(|sink| !Arc::ptr_eq(sink, &self.sink)));
    }
}

/// All captures of one NIC.
#[derive(Debug, Default)]
pub struct Captures {
    /// Changes with the list.
    generation: AtomicU64,
    sinks: Mutex<Vec<Arc<Sink>>>,
}

impl Captures {
    /// One more, which keeps `keep` bytes of each frame (at most [`WHOLE`]). It ends when the source is dropped.
    ///
    /// # Errors
    /// There are [`MOST`] already.
    pub fn start(self: &Arc<Self>, keep: usize) -> Result<Source, TooMany> {
        let (sender, receiver) = sync_channel(FRAMES);
        let (waiting, taken, missed) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let sink = Arc::new(Sink { sender, keep: keep.min(WHOLE), waiting, taken, missed });
        let mut full = false;
        self.change(|sinks| {
            full = sinks.len() >= MOST;
            if !full {
                sinks.push(Arc::clone(&sink));
            }
        });
        if full { Err(TooMany) } else { Ok(Source { sink, receiver, captures: Arc::clone(self) }) }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Sink>>)) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut sinks);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What a queue has.
    #[must_use]
    pub fn view(self: &Arc<Self>) -> View {
        View { captures: Arc::clone(self), seen: u64::MAX, sinks: Vec::new() }
    }
}

/// A queue's view of the captures.
#[derive(Debug)]
pub struct View {
    captures: Arc<Captures>,
    seen: u64,
    sinks: Vec<Arc<Sink>>,
}

impl View {
    /// Whether anyone wants frames. Asked once a batch.
    #[inline]
    pub fn is_on(&mut self) -> bool {
        let now = self.captures.generation.load(Ordering::Acquire);
        if now != self.seen {
            self.look_again(now);
        }
        !self.sinks.is_empty()
    }

    #[cold]
    fn look_again(&mut self, now: u64) {
        // Not waited for: while the list is being changed, the old one will do.
        let sinks = match self.captures.sinks.try_lock() {
            Ok(sinks) => sinks,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.sinks.clone_from(&sinks);
        self.seen = now;
    }

    /// A frame of `length` bytes passes; `copy` fills in its beginning, or says that it cannot.
    pub fn offer(&self, direction: Direction, length: usize, mut copy: impl FnMut(&mut [u8]) -> bool) {
        for sink in &self.sinks {
            sink.offer(direction, length, &mut copy);
        }
    }
}

#[cfg(test)]
#[path = "capture_test.rs"]
mod capture_test;
