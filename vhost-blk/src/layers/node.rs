#![allow(unsafe_code)] // imago's storage interface hands over raw scatter lists
//! A file of a chain as imago sees it: an [`Image`] of ours, so its lock, its descriptors and its way of using the
//! page cache are those of a raw disk. imago opens nothing itself.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use nix::errno::Errno;

use super::deferred::{Deferred, POINTER};
use crate::engine::Job;
use crate::engine::syscalls::{self, Wait};
use crate::image::Image;

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Node {
    index: usize,
    image: Arc<Image>,
    size: AtomicU64,
    /// Of the file that is written to.
    deferred: Option<Arc<Deferred>>,
    helper: CommonStorageHelper,
}

impl Node {
    pub(super) fn new(index: usize, image: Arc<Image>, deferred: Option<Arc<Deferred>>) -> Self {
        let size = AtomicU64::new(image.geometry().bytes);
        Self { index, image, size, deferred, helper: CommonStorageHelper::default() }
    }

    /// Which of the disk's files it is.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    fn fd(&self) -> i32 {
        self.image.direct().unwrap_or_else(|| self.image.buffered()).as_raw_fd()
    }

    fn allocate(&self, job: &Job<'_>) -> io::Result<()> {
        syscalls::run(&self.image, job, Wait::Allowed).map(drop).map_err(io::Error::from)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image.path().display().fmt(f)
    }
}

fn offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an offset beyond 2^63"))
}

impl Storage for Node {
    fn mem_align(&self) -> usize {
        self.image.geometry().memory_align as usize
    }

    fn req_align(&self) -> usize {
        self.image.geometry().offset_align as usize
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size.load(Ordering::Relaxed))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.image.path().to_owned())
    }

    unsafe fn pure_readv(&self, mut data: IoVectorMut<'_>, mut at: u64) -> io::Result<()> {
        if let Some(deferred) = self.deferred.as_ref().filter(|deferred| deferred.covers(at, data.len())) {
            let mut bytes = vec![0; usize::try_from(data.len()).unwrap_or(0)];
            deferred.read(&mut bytes, at)?;
            data.copy_from_slice(&bytes);
            return Ok(());
        }
        while !data.is_empty() {
            // SAFETY: the list is used while `data`, which owns it, is borrowed.
            let list = unsafe { data.as_iovec() };
            let count = list.len().min(syscalls::MAX_PARTS) as libc::c_int;
            // SAFETY: the list describes memory that may be written.
            let read = unsafe { libc::preadv(self.fd(), list.as_ptr(), count, offset(at)?) };
            match Errno::result(read) {
                Ok(0) => {
                    // A file may end inside its last cluster; what is behind is zero.
                    data.fill(0);
                    return Ok(());
                }
                Ok(read) => {
                    data = data.split_tail_at(read as u64);
                    at += read as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, mut data: IoVector<'_>, mut at: u64) -> io::Result<()> {
        if let Some(deferred) = self.deferred.as_ref().filter(|deferred| deferred.covers(at, data.len())) {
            let mut bytes = vec![0; usize::try_from(data.len()).unwrap_or(0)];
            data.copy_into_slice(&mut bytes);
            return deferred.write(&bytes, at);
        }
        let begin = at;
        while !data.is_empty() {
            // SAFETY: the list is used while `data`, which owns it, is borrowed.
            let list = unsafe { data.as_iovec() };
            let count = list.len().min(syscalls::MAX_PARTS) as libc::c_int;
            // SAFETY: the list describes memory that may be read.
            let written = unsafe { libc::pwritev(self.fd(), list.as_ptr(), count, offset(at)?) };
            match Errno::result(written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = data.split_tail_at(written as u64);
                    at += written as u64;
                    self.size.fetch_max(at, Ordering::Relaxed);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match &self.deferred {
            Some(deferred) if begin < POINTER.end && at > POINTER.start => deferred.find_table(),
            _ => Ok(()),
        }
    }

    unsafe fn pure_write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        match self.allocate(&Job::Punch { offset: at, len }) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.allocate(&Job::Zero { offset: at, len })
            }
            answer => answer,
        }
    }

    unsafe fn pure_write_allocated_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.allocate(&Job::Zero { offset: at, len })
    }

    unsafe fn pure_discard(&self, at: u64, len: u64) -> io::Result<()> {
        match self.allocate(&Job::Punch { offset: at, len }) {
            // Nothing has to be given back.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            answer => answer,
        }
    }

    /// Nothing is kept here: what is written is in the page cache or on the device.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.image.flushes() && !self.image.read_only() { self.allocate(&Job::Sync) } else { Ok(()) }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, size: u64, _mode: PreallocateMode) -> io::Result<()> {
        if self.image.grow(size)? < size {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the device is too small"));
        }
        self.size.fetch_max(size, Ordering::Relaxed);
        Ok(())
    }
}
