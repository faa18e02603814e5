//! The way into one port: its receive ring, and what waits while that has no buffers. Owned by the switch's thread.
//!
//! A frame that finds no buffers is copied into a queue of a bounded size and delivered, in order, when there are some:
//! a guest that falls behind for a moment loses nothing, and one that never returns its buffers costs its own frames,
//! counted, and nobody's time. Buffers are taken for one frame at a time and given back if they do not suffice, so none
//! is held when the queue is stopped.
//!
//! A buffer's used length never covers a byte that was not written for its frame.

use std::collections::VecDeque;

use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;

use super::frame::{Body, Out};
use super::stats::PortStats;
use crate::features as feature;
use crate::header::HEADER;
use crate::pair::answer_resubmitted;

/// Bytes that may wait for a port.
pub const WAITING_BYTES: usize = 1 << 20;
/// Frames that may.
pub const WAITING_FRAMES: usize = 1024;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    /// There are no buffers now.
    Later,
    /// The buffers are too small.
    Never,
}

/// One port's receive queue, while it is started.
#[derive(Debug)]
pub struct Lane {
    vring: Vring,
    features: u64,
    /// Buffers being collected for a frame, and room for more.
    chains: Vec<Chain>,
    waiting: VecDeque<Box<[u8]>>,
    waiting_bytes: usize,
}

impl Lane {
    /// Delivers into `vring` to a driver that accepted `features`.
    #[must_use]
    pub fn new(vring: Vring, features: u64) -> Self {
        Self { vring, features, chains: Vec::new(), waiting: VecDeque::new(), waiting_bytes: 0 }
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

    /// What its driver accepted.
    #[inline]
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether frames wait for buffers.
    #[inline]
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Delivers a frame, now or when there are buffers, or counts why not.
    #[inline]
    pub fn deliver(&mut self, out: &Out<'_>, stats: &PortStats) {
        let put = if self.waits() { Put::Later } else { self.put(out) };
        match put {
            Put::Done => delivered(out.len(), stats),
            Put::Later => self.queue(out, stats),
            Put::Never => stats.rx_drop_no_room.add(1),
        }
    }

    /// Delivers what waits, as far as there are buffers. Whether anything could be done.
    pub fn drain(&mut self, stats: &PortStats) -> bool {
        let mut any = false;
        while let Some(frame) = self.waiting.pop_front() {
            match self.put(&Out::of_bytes(&frame)) {
                Put::Later => {
                    self.waiting.push_front(frame);
                    return any;
                }
                Put::Done => delivered(frame.len(), stats),
                Put::Never => stats.rx_drop_no_room.add(1),
            }
            self.waiting_bytes -= frame.len();
            any = true;
        }
        self.waiting.shrink_to(16);
        any
    }

    #[cold]
    fn queue(&mut self, out: &Out<'_>, stats: &PortStats) {
        if self.waiting.len() >= WAITING_FRAMES || self.waiting_bytes + out.len() > WAITING_BYTES {
            stats.rx_drop_full.add(1);
            return;
        }
        let mut bytes = Vec::with_capacity(out.len());
        if out.gather(&mut bytes) {
            self.waiting_bytes += bytes.len();
            self.waiting.push_back(bytes.into_boxed_slice());
            stats.rx_waited.add(1);
        }
    }

    /// Gives the queue back, with nothing taken; what waited is lost.
    #[must_use]
    pub fn stop(mut self, stats: &PortStats) -> Vring {
        stats.rx_drop_stopped.add(self.waiting.len() as u64);
        answer_resubmitted(&mut self.vring);
        self.vring
    }

    #[inline]
    fn put(&mut self, out: &Out<'_>) -> Put {
        let count = match self.collect(out.len()) {
            Ok(count) => count,
            Err(put) => return put,
        };
        let chains = self.chains.get(..count).unwrap_or_default();
        let mut sink = Sink { chains, at: 0 };
        sink.own(out.start());
        match out.body() {
            Body::Own(bytes) => sink.own(bytes),
            Body::Guest(chain, from) => sink.guest(chain, from, out.len() - out.start().len()),
        }
        // Section 5.1.6.4.1: the number of buffers is always set. Every buffer has room for a header.
        let buffers = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
        if let Some(first) = chains.first() {
            let _ = first.copy_in(HEADER - 2, &buffers);
        }
        let mut left = out.len();
        for chain in chains {
            let part = left.min(chain.writable_len());
            self.vring.push(chain.head(), part as u32);
            left -= part;
        }
        Put::Done
    }

    /// Takes buffers for `len` bytes; how many, or why there are none.
    #[inline]
    fn collect(&mut self, len: usize) -> Result<usize, Put> {
        let mergeable = self.features & feature::MRG_RXBUF != 0;
        let (mut count, mut room) = (0, 0);
        while room < len {
            if count > 0 && !mergeable {
                return Err(self.give_back(count, Put::Never));
            }
            if count == self.chains.len() {
                self.chains.push(Chain::new());
            }
            let Some(chain) = self.chains.get_mut(count) else { break };
            if !self.vring.next(chain) {
                // With every descriptor of the queue in our hands no more will come.
                let queue = self.vring.queue();
                let never = count > 0 && queue.in_flight() == queue.size();
                return Err(self.give_back(count, if never { Put::Never } else { Put::Later }));
            }
            // Section 5.1.6.3.1: a buffer holds at least the header.
            if chain.writable_len() < HEADER {
                self.vring.push(chain.head(), 0);
                continue;
            }
            room += chain.writable_len();
            count += 1;
        }
        Ok(count)
    }

    #[cold]
    fn give_back(&mut self, count: usize, put: Put) -> Put {
        for chain in self.chains.iter().take(count).rev() {
            self.vring.unpop(chain);
        }
        put
    }
}

#[inline]
fn delivered(len: usize, stats: &PortStats) {
    stats.rx_frames.add(1);
    stats.rx_bytes.add((len - HEADER) as u64);
}

/// Buffers being filled from the front. They have room for all that is written: [`Lane::collect`] saw to it.
struct Sink<'a> {
    chains: &'a [Chain],
    /// Within the first of them.
    at: usize,
}

impl Sink<'_> {
    /// The next stretch of up to `wanted` bytes: its buffer, where in it, how many.
    #[inline]
    fn next(&mut self, wanted: usize) -> Option<(&Chain, usize, usize)> {
        loop {
            let (chain, rest) = self.chains.split_first()?;
            let (at, part) = (self.at, wanted.min(chain.writable_len() - self.at));
            if part > 0 {
                self.at += part;
                return Some((chain, at, part));
            }
            (self.chains, self.at) = (rest, 0);
        }
    }

    #[inline]
    fn own(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some((chain, at, part)) = self.next(bytes.len()) else { return };
            let (now, later) = bytes.split_at(part);
            let _ = chain.copy_in(at, now);
            bytes = later;
        }
    }

    #[inline]
    fn guest(&mut self, source: &Chain, mut from: usize, mut len: usize) {
        while len > 0 {
            let Some((chain, at, part)) = self.next(len) else { return };
            let _ = chain.copy_across(at, source, from, part);
            from += part;
            len -= part;
        }
    }
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod lane_test;
