//! From the tap to the guest: reads frames straight into the guest's buffers, a batch per system call. Owned by
//! a queue pair, called on its thread.
//!
//! Buffers are always used in the order the guest made them available: after a crash the used index alone then
//! says where to go on, and no buffer is lost or used twice. The common frame fits one buffer, so a batch gives
//! each read one buffer, and behind it a stretch of our own memory for what does not fit. While frames are
//! larger than a buffer (segments to be split by the guest), one read at a time gets as many buffers as the
//! largest frame needs. What comes out of order all the same (a frame that overflowed in the middle of a batch,
//! a filtered one) is copied out and passed on in order; nothing is lost.
//!
//! ```text
//!   avail ring --hold--> held --read--> frame in place --commit--> used ring
//!                          |                 | out of place          ^
//!                          |                 v                       |
//!                          +------------> spill ---flush_spill-------+
//! ```
//!
//! The tap is not read while the guest has no buffer: frames wait in the kernel's queue, or are dropped there.
//! A buffer's used length never covers a byte that was not written for this frame.

mod deliver;
mod place;

use std::collections::VecDeque;
use std::sync::Arc;

use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;

use crate::batch::{Batch, DEPTH, MAX_PIECES, Scatter};
use crate::features as feature;
use crate::header::{HEADER, MAX_FRAME};
use crate::pair::answer_resubmitted;
use crate::stats::RxStats;
use crate::vlan::VlanFilter;
use place::{Place, describe, finish};

/// The most a read can give: a header and the largest frame.
const LARGEST: usize = HEADER + MAX_FRAME;
/// Frames before the other direction has its turn.
const BUDGET: usize = 4 * DEPTH;
/// Frames of one buffer in a row after which reads get one buffer again.
const SMALL_AGAIN: u32 = 256;

/// One receive queue.
#[derive(Debug)]
pub struct Rx {
    vring: Vring,
    mergeable: bool,
    checksums: bool,
    vlan: Arc<VlanFilter>,
    /// Buffers taken and not used yet, in the order taken.
    held: VecDeque<Chain>,
    spare: Vec<Chain>,
    /// Frames read and not passed on yet, headers included.
    spill: VecDeque<Vec<u8>>,
    /// [`LARGEST`] bytes for each read of a batch; touched only by frames that overflow.
    overflow: Vec<u8>,
    places: Vec<Place>,
    scatter: Scatter,
    results: Vec<i32>,
    /// Reads the next batch makes.
    window: usize,
    /// Frames to go until reads get one buffer again; 0 if they do.
    large: u32,
    starved: bool,
    stats: Arc<RxStats>,
}

impl Rx {
    /// Serves `vring`.
    #[must_use]
    pub fn new(vring: Vring, features: u64, vlan: Arc<VlanFilter>, stats: Arc<RxStats>) -> Self {
        Self {
            vring,
            mergeable: features & feature::MRG_RXBUF != 0,
            checksums: features & feature::GUEST_CSUM != 0,
            vlan,
            held: VecDeque::with_capacity(2 * DEPTH),
            spare: Vec::with_capacity(2 * DEPTH),
            spill: VecDeque::new(),
            overflow: vec![0; DEPTH * LARGEST],
            places: Vec::with_capacity(DEPTH),
            scatter: Scatter::default(),
            results: Vec::with_capacity(DEPTH),
            window: 1,
            large: 0,
            starved: false,
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

    /// Whether it waits for buffers rather than for frames.
    #[must_use]
    pub fn starved(&self) -> bool {
        self.starved
    }

    /// Passes on what there is, a few batches at most. Whether there may be more.
    pub fn process(&mut self, batch: &mut Batch) -> bool {
        let mut more = true;
        let mut done = 0;
        while done < BUDGET {
            let reads = if self.flush_spill() { self.plan() } else { 0 };
            if reads == 0 {
                self.starve();
                more = false;
                break;
            }
            self.starved = false;
            self.read(batch);
            let got = self.deliver();
            done += got;
            if self.window == 1 {
                // A single frame does not wait for the next look at the tap.
                self.vring.flush();
            } else {
                self.vring.show();
            }
            if got < reads {
                // The tap is empty; the next burst is perhaps as long as this one was.
                self.window = got.max(1);
                more = false;
                break;
            }
            self.window = (self.window * 2).min(DEPTH);
        }
        self.vring.flush();
        more
    }

    fn starve(&mut self) {
        if !self.starved {
            self.starved = true;
            self.stats.starved.add(1);
        }
    }

    /// Takes one more buffer; false if the guest has none.
    fn hold(&mut self) -> bool {
        loop {
            let mut chain = self.spare.pop().unwrap_or_default();
            if !self.vring.next(&mut chain) {
                self.spare.push(chain);
                return false;
            }
            // Section 5.1.6.3.1: a buffer holds at least the header.
            if chain.writable_len() >= HEADER {
                self.held.push_back(chain);
                return true;
            }
            self.vring.push(chain.head(), 0);
            self.spare.push(chain);
        }
    }

    /// Describes the next batch; the number of reads.
    fn plan(&mut self) -> usize {
        self.scatter.clear();
        self.places.clear();
        if self.large > 0 && self.mergeable {
            let mut place = Place { chains: 0, capacity: 0 };
            let mut pieces = 0;
            while place.capacity < LARGEST {
                if place.chains == self.held.len() && !self.hold() {
                    break;
                }
                let Some(chain) = self.held.get(place.chains) else { break };
                pieces += chain.writable().len();
                if place.chains > 0 && pieces >= MAX_PIECES {
                    break;
                }
                place.capacity += describe(&mut self.scatter, chain);
                place.chains += 1;
            }
            if place.chains > 0 {
                self.places.push(place);
                finish(&mut self.scatter, place, self.overflow.get_mut(..LARGEST));
            }
        } else {
            while self.held.len() < self.window && self.hold() {}
            let own = self.overflow.chunks_exact_mut(LARGEST);
            for (chain, own) in self.held.iter().take(self.window).zip(own) {
                let place = Place { chains: 1, capacity: describe(&mut self.scatter, chain) };
                self.places.push(place);
                finish(&mut self.scatter, place, Some(own));
            }
        }
        self.places.len()
    }

    #[allow(unsafe_code)] // hands the kernel pieces of guest memory
    fn read(&mut self, batch: &mut Batch) {
        // SAFETY: the pieces lie in `overflow`, which nothing else refers to now, or in the writable part of
        // guest memory that `held` keeps mapped.
        unsafe { batch.read(&self.scatter, &mut self.results) };
    }

    /// Gives back every buffer that was not used, so that the queue can be stopped.
    pub fn release(&mut self) {
        while let Some(chain) = self.held.pop_back() {
            if chain.is_resubmitted() {
                // Left by an earlier backend in the inflight region: it counts as taken, and is answered empty.
                self.vring.push(chain.head(), 0);
            } else {
                self.vring.unpop(&chain);
            }
            self.spare.push(chain);
        }
        answer_resubmitted(&mut self.vring);
    }

    /// Counts the frames that will not be passed on; called when the queue is stopped for good.
    pub fn discard(&mut self) {
        self.stats.stopped.add(self.spill.len() as u64);
        self.spill.clear();
    }
}
