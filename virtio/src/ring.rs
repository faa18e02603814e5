#![allow(unsafe_code)] // ring fields are reached through host pointers resolved once
//! The three parts of a split ring (virtio 1.2 section 2.7) as host pointers, checked once, when a queue is
//! started. Called by [`crate::queue`] alone.
//!
//! Refuses a size that is no power of two, parts that are misaligned, and parts not inside one memory region.
//! Every access is a single load or store of a field; nothing read here is trusted beyond its type.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::device::QueueSetup;
use crate::memory::{GuestSlice, Memory};
use crate::queue::RingError;
use crate::spec::{DESC_SIZE, F_EVENT_IDX, MAX_QUEUE_SIZE};
use crate::trace::{Access, Field, note};

/// A descriptor (section 2.7.5), copied out of guest memory once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    #[inline]
    fn from_words(low: u64, high: u64) -> Self {
        Self { addr: low, len: high as u32, flags: (high >> 32) as u16, next: (high >> 48) as u16 }
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self::from_words(all as u64, (all >> 64) as u64)
    }
}

/// Reads descriptor `index` of a table at an 8-byte aligned `table`.
///
/// # Safety
/// The table has more than `index` descriptors, all inside a live mapping.
#[inline]
unsafe fn read_desc(table: *const u64, index: usize) -> Desc {
    // Volatile: the driver may change it at any time, and what is checked must be what is used.
    // SAFETY: as promised by the caller; 8-byte aligned because the table is.
    let (low, high) = unsafe {
        let at = table.add(index * 2);
        (at.read_volatile(), at.add(1).read_volatile())
    };
    Desc::from_words(u64::from_le(low), u64::from_le(high))
}

/// Descriptor `index` of an indirect table, or `None` if it is outside or not aligned for two 8-byte loads.
#[inline]
pub(crate) fn read_desc_at(table: GuestSlice<'_>, index: u16) -> Option<Desc> {
    let ptr = table.as_ptr().cast::<u64>();
    let inside = (usize::from(index) + 1) * DESC_SIZE as usize <= table.len();
    // SAFETY: inside the slice, whose memory is mapped, and aligned.
    (inside && ptr.is_aligned()).then(|| unsafe { read_desc(ptr, usize::from(index)) })
}

/// Host pointers to one ring. Whoever holds it holds the `Arc<Memory>` the pointers lead into.
#[derive(Debug)]
pub(crate) struct Ring {
    desc: *const u64,
    avail: *mut u16,
    used: *mut u16,
    size: u16,
    event_idx: bool,
}

// SAFETY: addresses of shared guest memory, reached by atomic or volatile accesses only.
unsafe impl Send for Ring {}

impl Ring {
    pub(crate) fn new(setup: &QueueSetup) -> Result<Self, RingError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size { size });
        }
        let event_idx = setup.features & F_EVENT_IDX != 0;
        let n = usize::from(size);
        // The event fields behind the arrays exist only where EVENT_IDX is negotiated.
        let event = if event_idx { 2 } else { 0 };
        let memory = &setup.memory;
        let desc = resolve(memory, "descriptor table", setup.desc, n * DESC_SIZE as usize, 16)?;
        let avail = resolve(memory, "avail ring", setup.avail, 4 + n * 2 + event, 2)?;
        let used = resolve(memory, "used ring", setup.used, 4 + n * 8 + event, 4)?;
        Ok(Self { desc: desc.cast(), avail: avail.cast(), used: used.cast(), size, event_idx })
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(crate) fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Where free-running index `index` lies in an array of the ring.
    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn avail_field(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is at most size + 2, inside the part checked in `new`; aligned to 2; atomics bear sharing.
        unsafe { AtomicU16::from_ptr(self.avail.add(at)) }
    }

    #[inline]
    fn used_field(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is at most 4 * size + 2, inside the part checked in `new`; aligned to 2.
        unsafe { AtomicU16::from_ptr(self.used.add(at)) }
    }

    /// Descriptor `index`, or `None` if the table has no such one.
    #[inline]
    pub(crate) fn desc(&self, index: u16) -> Option<Desc> {
        // SAFETY: the index is inside the table checked in `new`, which is aligned to 16.
        (index < self.size).then(|| unsafe { read_desc(self.desc, usize::from(index)) })
    }

    /// The driver's index; what it made available before is visible after.
    #[inline]
    pub(crate) fn avail_idx(&self) -> u16 {
        note(Access::Load(Field::AvailIdx));
        u16::from_le(self.avail_field(1).load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail_field(2 + self.slot(index)).load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn avail_flags(&self) -> u16 {
        note(Access::Load(Field::CallWish));
        u16::from_le(self.avail_field(0).load(Ordering::Relaxed))
    }

    /// The used index the driver wants a call for; `None` without EVENT_IDX, where there is no such field.
    #[inline]
    pub(crate) fn used_event(&self) -> Option<u16> {
        note(Access::Load(Field::CallWish));
        let field = || self.avail_field(2 + usize::from(self.size)).load(Ordering::Relaxed);
        self.event_idx.then(|| u16::from_le(field()))
    }

    #[inline]
    pub(crate) fn set_used(&self, index: u16, head: u16, len: u32) {
        note(Access::Store(Field::Used));
        let at = 2 + self.slot(index) * 4;
        // SAFETY: element `slot` of the used ring, inside the part checked in `new`; aligned to 4.
        let (id, length) = unsafe {
            let element = self.used.add(at).cast::<u32>();
            (AtomicU32::from_ptr(element), AtomicU32::from_ptr(element.add(1)))
        };
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        length.store(len.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn used_idx(&self) -> u16 {
        u16::from_le(self.used_field(1).load(Ordering::Acquire))
    }

    /// Makes the used elements before `index` visible.
    #[inline]
    pub(crate) fn set_used_idx(&self, index: u16) {
        note(Access::Store(Field::UsedIdx));
        self.used_field(1).store(index.to_le(), Ordering::Release);
    }

    #[inline]
    pub(crate) fn set_used_flags(&self, flags: u16) {
        note(Access::Store(Field::KickWish));
        self.used_field(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// The avail index the device wants a kick for; nothing without EVENT_IDX, where there is no such field.
    #[inline]
    pub(crate) fn set_avail_event(&self, index: u16) {
        if self.event_idx {
            note(Access::Store(Field::KickWish));
            self.used_field(2 + usize::from(self.size) * 4).store(index.to_le(), Ordering::Relaxed);
        }
    }

    /// Stores before it are visible to the driver before loads after it are made (store-load order, which
    /// neither acquire nor release gives).
    #[inline]
    pub(crate) fn full_fence() {
        note(Access::Fence);
        fence(Ordering::SeqCst);
    }
}

fn resolve(
    memory: &Memory,
    part: &'static str,
    gpa: u64,
    len: usize,
    align: usize,
) -> Result<*mut u8, RingError> {
    let slice = memory.slice(gpa, len).map_err(|source| RingError::Outside { part, source })?;
    let ptr = slice.as_ptr();
    // The pointer, not the address, decides: a hostile region may shift one against the other.
    if !gpa.is_multiple_of(align as u64) || !(ptr as usize).is_multiple_of(align) {
        return Err(RingError::Misaligned { part, gpa, align });
    }
    Ok(ptr)
}
