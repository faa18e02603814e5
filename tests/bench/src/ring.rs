#![allow(unsafe_code)] // a driver's side of a ring in memory shared with the backend
//! The driver's side of one split ring for block requests, made for speed: descriptors are laid out once, three
//! per slot (header, data, status), and only what changes is written again.
//!
//! It shares no code with the backends' ring, so that a mistake in one is not repeated in the other.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Bytes of data per slot.
pub(crate) const BLOCK: usize = 4096;
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// Where the parts of a ring lie, as offsets into the shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) desc: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    /// Headers, 16 bytes each.
    headers: usize,
    /// Status bytes, 64 apart so that slots do not share a cache line.
    statuses: usize,
    pub(crate) data: usize,
    /// One past the last byte.
    pub(crate) end: usize,
}

impl Layout {
    /// A ring of `size` descriptors with `slots` requests at `base`.
    pub(crate) fn new(base: usize, size: usize, slots: usize) -> Self {
        let page = |at: usize| at.next_multiple_of(4096);
        let desc = page(base);
        let avail = page(desc + 16 * size);
        let used = page(avail + 6 + 2 * size);
        let headers = page(used + 6 + 8 * size);
        let statuses = page(headers + 64 * slots);
        let data = page(statuses + 64 * slots);
        Self { desc, avail, used, headers, statuses, data, end: data + BLOCK * slots }
    }
}

/// Whether the driver sleeps for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notify {
    /// It spins; no calls are wanted.
    Poll,
    /// It sleeps on the call descriptor when there is nothing left to do.
    Event,
}

/// The ring.
pub(crate) struct Ring {
    memory: *mut u8,
    layout: Layout,
    size: u16,
    avail: u16,
    published: u16,
    seen: u16,
}

impl Ring {
    /// `memory` is mapped, shared and zeroed from `layout.desc` to `layout.end`, for as long as the ring lives.
    pub(crate) fn new(memory: *mut u8, layout: Layout, size: u16, slots: u16) -> Self {
        let ring = Self { memory, layout, size, avail: 0, published: 0, seen: 0 };
        for slot in 0..slots {
            let index = usize::from(slot);
            let head = slot * 3;
            ring.desc(head, layout.headers + 64 * index, 16, DESC_NEXT, head + 1);
            ring.desc(head + 2, layout.statuses + 64 * index, 1, DESC_WRITE, 0);
        }
        ring
    }

    fn at<T>(&self, offset: usize) -> &T {
        // SAFETY: all offsets come from the layout and lie inside the mapping; T is an atomic, and each place is
        // aligned for it.
        unsafe { &*self.memory.add(offset).cast::<T>() }
    }

    fn desc(&self, index: u16, addr: usize, len: u32, flags: u16, next: u16) {
        let at = self.layout.desc + 16 * usize::from(index);
        self.at::<AtomicU64>(at).store(addr as u64, Ordering::Relaxed);
        self.at::<AtomicU32>(at + 8).store(len, Ordering::Relaxed);
        self.at::<AtomicU32>(at + 12).store(u32::from(flags) | u32::from(next) << 16, Ordering::Relaxed);
    }

    /// Posts a request of one block; seen by the backend at the next [`Ring::publish`].
    pub(crate) fn post(&mut self, slot: u16, write: bool, sector: u64) {
        let index = usize::from(slot);
        let head = slot * 3;
        let flags = if write { DESC_NEXT } else { DESC_NEXT | DESC_WRITE };
        self.desc(head + 1, self.layout.data + BLOCK * index, BLOCK as u32, flags, head + 2);
        let header = self.layout.headers + 64 * index;
        self.at::<AtomicU64>(header).store(u64::from(write), Ordering::Relaxed);
        self.at::<AtomicU64>(header + 8).store(sector, Ordering::Relaxed);
        self.at::<AtomicU32>(self.layout.statuses + 64 * index).store(0xff, Ordering::Relaxed);
        let place = self.layout.avail + 4 + 2 * usize::from(self.avail % self.size);
        self.at::<AtomicU16>(place).store(head, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows what has been posted; whether the backend wants a kick.
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.avail);
        if old == new {
            return false;
        }
        self.at::<AtomicU16>(self.layout.avail + 2).store(new, Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        let event = self.at::<AtomicU16>(self.layout.used + 4 + 8 * usize::from(self.size));
        let event = event.load(Ordering::Relaxed);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes one completion: the slot and its status.
    pub(crate) fn completed(&mut self) -> Option<(u16, u8)> {
        if self.at::<AtomicU16>(self.layout.used + 2).load(Ordering::Acquire) == self.seen {
            return None;
        }
        let place = self.layout.used + 4 + 8 * usize::from(self.seen % self.size);
        let slot = (self.at::<AtomicU32>(place).load(Ordering::Relaxed) / 3) as u16;
        self.seen = self.seen.wrapping_add(1);
        let status = self.at::<AtomicU32>(self.layout.statuses + 64 * usize::from(slot));
        Some((slot, status.load(Ordering::Relaxed) as u8))
    }

    /// Asks for a call at the next completion; whether there is one already.
    pub(crate) fn arm(&mut self) -> bool {
        self.at::<AtomicU16>(self.layout.avail + 4 + 2 * usize::from(self.size))
            .store(self.seen, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.at::<AtomicU16>(self.layout.used + 2).load(Ordering::Acquire) != self.seen
    }
}
