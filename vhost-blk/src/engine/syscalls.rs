#![allow(unsafe_code)] // preadv2, pwritev2, fallocate and BLKDISCARD on guest memory, which no safe wrapper takes
//! Jobs done here and now, by a system call each.
//!
//! Called by [`crate::server`] on a queue's own thread, for what will not wait, or for everything if there is
//! no io_uring.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use strata_virtio::memory::IoSlice;

use super::{Job, Path};
use crate::image::{Image, Kind};

/// The most parts one call takes (UIO_MAXIOV); the rest is left for the next.
pub(crate) const MAX_PARTS: usize = 1024;

/// Whether a call may sleep until its data is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It may.
    Allowed,
    /// It returns EAGAIN instead (RWF_NOWAIT), or EOPNOTSUPP if the file system cannot promise that.
    Forbidden,
}

/// The descriptor a job goes to.
fn descriptor(image: &Image, path: Path) -> BorrowedFd<'_> {
    image.direct().filter(|_| path.direct).unwrap_or_else(|| image.buffered())
}

/// Does a job on the file it is for; bytes done (0 for the ones without data), or why not.
///
/// # Errors
/// The kernel's answer. Reads of guest memory that is no longer there are EFAULT, not a signal.
pub fn run(image: &Image, job: &Job<'_>, wait: Wait) -> Result<usize, Errno> {
    let nowait = if wait == Wait::Forbidden { libc::RWF_NOWAIT } else { 0 };
    match *job {
        Job::Read { offset, data, path } => {
            let fd = descriptor(image, path).as_raw_fd();
            let (list, count) = iovecs(data);
            // SAFETY: the parts were resolved in guest memory, which the queue keeps mapped while a request of it is
            // open; the kernel checks each address again and answers EFAULT.
            Errno::result(unsafe { libc::preadv2(fd, list, count, signed(offset), nowait) }).map(bytes)
        }
        Job::Write { offset, data, path, durable } => {
            let fd = descriptor(image, path).as_raw_fd();
            let (list, count) = iovecs(data);
            let flags = nowait | if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above.
            Errno::result(unsafe { libc::pwritev2(fd, list, count, signed(offset), flags) }).map(bytes)
        }
        Job::Sync => nix::unistd::fdatasync(image.buffered()).map(|()| 0),
        Job::Discard { offset, len } if image.kind() == Kind::BlockDevice => {
            discard_blocks(image.buffered().as_raw_fd(), offset, len)
        }
        Job::Discard { offset, len } | Job::Punch { offset, len } => {
            fallocate(image, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
        }
        Job::Zero { offset, len } => zero(image, offset, len),
    }
}

/// Makes a range zero and keeps its storage, by whatever the file system offers.
fn zero(image: &Image, offset: u64, len: u64) -> Result<usize, Errno> {
    match fallocate(image, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
        Err(Errno::EOPNOTSUPP) => {}
        answer => return answer,
    }
    // tmpfs: a hole, and then storage for it again.
    let punched = fallocate(image, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
        .and_then(|_| fallocate(image, libc::FALLOC_FL_KEEP_SIZE, offset, len));
    match punched {
        Err(Errno::EOPNOTSUPP) => write_zeroes(image, offset, len),
        answer => answer,
    }
}

/// The last resort, where no fallocate works: zeroes, written.
fn write_zeroes(image: &Image, mut offset: u64, len: u64) -> Result<usize, Errno> {
    static ZEROES: [u8; 65536] = [0; 65536];
    let end = offset + len;
    while offset < end {
        let part = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROES.len());
        let zeroes = ZEROES.get(..part).unwrap_or(&ZEROES);
        match nix::sys::uio::pwrite(image.buffered(), zeroes, signed(offset)) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => offset += written as u64,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(0)
}

/// fallocate(2). The offsets come from a checked request, so they fit.
fn fallocate(image: &Image, mode: libc::c_int, offset: u64, len: u64) -> Result<usize, Errno> {
    // SAFETY: no memory is involved.
    let rc = unsafe { libc::fallocate(image.buffered().as_raw_fd(), mode, signed(offset), signed(len)) };
    Errno::result(rc).map(|_| 0)
}

fn discard_blocks(fd: RawFd, offset: u64, len: u64) -> Result<usize, Errno> {
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64, start and length in bytes.
    Errno::result(unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) }).map(|_| 0)
}

fn iovecs(data: &[IoSlice]) -> (*const libc::iovec, libc::c_int) {
    (IoSlice::as_iovecs(data), data.len().min(MAX_PARTS) as libc::c_int)
}

/// Offsets stay below the capacity in bytes, which a file size (i64) has bounded.
fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn bytes(answer: isize) -> usize {
    usize::try_from(answer).unwrap_or(0)
}
