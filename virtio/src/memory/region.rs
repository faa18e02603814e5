#![allow(unsafe_code)] // mmap and munmap of descriptors handed over by a peer
//! One region: a stretch of a file, mapped. Called by [`super::Memory`] only.
//!
//! Refuses whatever is not a regular file long enough, since a page past the end is a SIGBUS at first touch.
//! A peer that truncates the file later hurts the process that serves it and no other.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use super::MemoryError;

/// What a frontend says about one region (vhost-user "Memory region description"). Addresses and sizes in bytes.
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest-physical start.
    pub gpa: u64,
    /// Length.
    pub size: u64,
    /// Where the frontend itself has it mapped; ring addresses are given in that space.
    pub user_addr: u64,
    /// The memory.
    pub fd: OwnedFd,
    /// Where in the file the region begins.
    pub fd_offset: u64,
}

/// A mapped region.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    host: *mut u8,
    map: *mut libc::c_void,
    map_len: usize,
}

// SAFETY: the pointers lead into a shared mapping that this value owns until it is dropped.
unsafe impl Send for Region {}
// SAFETY: as above; no method gives out a Rust reference into the mapping.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn map(spec: RegionSpec) -> Result<Self, MemoryError> {
        let RegionSpec { gpa, size, user_addr, fd_offset, .. } = spec;
        if size == 0 {
            return Err(MemoryError::Empty { gpa });
        }
        let wraps = MemoryError::Wraps { gpa, size };
        let end = match fd_offset.checked_add(size) {
            Some(end) if gpa.checked_add(size).is_some() && user_addr.checked_add(size).is_some() => end,
            _ => return Err(wraps),
        };
        let failed = |e: nix::Error| MemoryError::Map { gpa, size, source: e.into() };
        let stat = nix::sys::stat::fstat(&spec.fd).map_err(failed)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(MemoryError::NotAFile { gpa });
        }
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        if end > file_size {
            return Err(MemoryError::BeyondFile { gpa, end, file_size });
        }
        // mmap and munmap want multiples of the page behind the file; hugetlbfs pages are large.
        let page = page_size(&spec.fd).map_err(failed)?;
        let start = fd_offset - fd_offset % page;
        let lead = (fd_offset - start) as usize;
        let map_len = end
            .checked_next_multiple_of(page)
            .and_then(|end| usize::try_from(end - start).ok())
            .filter(|len| isize::try_from(*len).is_ok())
            .ok_or(wraps)?;
        let offset = libc::off_t::try_from(start).map_err(|_| MemoryError::Wraps { gpa, size })?;
        // The kernel places mappings of huge-page files so that huge pages fit, so no address is asked for.
        // SAFETY: a new mapping at an address of the kernel's choice; it touches nothing that exists.
        let map = unsafe {
            libc::mmap(
                ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                spec.fd.as_raw_fd(),
                offset,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(MemoryError::Map { gpa, size, source: std::io::Error::last_os_error() });
        }
        // A core dump of a backend must not hold a guest's memory; a refusal changes nothing else.
        // SAFETY: advice about the mapping made above.
        unsafe { libc::madvise(map, map_len, libc::MADV_DONTDUMP) };
        // Where the system gives shared memory huge pages on request only, this is the request; elsewhere it is refused or changes nothing.
        // SAFETY: as above.
        unsafe { libc::madvise(map, map_len, libc::MADV_HUGEPAGE) };
        Ok(Self { spec, host: map.cast::<u8>().wrapping_add(lead), map, map_len })
    }

    /// Guest-physical start.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.spec.gpa
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.spec.size
    }

    /// The frontend's address of the start.
    #[must_use]
    pub fn user_addr(&self) -> u64 {
        self.spec.user_addr
    }

    /// This process's address of the start; valid as long as the region is.
    #[must_use]
    pub fn host(&self) -> *mut u8 {
        self.host
    }

    /// The file behind it.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.spec.fd
    }

    /// Where in the file it begins.
    #[must_use]
    pub fn fd_offset(&self) -> u64 {
        self.spec.fd_offset
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`, which nothing can reach once its owner is dropped.
        unsafe { libc::munmap(self.map, self.map_len) };
    }
}

/// The size of the pages a file is mapped in.
fn page_size(fd: &OwnedFd) -> nix::Result<u64> {
    const SMALL: u64 = 4096;
    let fs = nix::sys::statfs::fstatfs(fd)?;
    if fs.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC {
        return Ok(u64::try_from(fs.optimal_transfer_size()).unwrap_or(SMALL).max(SMALL));
    }
    Ok(SMALL)
}
