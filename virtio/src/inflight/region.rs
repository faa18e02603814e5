#![allow(unsafe_code)] // a shared mapping, reached through atomics
//! Layout and mapping of the inflight region; the steps are those of the vhost-user specification, "Inflight
//! I/O tracking", split virtqueue. Sizes in bytes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Created, InflightError};
use crate::spec::MAX_QUEUE_SIZE;
use crate::trace::{Access, Field, note};

// QueueRegionSplit: features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, desc[].
const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_IDX_AT: usize = 14;
const HEADER: usize = 16;
// DescStateSplit: inflight u8, padding [u8; 5], next u16, counter u64.
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const STATE: usize = 16;
/// Queue regions begin at multiples of this.
const ALIGN: usize = 64;
const VERSION: u16 = 1;
const MAX_QUEUES: u16 = 256;

fn queue_bytes(size: u16) -> usize {
    (HEADER + STATE * usize::from(size)).next_multiple_of(ALIGN)
}

#[derive(Debug)]
struct Mapping {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: an address range owned until drop, reached by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `Inflight::map`; nothing reaches it any more.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// A mapped inflight region: one part per queue.
#[derive(Debug, Clone)]
pub struct Inflight {
    mapping: Arc<Mapping>,
    queues: u16,
    size: u16,
}

impl Inflight {
    /// A new, zeroed region for `queues` queues of `size` descriptors, in a memfd that cannot be resized.
    ///
    /// # Errors
    /// The shape is not allowed or the system refuses.
    pub fn create(queues: u16, size: u16) -> Result<Created, InflightError> {
        check_shape(queues, size)?;
        let len = usize::from(queues) * queue_bytes(size);
        let system = |what| move |e: nix::Error| InflightError::System { what, source: e.into() };
        let fd: OwnedFd =
            memfd_create(c"strata-inflight", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .map_err(system("created"))?;
        nix::unistd::ftruncate(&fd, len as libc::off_t).map_err(system("sized"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("sealed"))?;
        let inflight = Self::map(std::os::fd::AsFd::as_fd(&fd), len as u64, 0, queues, size)?;
        Ok(Created { inflight, fd })
    }

    /// Maps a region that a frontend kept.
    ///
    /// # Errors
    /// The shape is not allowed, the file too short for it, or the system refuses.
    pub fn map(
        fd: BorrowedFd<'_>,
        len: u64,
        offset: u64,
        queues: u16,
        size: u16,
    ) -> Result<Self, InflightError> {
        check_shape(queues, size)?;
        let need = usize::from(queues) * queue_bytes(size);
        if len < need as u64 {
            return Err(InflightError::TooSmall { have: len, need: need as u64 });
        }
        if !offset.is_multiple_of(4096) {
            return Err(InflightError::Misaligned { offset });
        }
        let stat = nix::sys::stat::fstat(fd)
            .map_err(|e| InflightError::System { what: "looked at", source: e.into() })?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(InflightError::NotAFile);
        }
        let have = u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(offset);
        if have < need as u64 {
            return Err(InflightError::TooSmall { have, need: need as u64 });
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let ptr = unsafe {
            libc::mmap(
                ptr::null_mut(),
                need,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if ptr == libc::MAP_FAILED {
            let source = std::io::Error::last_os_error();
            return Err(InflightError::System { what: "mapped", source });
        }
        let mapping = Arc::new(Mapping { ptr: ptr.cast(), len: need });
        Ok(Self { mapping, queues, size })
    }

    /// Length of the region in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Never true: a region has at least one queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// The part of queue `index`, if the region has one.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<QueueRegion> {
        (index < self.queues).then(|| QueueRegion {
            mapping: Arc::clone(&self.mapping),
            offset: usize::from(index) * queue_bytes(self.size),
            size: self.size,
        })
    }
}

fn check_shape(queues: u16, size: u16) -> Result<(), InflightError> {
    if queues == 0 || queues > MAX_QUEUES || size == 0 || size > MAX_QUEUE_SIZE {
        return Err(InflightError::Shape { queues, size, max_queues: MAX_QUEUES, max_size: MAX_QUEUE_SIZE });
    }
    Ok(())
}

/// One queue's part of the inflight region.
#[derive(Debug, Clone)]
pub struct QueueRegion {
    mapping: Arc<Mapping>,
    offset: usize,
    size: u16,
}

impl QueueRegion {
    #[inline]
    fn field_u16(&self, at: usize) -> &AtomicU16 {
        // SAFETY: header and states of `size` descriptors lie inside the mapping; offsets are multiples of 2.
        unsafe { AtomicU16::from_ptr(self.mapping.ptr.add(self.offset + at).cast()) }
    }

    #[inline]
    fn state(&self, head: u16) -> usize {
        // Heads beyond the region cannot come here (the tracker checks the size); stay inside all the same.
        HEADER + STATE * usize::from(head.min(self.size - 1))
    }

    #[inline]
    fn inflight(&self, head: u16) -> &AtomicU8 {
        // SAFETY: inside the mapping, see `state`.
        unsafe { AtomicU8::from_ptr(self.mapping.ptr.add(self.offset + self.state(head))) }
    }

    #[inline]
    fn next(&self, head: u16) -> &AtomicU16 {
        self.field_u16(self.state(head) + NEXT_AT)
    }

    #[inline]
    fn counter(&self, head: u16) -> &AtomicU64 {
        // SAFETY: inside the mapping, see `state`; a multiple of 8 from a page.
        unsafe {
            AtomicU64::from_ptr(self.mapping.ptr.add(self.offset + self.state(head) + COUNTER_AT).cast())
        }
    }

    #[inline]
    fn put_u16(&self, at: usize, value: u16) {
        note(Access::Store(Field::Inflight));
        self.field_u16(at).store(value, Ordering::Release);
    }

    #[inline]
    fn put_inflight(&self, head: u16, value: u8) {
        note(Access::Store(Field::Inflight));
        self.inflight(head).store(value, Ordering::Release);
    }

    /// Whether request `head` is marked; for tests and diagnosis.
    #[must_use]
    pub fn is_marked(&self, head: u16) -> bool {
        head < self.size && self.inflight(head).load(Ordering::Acquire) != 0
    }
}

/// What a queue does to its region, in the order that survives a crash between any two stores. (After a
/// crash every store the processor made is visible; only their order counts, so release stores suffice.)
#[derive(Debug)]
pub(crate) struct Tracker {
    region: QueueRegion,
    counter: u64,
    // Heads pushed and not yet published.
    batch: Vec<u16>,
}

impl Tracker {
    /// Takes over a region for a queue of `size` whose used index is `used_idx`. Gives the requests that were
    /// in flight, oldest first.
    pub(crate) fn attach(
        region: QueueRegion,
        size: u16,
        used_idx: u16,
    ) -> Result<(Self, Vec<u16>), InflightError> {
        if size > region.size {
            return Err(InflightError::QueueSize { have: region.size, need: size });
        }
        match region.field_u16(VERSION_AT).load(Ordering::Acquire) {
            0 => {
                region.put_u16(DESC_NUM_AT, size);
                region.put_u16(USED_IDX_AT, used_idx);
                region.put_u16(VERSION_AT, VERSION);
            }
            VERSION => region.clear_last_batch(size, used_idx),
            other => return Err(InflightError::Version(other)),
        }
        let mut found: Vec<(u64, u16)> = (0..size)
            .filter(|&head| region.is_marked(head))
            .map(|head| (region.counter(head).load(Ordering::Acquire), head))
            .collect();
        found.sort_unstable();
        let counter = found.last().map_or(0, |(last, _)| last.wrapping_add(1));
        let pending = found.into_iter().map(|(_, head)| head).collect();
        Ok((Self { region, counter, batch: Vec::with_capacity(usize::from(size)) }, pending))
    }

    /// Marks a request, before anything is done about it.
    #[inline]
    pub(crate) fn mark(&mut self, head: u16) {
        note(Access::Store(Field::Inflight));
        self.region.counter(head).store(self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.region.put_inflight(head, 1);
    }

    /// A marked request goes back to the driver's side untouched.
    #[inline]
    pub(crate) fn unmark(&mut self, head: u16) {
        self.region.put_inflight(head, 0);
    }

    /// Links an answered request into the batch the next `publish` will show.
    #[inline]
    pub(crate) fn answer(&mut self, head: u16) {
        let last = self.region.field_u16(LAST_BATCH_AT).load(Ordering::Relaxed);
        self.region.put_u16(self.region.state(head) + NEXT_AT, last);
        self.region.put_u16(LAST_BATCH_AT, head);
        self.batch.push(head);
    }

    /// After the used index has been stored: clears the batch.
    #[inline]
    pub(crate) fn published(&mut self, used_idx: u16) {
        for head in self.batch.drain(..) {
            self.region.put_inflight(head, 0);
        }
        self.region.put_u16(USED_IDX_AT, used_idx);
    }
}

impl QueueRegion {
    /// The crash may have come after the used index was stored and before its batch was cleared: those
    /// requests are answered.
    fn clear_last_batch(&self, size: u16, used_idx: u16) {
        let recorded = self.field_u16(USED_IDX_AT).load(Ordering::Acquire);
        let batch = used_idx.wrapping_sub(recorded);
        // A longer batch than the queue cannot be ours: the ring has been set up anew since.
        if batch <= size {
            let mut head = self.field_u16(LAST_BATCH_AT).load(Ordering::Acquire);
            for _ in 0..batch {
                if head >= size {
                    break;
                }
                self.put_inflight(head, 0);
                head = self.next(head).load(Ordering::Acquire);
            }
        }
        self.put_u16(USED_IDX_AT, used_idx);
    }
}
