//! From the tap to the guest: reads frames straight into the guest's buffers, a batch per system call. Owned by
//! a queue pair, called on its thread.
//!
//! Buffers are always used in the order the guest made them available: after a crash the used index alone then
//! says where to go on, and no buffer is lost or used twice.
//!
//! How long a frame is shows only when it has been read, and one that does not fit would be lost. An ordinary frame
//! is therefore read into memory of ours, which any frame fits, and copied to the guest: reading into the guest's
//! buffer with room of ours behind it takes the kernel a list of two pieces, which costs more than copying two
//! kilobytes that were just written (measured: 14 % of the processor time of a 1500-byte frame for the list, a few for
//! the copy). While frames are larger than a buffer (segments to be split by the guest), one read at a time goes
//! straight to as many buffers as the largest frame needs.
//!
//! ```text
//!   avail ring --hold--> held <--copy-- own <--read-- tap     ordinary frames, a batch per system call
//!                          |
//!                          +<-----------read--------- tap     large frames, one per system call
//!                          |
//!                          +--retire--> used ring             spill: frames that wait for buffers
//! ```
//!
//! The tap is not read while the guest has no buffer: frames wait in the kernel's queue, or are dropped there.
//! A buffer's used length never covers a byte that was not written for this frame.

mod deliver;
mod pace;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;

use crate::batch::{Batch, DEPTH, MAX_PIECES, Scatter};
use crate::capture::View;
use crate::features as feature;
use crate::header::{HEADER, MAX_FRAME};
use crate::limit::Allowance;
use crate::pair::answer_resubmitted;
use crate::port::Port;
use crate::stats::RxStats;
use crate::vlan::VlanFilter;
use pace::Pace;

/// The most a read can give: a header and the largest frame.
const LARGEST: usize = HEADER + MAX_FRAME;
/// From one frame's memory to the next one's: not a multiple of what the processor's caches have as a period, so that
/// the beginnings of all of them stay there together.
const STRIDE: usize = 65_536 + 33 * 64;
const _: () = assert!(STRIDE >= LARGEST);
/// Frames before the other direction has its turn.
const BUDGET: usize = 4 * DEPTH;
/// The size frames are taken for, in bytes, when it is reckoned how many a rate limit lets pass.
const ORDINARY: usize = 1514;
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
    /// [`STRIDE`] bytes for each read of a batch; the part behind ordinary frames is hardly ever touched.
    own: Vec<u8>,
    scatter: Scatter,
    results: Vec<i32>,
    pace: Pace,
    /// Frames to go until reads get one buffer again; 0 if they do.
    large: u32,
    starved: bool,
    port: Port,
    view: View,
    /// Whether somebody captures the batch.
    captured: bool,
    /// The rate limit lets nothing pass for now.
    throttled: bool,
    /// What is left of it in this round; `None` while there is none.
    allowance: Option<Allowance>,
    stats: Arc<RxStats>,
}

/// Where a batch goes.
#[derive(Debug, Clone, Copy)]
enum Plan {
    /// A frame per read to memory of ours.
    Own,
    /// One frame straight to the first of the buffers held.
    Direct {
        /// How many.
        buffers: usize,
        /// Bytes they take.
        capacity: usize,
    },
}

/// What a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Frames from the tap.
    Frames,
    /// Buffers from the guest.
    Buffers,
    /// Its rate limit, for this long.
    Limit(Duration),
}

impl Rx {
    /// Serves `vring`.
    #[must_use]
    pub fn new(vring: Vring, features: u64, vlan: Arc<VlanFilter>, port: &Port, stats: Arc<RxStats>) -> Self {
        Self {
            vring,
            mergeable: features & feature::MRG_RXBUF != 0,
            checksums: features & feature::GUEST_CSUM != 0,
            vlan,
            held: VecDeque::with_capacity(2 * DEPTH),
            spare: Vec::with_capacity(2 * DEPTH),
            spill: VecDeque::new(),
            own: vec![0; DEPTH * STRIDE],
            scatter: Scatter::default(),
            results: Vec::with_capacity(DEPTH),
            pace: Pace::new(),
            large: 0,
            starved: false,
            port: port.clone(),
            view: port.captures.view(),
            captured: false,
            throttled: false,
            allowance: None,
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

    /// What it waits for.
    #[must_use]
    pub fn waits(&self) -> Waits {
        match (self.throttled, self.starved) {
            (true, _) => Waits::Limit(self.port.rx.wait()),
            (false, true) => Waits::Buffers,
            (false, false) => Waits::Frames,
        }
    }

    /// Passes on what there is, a few batches at most. Whether there may be more.
    pub fn process(&mut self, batch: &mut Batch) -> bool {
        let mut more = true;
        let mut done = 0;
        self.captured = self.view.is_on();
        self.throttled = false;
        self.allowance = self.port.rx.is_on().then(|| self.port.rx.allowance());
        while done < BUDGET {
            let window = match &self.allowance {
                None => self.pace.window(),
                Some(allowance) => self.pace.window().min(allowance.frames(ORDINARY)),
            };
            if window == 0 {
                self.throttled = true;
                self.stats.throttled.add(1);
                more = false;
                break;
            }
            let Some(plan) = self.flush_spill().then(|| self.plan(window)).flatten() else {
                self.starve();
                more = false;
                break;
            };
            self.starved = false;
            self.read(batch);
            let reads = self.results.len();
            let got = self.deliver(plan);
            done += got;
            let lone = self.pace.is_lone();
            more = self.pace.took(reads, got);
            if lone || !more {
                break;
            }
            self.vring.show();
        }
        if let Some(allowance) = self.allowance.take() {
            allowance.settle(&self.port.rx);
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

    /// Describes the next batch, of up to `window` reads; `None` if the guest has no buffers.
    fn plan(&mut self, window: usize) -> Option<Plan> {
        self.scatter.clear();
        if self.large > 0 {
            return self.plan_direct();
        }
        while self.held.len() < window && self.hold() {}
        let reads = self.held.len().min(window);
        for own in self.own.chunks_exact_mut(STRIDE).take(reads) {
            self.scatter.own(own);
            self.scatter.end();
        }
        (reads > 0).then_some(Plan::Own)
    }

    /// One read into as many buffers as the largest frame needs, and behind them memory of ours for what they cannot
    /// take.
    fn plan_direct(&mut self) -> Option<Plan> {
        let (mut buffers, mut capacity, mut pieces) = (0, 0, 0);
        while capacity < LARGEST && (buffers == 0 || self.mergeable) {
            if buffers == self.held.len() && !self.hold() {
                break;
            }
            let Some(chain) = self.held.get(buffers) else { break };
            pieces += chain.writable().len();
            if buffers > 0 && pieces >= MAX_PIECES {
                break;
            }
            // One piece is kept for memory of ours.
            for piece in chain.writable().iter().take(MAX_PIECES - 1) {
                self.scatter.guest(*piece);
                capacity += piece.len();
            }
            buffers += 1;
        }
        if let (true, Some(own)) = (capacity < LARGEST, self.own.get_mut(..LARGEST.saturating_sub(capacity)))
        {
            self.scatter.own(own);
        }
        self.scatter.end();
        (buffers > 0).then_some(Plan::Direct { buffers, capacity })
    }

    #[allow(unsafe_code)] // hands the kernel pieces of guest memory
    fn read(&mut self, batch: &mut Batch) {
        // SAFETY: the pieces lie in `own`, which nothing else refers to now, or in the writable part of
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
