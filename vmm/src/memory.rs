#![allow(unsafe_code)] // advice about a mapping
//! The guest's RAM: one shared file, what it is made of, and where it is mapped.
//!
//! A shared file, because every backend maps the same memory. Huge pages, because a nested page fault is the
//! dearest thing a guest can have: 4 KiB pages cost 30,000 of them per boot where 2 MiB pages cost some dozens.
//! Shared memory has none by default, so the choice is, best first:
//!
//! ```text
//!   hugetlbfs, if the machine file names a mount    all of it is taken now, or the machine does not start
//!   a private tmpfs with huge=always                works where shmem_enabled is `never`
//!   a memfd                                         small pages, unless shmem_enabled is `advise` or better
//! ```
//!
//! Made once, kept across reboots. Called by the machine, between isolation and lock of its sandbox.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use strata_virtio::memory::{Memory, MemoryError, RegionSpec};

use crate::x86::layout;

const LARGE_PAGE: u64 = 2 << 20;
/// What backends are told as our address of guest-physical 0: not where it is mapped, which is none of theirs, and
/// not 0, which some take for "none".
const USER_BASE: u64 = 1 << 46;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The mount in the machine file is none.
    #[error("hugetlbfs = \"{}\" is not a hugetlbfs mount", .0.display())]
    NotHugetlbfs(PathBuf),
    /// The mount cannot be used.
    #[error("cannot make a file in hugetlbfs = \"{}\"", path.display())]
    Open {
        /// The mount.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The size is not a multiple of the mount's pages.
    #[error("memory of {size:#x} bytes is not a multiple of the {page:#x}-byte pages of its hugetlbfs")]
    PageSize {
        /// Bytes of memory.
        size: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// Fewer huge pages are free than needed.
    #[error(
        "hugetlbfs has no {} MiB of free huge pages; raise /proc/sys/vm/nr_hugepages or take the memory from elsewhere",
        .size >> 20
    )]
    NoHugePages {
        /// Bytes of memory.
        size: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The memory is not there.
    #[error("cannot allocate {} MiB of guest memory", .size >> 20)]
    Allocate {
        /// Bytes of memory.
        size: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The memory cannot be mapped.
    #[error("cannot map guest memory")]
    Map(#[from] MemoryError),
}

/// What the RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A hugetlbfs with pages of this many bytes.
    Hugetlbfs(u64),
    /// A private tmpfs with huge pages.
    HugeTmpfs,
    /// A memfd: whatever pages the host gives shared memory.
    Memfd,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hugetlbfs(page) => write!(f, "hugetlbfs, {} MiB pages", page >> 20),
            Self::HugeTmpfs => f.write_str("private tmpfs, huge pages"),
            Self::Memfd => f.write_str("memfd, small pages"),
        }
    }
}

/// A file on the hugetlbfs the machine file names, opened by path before the sandbox.
#[derive(Debug)]
pub struct HugePages {
    file: OwnedFd,
    page: u64,
}

impl HugePages {
    /// An unnamed file there.
    ///
    /// # Errors
    /// It is not a hugetlbfs, or not ours to use.
    pub fn open(path: &Path) -> Result<Self, RamError> {
        let failed = |source| RamError::Open { path: path.to_owned(), source };
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
            .open(path)
            .map_err(failed)?;
        let fs = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        if fs.filesystem_type() != HUGETLBFS_MAGIC {
            return Err(RamError::NotHugetlbfs(path.to_owned()));
        }
        let page = u64::try_from(fs.optimal_transfer_size()).unwrap_or(LARGE_PAGE);
        Ok(Self { file: file.into(), page })
    }

    fn reserve(self, size: u64) -> Result<(OwnedFd, Backing), RamError> {
        if !size.is_multiple_of(self.page) {
            return Err(RamError::PageSize { size, page: self.page });
        }
        // A huge page that is missing at the first touch is a SIGBUS, in whichever process touches it: take all now.
        allocate(&self.file, size).map_err(|source| RamError::NoHugePages { size, source })?;
        Ok((self.file, Backing::Hugetlbfs(self.page)))
    }
}

/// The guest's RAM.
#[derive(Debug)]
pub struct Ram {
    /// Mapped, in one or two regions of one file.
    pub memory: Arc<Memory>,
    /// What it is made of.
    pub backing: Backing,
    /// Bytes.
    pub size: u64,
}

impl Ram {
    /// `size` bytes from the best source there is. `tmpfs` makes a file on a private tmpfs with huge pages.
    ///
    /// # Errors
    /// A source the user named cannot give it, or nothing can.
    pub fn new(
        size: u64,
        prefault: bool,
        huge_pages: Option<HugePages>,
        tmpfs: impl FnOnce(u64) -> io::Result<OwnedFd>,
    ) -> Result<Self, RamError> {
        let (file, backing) = match huge_pages {
            Some(pages) => pages.reserve(size)?,
            None => match tmpfs(size) {
                Ok(file) => (file, Backing::HugeTmpfs),
                Err(error) => {
                    tracing::warn!("guest memory gets small pages: {error}");
                    (memfd(size)?, Backing::Memfd)
                }
            },
        };
        if prefault {
            allocate(&file, size).map_err(|source| RamError::Allocate { size, source })?;
        }
        let ram = Self { memory: Arc::new(map(file, size)?), backing, size };
        ram.advise();
        tracing::info!("guest memory: {} MiB, {backing}", size >> 20);
        Ok(ram)
    }

    fn advise(&self) {
        for region in self.memory.regions() {
            // A memfd gets huge pages from this where shmem_enabled is `advise`; a refusal changes nothing.
            // SAFETY: advice about a region's own mapping.
            unsafe { libc::madvise(region.host().cast(), region.size() as usize, libc::MADV_HUGEPAGE) };
            // KVM maps 2 MiB at a time only if guest and host addresses agree below that.
            if self.backing != Backing::Memfd
                && !(region.host() as u64 ^ region.gpa()).is_multiple_of(LARGE_PAGE)
            {
                tracing::warn!(
                    "guest memory at {:#x} is not mapped at a 2 MiB line: no huge pages",
                    region.gpa()
                );
            }
        }
    }
}

fn memfd(size: u64) -> Result<OwnedFd, RamError> {
    let failed = |errno: nix::Error| RamError::Allocate { size, source: errno.into() };
    let file =
        memfd_create(c"strata-ram", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(failed)?;
    let length = libc::off_t::try_from(size).map_err(|_| failed(nix::Error::EFBIG))?;
    nix::unistd::ftruncate(&file, length).map_err(failed)?;
    // So that no backend can shrink it under the others.
    let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_GROW;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
    Ok(file)
}

fn allocate(file: &OwnedFd, size: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    loop {
        match fallocate(file.as_fd(), FallocateFlags::empty(), 0, length) {
            Err(nix::Error::EINTR) => {}
            done => return done.map_err(Into::into),
        }
    }
}

fn map(file: OwnedFd, size: u64) -> Result<Memory, RamError> {
    let (low, high) = layout::split(size);
    let region =
        |gpa, size, fd, fd_offset| RegionSpec { gpa, size, user_addr: USER_BASE + gpa, fd, fd_offset };
    let mut regions = Vec::new();
    if high > 0 {
        let again = file.try_clone().map_err(|source| RamError::Allocate { size, source })?;
        regions.push(region(layout::HIGH_RAM, high, again, low));
    }
    regions.push(region(0, low, file, 0));
    Ok(Memory::new(regions)?)
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod memory_test;
