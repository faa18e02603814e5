#![allow(unsafe_code)] // ring fields are reached through host pointers resolved once
//! The fields of a split ring as its driver reads and writes them. Called by [`super::DriverQueue`] alone.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::memory::{Memory, MemoryError};
use crate::trace::{Access, Field, note};

#[derive(Debug)]
pub(super) struct DriverRing {
    desc: *mut u64,
    avail: *mut u16,
    used: *mut u16,
    size: u16,
}

// SAFETY: addresses of shared memory reached by atomics; the queue beside it holds the memory.
unsafe impl Send for DriverRing {}

impl DriverRing {
    pub(super) fn new(
        memory: &Memory,
        [desc, avail, used]: [u64; 3],
        size: u16,
    ) -> Result<Self, MemoryError> {
        let n = usize::from(size);
        let misaligned = desc % 16 != 0 || avail % 2 != 0 || used % 4 != 0 || !size.is_power_of_two();
        if misaligned {
            return Err(MemoryError::OutOfBounds { gpa: desc, len: n });
        }
        Ok(Self {
            desc: memory.slice(desc, n * 16)?.as_ptr().cast(),
            avail: memory.slice(avail, 6 + n * 2)?.as_ptr().cast(),
            used: memory.slice(used, 6 + n * 8)?.as_ptr().cast(),
            size,
        })
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn avail(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is at most size + 2, inside the part resolved in `new`.
        unsafe { AtomicU16::from_ptr(self.avail.add(at)) }
    }

    fn used_field(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is at most 4 * size + 2, inside the part resolved in `new`.
        unsafe { AtomicU16::from_ptr(self.used.add(at)) }
    }

    pub(super) fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.slot(index) * 2;
        let high = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        // SAFETY: a descriptor inside the table, aligned to 16.
        let words =
            unsafe { [AtomicU64::from_ptr(self.desc.add(at)), AtomicU64::from_ptr(self.desc.add(at + 1))] };
        for (word, value) in words.into_iter().zip([addr, high]) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    pub(super) fn set_avail(&self, index: u16, head: u16) {
        self.avail(2 + self.slot(index)).store(head.to_le(), Ordering::Relaxed);
    }

    pub(super) fn set_avail_idx(&self, index: u16) {
        note(Access::Store(Field::AvailIdx));
        self.avail(1).store(index.to_le(), Ordering::Release);
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        note(Access::Store(Field::CallWish));
        self.avail(0).store(flags.to_le(), Ordering::Relaxed);
    }

    pub(super) fn set_used_event(&self, index: u16) {
        note(Access::Store(Field::CallWish));
        self.avail(2 + usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    pub(super) fn used_flags(&self) -> u16 {
        note(Access::Load(Field::KickWish));
        u16::from_le(self.used_field(0).load(Ordering::Relaxed))
    }

    pub(super) fn used_idx(&self) -> u16 {
        note(Access::Load(Field::UsedIdx));
        u16::from_le(self.used_field(1).load(Ordering::Acquire))
    }

    pub(super) fn avail_event(&self) -> u16 {
        note(Access::Load(Field::KickWish));
        u16::from_le(self.used_field(2 + usize::from(self.size) * 4).load(Ordering::Relaxed))
    }

    pub(super) fn used(&self, index: u16) -> (u32, u32) {
        let at = 2 + self.slot(index) * 4;
        // SAFETY: an element inside the used ring, aligned to 4.
        let [id, len] = unsafe {
            let element = self.used.add(at).cast::<u32>();
            [AtomicU32::from_ptr(element), AtomicU32::from_ptr(element.add(1))]
        };
        (u32::from_le(id.load(Ordering::Relaxed)), u32::from_le(len.load(Ordering::Relaxed)))
    }

    pub(super) fn full_fence() {
        note(Access::Fence);
        fence(Ordering::SeqCst);
    }
}
