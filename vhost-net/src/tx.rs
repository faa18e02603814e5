//! From the guest to the tap: takes frames from a transmit queue and writes them, a batch per system call.
//! Owned by a queue pair, called on its thread.
//!
//! A guest may change a frame while it is looked at, so what is checked is what is sent: the header and the
//! first bytes, and small frames whole, are copied once into memory of ours; the rest goes from guest memory
//! into the kernel without a stop. A frame is dropped and counted, never waited for, when its header lies, it is
//! no Ethernet frame, or the tap does not take it: a full tap (its TUNSETSNDBUF reached) is a full wire, and the
//! guest's transport protocols know what to do. Every request is answered in the order it was taken, so that
//! after a crash the used index alone says where to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strata_virtio::chain::Chain;
use strata_virtio::limit::Throttle;
use strata_virtio::memory::IoSlice;
use strata_virtio::vring::Vring;

use crate::batch::{Batch, DEPTH, MAX_PIECES, Scatter};
use crate::header::{Allowed, ETHERNET, HEADER, MAX_FRAME};
use crate::pair::answer_resubmitted;
use crate::stats::TxStats;

/// Frames up to this size, header included, are copied whole: a copy costs less than a second piece.
const COPY: usize = 2048;
/// Of larger ones this much is.
const PREFIX: usize = 256;
/// Batches before the other direction has its turn.
const ROUNDS: usize = 4;

/// One transmit queue.
#[derive(Debug)]
pub struct Tx {
    vring: Vring,
    allowed: Allowed,
    /// The batch's requests, all of them [`DEPTH`] long.
    chains: Vec<Chain>,
    /// What becomes of each: its frame's length if it is being written.
    fates: Vec<Option<usize>>,
    /// [`COPY`] bytes for each.
    own: Vec<u8>,
    rest: Vec<IoSlice>,
    scatter: Scatter,
    results: Vec<i32>,
    link: Arc<AtomicBool>,
    stats: Arc<TxStats>,
}

impl Tx {
    /// Serves `vring`. While `link` is false every frame is dropped.
    #[must_use]
    pub fn new(vring: Vring, features: u64, link: Arc<AtomicBool>, stats: Arc<TxStats>) -> Self {
        Self {
            vring,
            allowed: Allowed::new(features),
            chains: std::iter::repeat_with(Chain::new).take(DEPTH).collect(),
            fates: Vec::with_capacity(DEPTH),
            own: vec![0; DEPTH * COPY],
            rest: Vec::new(),
            scatter: Scatter::default(),
            results: Vec::with_capacity(DEPTH),
            link,
            stats,
        }
    }

    /// The queue.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// The queue.
    pub fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }

    /// Sends what there is, a few batches at most. Whether there may be more.
    pub fn process(&mut self, batch: &mut Batch) -> bool {
        let mut more = true;
        for _ in 0..ROUNDS {
            let taken = self.take();
            self.send(batch);
            self.answer(taken);
            // A malformed request is answered on the way, without being taken.
            self.vring.show();
            if taken < DEPTH {
                more = false;
                break;
            }
        }
        self.vring.flush();
        more
    }

    /// Leaves nothing that counts as taken, so that the queue can be stopped.
    pub fn release(&mut self) {
        answer_resubmitted(&mut self.vring);
    }

    /// Takes up to a batch of requests and describes what is to be written of them.
    fn take(&mut self) -> usize {
        self.scatter.clear();
        self.fates.clear();
        let link = self.link.load(Ordering::Relaxed);
        let mut own = self.own.chunks_exact_mut(COPY);
        for chain in &mut self.chains {
            if !self.vring.next(chain) {
                break;
            }
            let fate = match own.next() {
                Some(own) if link => {
                    plan(chain, own, self.allowed, &self.stats, &mut self.rest, &mut self.scatter)
                }
                _ => {
                    self.stats.link.add(1);
                    None
                }
            };
            self.fates.push(fate);
        }
        self.fates.len()
    }

    #[allow(unsafe_code)] // hands the kernel pieces of guest memory
    fn send(&mut self, batch: &mut Batch) {
        self.results.clear();
        if self.scatter.count() > 0 {
            // SAFETY: the pieces lie in `own`, or in guest memory that `chains` hold mapped.
            unsafe { batch.write(&self.scatter, &mut self.results) };
        }
    }

    fn answer(&mut self, taken: usize) {
        let (mut frames, mut bytes) = (0, 0);
        let mut results = self.results.iter();
        for (chain, fate) in self.chains.iter().zip(&self.fates).take(taken) {
            if let Some(len) = fate {
                match results.next() {
                    Some(&result) if result > 0 => {
                        frames += 1;
                        bytes += *len as u64;
                    }
                    result => lost(&self.stats, result.map_or(libc::EIO, |r| -r)),
                }
            }
            // The device writes nothing into a transmitted frame.
            self.vring.push(chain.head(), 0);
        }
        self.stats.frames.add(frames);
        self.stats.bytes.add(bytes);
    }
}

/// Describes what is to be written for a request; its frame's length, or `None` if it is dropped.
#[inline]
fn plan(
    chain: &Chain,
    own: &mut [u8],
    allowed: Allowed,
    stats: &TxStats,
    rest: &mut Vec<IoSlice>,
    scatter: &mut Scatter,
) -> Option<usize> {
    let total = chain.readable_len();
    if total < HEADER + ETHERNET {
        stats.short.add(1);
        return None;
    }
    if total > HEADER + MAX_FRAME {
        stats.long.add(1);
        return None;
    }
    let frame = total - HEADER;
    let copied = if total <= COPY { total } else { PREFIX };
    let own = own.get_mut(..copied)?;
    chain.copy_out(0, own).ok()?;
    let (header, _) = own.split_first_chunk_mut::<HEADER>()?;
    match allowed.check(header, frame) {
        Ok(clean) => *header = clean,
        Err(lie) => {
            static LIES: Throttle = Throttle::new(5, 60);
            stats.lies.add(1);
            if LIES.allow() {
                tracing::warn!(%lie, "a frame was dropped for what its header says");
            }
            return None;
        }
    }
    rest.clear();
    if copied < total {
        chain.readable_range(copied, total - copied, rest).ok()?;
        if rest.len() >= MAX_PIECES {
            stats.long.add(1);
            return None;
        }
    }
    scatter.own(own);
    for piece in rest.iter() {
        scatter.guest(*piece);
    }
    scatter.end();
    Some(frame)
}

/// Counts a frame the tap did not take.
#[cold]
fn lost(stats: &TxStats, error: i32) {
    static REFUSED: Throttle = Throttle::new(5, 60);
    match error {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => stats.full.add(1),
        // The interface is down, or deleted under us.
        libc::EIO | libc::EBADFD | libc::ENODEV | libc::ENETDOWN => stats.link.add(1),
        _ => {
            stats.refused.add(1);
            if REFUSED.allow() {
                let error = std::io::Error::from_raw_os_error(error);
                tracing::warn!(%error, "the tap refused a frame");
            }
        }
    }
}
