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
use std::time::Duration;

use strata_virtio::chain::Chain;
use strata_virtio::limit::Throttle;
use strata_virtio::memory::IoSlice;
use strata_virtio::vring::Vring;

use crate::batch::{Batch, DEPTH, MAX_PIECES, Scatter};
use crate::capture::{Direction, View};
use crate::guard::Guard;
use crate::header::{Allowed, ETHERNET, HEADER, MAX_FRAME, segments};
use crate::pair::answer_resubmitted;
use crate::port::Port;
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
    port: Port,
    view: View,
    /// The rate limit lets nothing pass for now.
    throttled: bool,
    stats: Arc<TxStats>,
}

impl Tx {
    /// Serves `vring`. While the port's link is down every frame is dropped.
    #[must_use]
    pub fn new(vring: Vring, features: u64, port: &Port, stats: Arc<TxStats>) -> Self {
        Self {
            vring,
            allowed: Allowed::new(features),
            chains: std::iter::repeat_with(Chain::new).take(DEPTH).collect(),
            fates: Vec::with_capacity(DEPTH),
            own: vec![0; DEPTH * COPY],
            rest: Vec::new(),
            scatter: Scatter::default(),
            results: Vec::with_capacity(DEPTH),
            view: port.captures.view(),
            port: port.clone(),
            throttled: false,
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

    /// Whether it has frames it may not send yet, and how long that lasts.
    #[must_use]
    pub fn throttled(&self) -> Option<Duration> {
        self.throttled.then(|| self.port.tx.wait())
    }

    /// Whether there is something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        if self.throttled { self.port.tx.wait().is_zero() } else { self.vring.queue().has_work() }
    }

    /// Asks for a kick, unless it could not send anyway; whether there is something to do.
    pub fn arm_kicks(&mut self) -> bool {
        if self.throttled { self.has_work() } else { self.vring.queue_mut().arm_kicks() }
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
        let link = self.port.link();
        let limited = self.port.tx.is_on();
        let mut allowance = self.port.tx.allowance();
        self.throttled = false;
        let mut own = self.own.chunks_exact_mut(COPY);
        for chain in &mut self.chains {
            if limited && allowance.is_spent() {
                // What there is waits in the guest's ring, and the guest's own queues behind it.
                self.throttled = true;
                self.stats.throttled.add(1);
                break;
            }
            if !self.vring.next(chain) {
                break;
            }
            let fate = match own.next() {
                Some(own) if link => {
                    let rules = (self.allowed, &*self.port.guard);
                    let fate = plan(chain, own, rules, &self.stats, &mut self.rest, &mut self.scatter);
                    if let (true, Some(frame)) = (limited, fate) {
                        allowance.take(frame, segments(own, frame));
                    }
                    fate
                }
                _ => {
                    self.stats.link.add(1);
                    None
                }
            };
            self.fates.push(fate);
        }
        allowance.settle(&self.port.tx);
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
        let captured = self.view.is_on();
        for (at, (chain, fate)) in self.chains.iter().zip(&self.fates).take(taken).enumerate() {
            if let Some(len) = fate {
                match results.next() {
                    Some(&result) if result > 0 => {
                        frames += 1;
                        bytes += *len as u64;
                        if captured {
                            let own = self.own.chunks_exact(COPY).nth(at).unwrap_or_default();
                            self.view.offer(Direction::Outbound, *len, |out| copy(chain, own, out));
                        }
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
    (allowed, guard): (Allowed, &Guard),
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
    let (header, start) = own.split_first_chunk_mut::<HEADER>()?;
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
    if let Err(why) = guard.check(start) {
        stats.guard.refused(why);
        return None;
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

/// Copies the beginning of a frame that was sent: what was copied when it was checked, and the rest from the guest, who
/// may have changed that meanwhile.
#[cold]
fn copy(chain: &Chain, own: &[u8], out: &mut [u8]) -> bool {
    let whole = chain.readable_len() <= COPY;
    let own = own.get(HEADER..if whole { COPY } else { PREFIX }).unwrap_or_default();
    let (start, rest) = out.split_at_mut(own.len().min(out.len()));
    for (to, from) in start.iter_mut().zip(own) {
        *to = *from;
    }
    rest.is_empty() || chain.copy_out(HEADER + start.len(), rest).is_ok()
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
