//! Guest memory, mapped from the descriptors a frontend hands over.
//!
//! Owns the mappings and every translation from a guest-physical address to a host pointer. The session
//! builds one from SET_MEM_TABLE, the vmm from its own RAM file; queues and devices hold it in an `Arc`, so
//! a mapping lives as long as anything that could touch it.
//!
//! Refuses regions that overlap, wrap, are empty, or reach past the end of their file (touching such a page
//! would be a SIGBUS), and every access that is not wholly inside guest memory. What is read is copied into
//! owned values: the other side may change guest memory at any time.

mod region;
mod slice;
mod vm;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vm_memory::ByteValued;

pub use region::{Region, RegionSpec};
pub use slice::{GuestSlice, IoSlice};

/// The most regions a memory has; offered to frontends as GET_MAX_MEM_SLOTS.
pub const MAX_REGIONS: usize = 64;

/// Why memory could not be built or accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No regions, or more than [`MAX_REGIONS`].
    #[error("{0} memory regions; between 1 and {MAX_REGIONS} are allowed")]
    Count(usize),
    /// A region of no bytes.
    #[error("memory region at {gpa:#x} is empty")]
    Empty {
        /// Guest-physical start.
        gpa: u64,
    },
    /// Address plus size does not fit in 64 bits (guest-physical, frontend address, or file offset).
    #[error("memory region at {gpa:#x} of {size:#x} bytes wraps around the end of its address space")]
    Wraps {
        /// Guest-physical start.
        gpa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Two regions share guest-physical addresses.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Start of the lower region.
        first: u64,
        /// Start of the higher region.
        second: u64,
    },
    /// The file is shorter than the region says.
    #[error("memory region at {gpa:#x} ends at byte {end:#x} of a file of {file_size:#x} bytes")]
    BeyondFile {
        /// Guest-physical start.
        gpa: u64,
        /// Where in the file the region would end.
        end: u64,
        /// How long the file is.
        file_size: u64,
    },
    /// The descriptor is not a file whose size can be known.
    #[error("memory region at {gpa:#x}: the descriptor is not a regular file (memfd, tmpfs, hugetlbfs)")]
    NotAFile {
        /// Guest-physical start.
        gpa: u64,
    },
    /// The system refused to look at or map the file.
    #[error("memory region at {gpa:#x} of {size:#x} bytes cannot be mapped")]
    Map {
        /// Guest-physical start.
        gpa: u64,
        /// Size in bytes.
        size: u64,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// There is no region with that start and size.
    #[error("no memory region at {gpa:#x} of {size:#x} bytes")]
    NoRegion {
        /// Guest-physical start.
        gpa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// An access that is not inside guest memory (or, where one region is asked for, inside one region).
    #[error("{len:#x} bytes at {gpa:#x} are not guest memory")]
    OutOfBounds {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A scatter list would need more entries than allowed.
    #[error("{len:#x} bytes at {gpa:#x} need more than {max} segments")]
    TooManySegments {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// Where a region lies in both address spaces; what every lookup walks.
#[derive(Debug, Clone, Copy)]
struct Span {
    gpa: u64,
    size: u64,
    user_addr: u64,
    host: *mut u8,
}

/// All memory of a guest that one process may touch. Shapes: up to [`MAX_REGIONS`] regions, sorted, disjoint.
#[derive(Debug)]
pub struct Memory {
    spans: Vec<Span>,
    // Keeps the mappings behind `spans` alive.
    regions: Vec<Arc<Region>>,
}

#[allow(unsafe_code)] // raw pointers into mappings that `regions` keeps alive
mod send {
    // SAFETY: the pointers in `spans` lead into shared mappings owned by `regions`; every access through them
    // is a copy that tolerates concurrent change, as guest memory must.
    unsafe impl Send for super::Memory {}
    // SAFETY: as above, no method hands out a Rust reference into a mapping.
    unsafe impl Sync for super::Memory {}
}

impl Memory {
    /// Maps all regions, shared and without reserving swap.
    ///
    /// # Errors
    /// Whatever [`MemoryError`] says a region must not be; nothing stays mapped then.
    pub fn new(specs: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        if specs.is_empty() || specs.len() > MAX_REGIONS {
            return Err(MemoryError::Count(specs.len()));
        }
        let regions =
            specs.into_iter().map(|spec| Region::map(spec).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        Self::from_regions(regions)
    }

    /// The same memory with one region more; the others stay mapped where they are.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn with_region(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::Count(self.regions.len() + 1));
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(spec)?));
        Self::from_regions(regions)
    }

    /// The same memory without the region of exactly this place, or `None` if it was the last one.
    ///
    /// # Errors
    /// There is no such region.
    pub fn without_region(&self, gpa: u64, size: u64, user_addr: u64) -> Result<Option<Self>, MemoryError> {
        let found = self
            .regions
            .iter()
            .position(|r| r.gpa() == gpa && r.size() == size && r.user_addr() == user_addr)
            .ok_or(MemoryError::NoRegion { gpa, size })?;
        let mut regions = self.regions.clone();
        regions.remove(found);
        if regions.is_empty() { Ok(None) } else { Self::from_regions(regions).map(Some) }
    }

    fn from_regions(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|r| r.gpa());
        for (low, high) in regions.iter().zip(regions.iter().skip(1)) {
            if low.gpa() + low.size() > high.gpa() {
                return Err(MemoryError::Overlap { first: low.gpa(), second: high.gpa() });
            }
        }
        let spans = regions
            .iter()
            .map(|r| Span { gpa: r.gpa(), size: r.size(), user_addr: r.user_addr(), host: r.host() })
            .collect();
        Ok(Self { spans, regions })
    }

    /// The host address of `gpa` and how many bytes of its region follow it.
    #[inline]
    fn find(&self, gpa: u64) -> Option<(*mut u8, u64)> {
        // Guests have one to four regions; the scan ends at the first in almost every case.
        for span in &self.spans {
            let offset = gpa.wrapping_sub(span.gpa);
            if offset < span.size {
                return Some((span.host.wrapping_add(offset as usize), span.size - offset));
            }
        }
        None
    }

    /// `len` bytes at `gpa`, inside one region. A slice of no bytes still needs an address inside memory.
    ///
    /// # Errors
    /// Part of it is outside, or it spans two regions.
    #[inline]
    pub fn slice(&self, gpa: u64, len: usize) -> Result<GuestSlice<'_>, MemoryError> {
        match self.find(gpa) {
            Some((ptr, room)) if len as u64 <= room => Ok(GuestSlice::new(ptr, len)),
            _ => Err(MemoryError::OutOfBounds { gpa, len }),
        }
    }

    /// Appends `len` bytes at `gpa` to `out`, split where adjacent regions meet; nothing for a length of 0.
    ///
    /// # Errors
    /// Part of it is outside (`out` then holds a prefix, which the caller discards), or `out` would grow
    /// beyond `max` entries.
    #[inline]
    pub fn segments(
        &self,
        gpa: u64,
        len: usize,
        max: usize,
        out: &mut Vec<IoSlice>,
    ) -> Result<(), MemoryError> {
        let (mut at, mut left) = (gpa, len);
        while left > 0 {
            let (ptr, room) = self.find(at).ok_or(MemoryError::OutOfBounds { gpa, len })?;
            if out.len() >= max {
                return Err(MemoryError::TooManySegments { gpa, len, max });
            }
            let part = left.min(usize::try_from(room).unwrap_or(usize::MAX));
            out.push(IoSlice::new(ptr, part));
            left -= part;
            // No region reaches 2^64, so this stops short of it.
            at = at.wrapping_add(part as u64);
        }
        Ok(())
    }

    /// Copies guest memory out, across adjacent regions if need be.
    ///
    /// # Errors
    /// Part of it is outside; `out` may be partly filled.
    pub fn read_at(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let len = out.len();
        let (mut at, mut rest) = (gpa, out);
        while !rest.is_empty() {
            let (ptr, room) = self.find(at).ok_or(MemoryError::OutOfBounds { gpa, len })?;
            let part = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at_mut(part);
            GuestSlice::new(ptr, part).read(0, now);
            rest = later;
            at = at.wrapping_add(part as u64);
        }
        Ok(())
    }

    /// Copies into guest memory, across adjacent regions if need be.
    ///
    /// # Errors
    /// Part of it is outside; a prefix may have been written.
    pub fn write_at(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let len = data.len();
        let (mut at, mut rest) = (gpa, data);
        while !rest.is_empty() {
            let (ptr, room) = self.find(at).ok_or(MemoryError::OutOfBounds { gpa, len })?;
            let part = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(part);
            GuestSlice::new(ptr, part).write(0, now);
            rest = later;
            at = at.wrapping_add(part as u64);
        }
        Ok(())
    }

    /// Reads one plain value, once.
    ///
    /// # Errors
    /// Part of it is outside.
    pub fn read_obj<T: ByteValued + Default>(&self, gpa: u64) -> Result<T, MemoryError> {
        let mut value = T::default();
        self.read_at(gpa, value.as_mut_slice())?;
        Ok(value)
    }

    /// Writes one plain value.
    ///
    /// # Errors
    /// Part of it is outside.
    pub fn write_obj<T: ByteValued>(&self, gpa: u64, value: T) -> Result<(), MemoryError> {
        self.write_at(gpa, value.as_slice())
    }

    /// Translates an address of the frontend's address space, in which vhost-user speaks of rings.
    #[must_use]
    pub fn user_to_gpa(&self, user: u64) -> Option<u64> {
        self.spans.iter().find_map(|span| {
            let offset = user.wrapping_sub(span.user_addr);
            (offset < span.size).then(|| span.gpa + offset)
        })
    }

    /// The regions, by ascending guest-physical address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &Arc<Region>> {
        self.regions.iter()
    }

    /// One region at guest-physical 0 from a new memfd of `size` bytes, its frontend address equal to its
    /// guest-physical one; for tests, benches and tools.
    ///
    /// # Errors
    /// The system has no memory to give.
    pub fn anonymous(size: u64) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Map { gpa: 0, size, source };
        let fd: OwnedFd =
            nix::sys::memfd::memfd_create(c"strata-memory", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
                .map_err(|e| failed(e.into()))?;
        let length = libc::off_t::try_from(size).map_err(|_| MemoryError::Wraps { gpa: 0, size })?;
        nix::unistd::ftruncate(&fd, length).map_err(|e| failed(e.into()))?;
        Self::new(vec![RegionSpec { gpa: 0, size, user_addr: 0, fd, fd_offset: 0 }])
    }

    /// The descriptor behind the first region; with [`Memory::anonymous`], behind all memory.
    #[must_use]
    pub fn first_fd(&self) -> Option<BorrowedFd<'_>> {
        self.regions.first().map(|r| r.fd().as_fd())
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod memory_test;
