#![allow(unsafe_code)] // a shared mapping that the guest reads while we write
//! The pages a guest reads without an exit: configuration space and the functions' registers.
//!
//! KVM maps the whole of it read-only for the guest, so reads cost nothing and only writes come to us; the
//! functions keep it equal to their state. 2 MiB, and 2 MiB-aligned in this process, so that one large page can
//! back it: then a guest's scan of the bus costs one page fault in all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes of a shadow.
pub const SHADOW_SIZE: usize = 2 << 20;
/// Its last page, where no function's registers are: for another device whose registers are only read.
pub const SPARE_PAGE: usize = SHADOW_SIZE - 0x1000;

/// The mapping. Writers hold the lock of the function whose part they write.
#[derive(Debug)]
pub struct Shadow {
    base: NonNull<u8>,
}

// SAFETY: the mapping lives as long as the value, and is only touched through atomics.
unsafe impl Send for Shadow {}
// SAFETY: as above; concurrent stores are atomic bytes and words.
unsafe impl Sync for Shadow {}

impl Shadow {
    /// Maps `file`, which is made [`SHADOW_SIZE`] bytes long. A file on a huge-page tmpfs gives a large page.
    ///
    /// # Errors
    /// The system's answer.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        nix::unistd::ftruncate(&file, SHADOW_SIZE as i64)?;
        // Reserve twice the size, then map the file at the 2 MiB line within.
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let room = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * SHADOW_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = room.align_offset(SHADOW_SIZE);
        let start = room.wrapping_byte_add(before);
        // SAFETY: both ranges are the unused ends of the reservation just made.
        unsafe {
            if before > 0 {
                libc::munmap(room, before);
            }
            if before < SHADOW_SIZE {
                libc::munmap(start.wrapping_byte_add(SHADOW_SIZE), SHADOW_SIZE - before);
            }
        }
        // SAFETY: replaces the middle of the reservation, which nothing else uses.
        let mapped = unsafe {
            libc::mmap(
                start,
                SHADOW_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()),
                0,
            )
        };
        match NonNull::new(mapped.cast::<u8>()) {
            Some(base) if mapped != libc::MAP_FAILED => {
                let shadow = Self { base };
                shadow.fill(0, SHADOW_SIZE, 0xff);
                Ok(shadow)
            }
            _ => {
                let error = io::Error::last_os_error();
                // SAFETY: the reservation is ours and unused.
                unsafe { libc::munmap(start, SHADOW_SIZE) };
                Err(error)
            }
        }
    }

    /// A shadow on a memfd of its own, where there is no better file.
    ///
    /// # Errors
    /// The system's answer.
    pub fn anonymous() -> io::Result<Self> {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        Self::new(nix::sys::memfd::memfd_create(c"strata-pci", flags)?)
    }

    /// Where it is in this process: the memory slot's user-space address.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Copies `data` to `offset`; what would pass the end is dropped. Aligned 8-byte words change at once.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        let data = data.get(..SHADOW_SIZE.saturating_sub(offset).min(data.len())).unwrap_or_default();
        let mut at = offset;
        let head = data.len().min(at.next_multiple_of(8) - at);
        let (head, rest) = data.split_at(head);
        for byte in head {
            self.store(at, *byte);
            at += 1;
        }
        let mut words = rest.chunks_exact(8);
        for word in words.by_ref() {
            let value = word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
            // SAFETY: at + 8 <= SHADOW_SIZE by the cut above, and at is a multiple of 8 in a page-aligned mapping.
            unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
                .store(value.to_le(), Ordering::Release);
            at += 8;
        }
        for byte in words.remainder() {
            self.store(at, *byte);
            at += 1;
        }
    }

    /// Fills `len` bytes from `offset`.
    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) {
        let end = offset.saturating_add(len).min(SHADOW_SIZE);
        if offset < end {
            // SAFETY: inside the mapping; the guest may read meanwhile, which is no access of this program.
            unsafe { self.base.as_ptr().add(offset).write_bytes(value, end - offset) };
        }
    }

    /// Copies out from `offset`; past the end reads as all ones.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        for (at, byte) in (offset..).zip(out) {
            *byte = if at < SHADOW_SIZE {
                // SAFETY: inside the mapping.
                unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }.load(Ordering::Acquire)
            } else {
                0xff
            };
        }
    }

    fn store(&self, at: usize, value: u8) {
        if at < SHADOW_SIZE {
            // SAFETY: inside the mapping.
            unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }.store(value, Ordering::Release);
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; the machine removes KVM's slot before it drops us.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SHADOW_SIZE) };
    }
}
