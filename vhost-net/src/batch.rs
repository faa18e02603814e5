#![allow(unsafe_code)] // readv, writev and io_uring over guest memory
//! Many frames per system call. The tap takes and gives one frame per read or write, so a batch goes through an
//! io_uring: the calls are the same, the way into the kernel is paid once (a 64-byte frame costs 0.72 us instead
//! of 1.10 us to write, 0.53 us instead of 0.77 us to read). Owned by a queue pair, called by [`crate::tx`] and
//! [`crate::rx`].
//!
//! Nothing is ever under way when a call returns: every operation carries RWF_NOWAIT and completes at once, so
//! that a buffer lent to the kernel is free again. The ring is restricted to reads and writes of the tap before
//! it is enabled, whatever else the process could be made to ask of it. A kernel without io_uring (absent,
//! disabled, or unable to do this on a tap) is served by readv and writev.

mod scatter;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

pub use scatter::{MAX_PIECES, Scatter};

/// Frames per batch at most.
pub const DEPTH: usize = 64;

/// The tap's place in the ring's table of files.
const TAP: types::Fixed = types::Fixed(0);
/// IOSQE_FIXED_FILE: the only flag a submission may carry, and must.
const FIXED_FILE: u8 = 1;

/// A batch's way into the kernel.
pub struct Batch {
    tap: OwnedFd,
    ring: Option<IoUring>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch {{ tap: {:?}, ring: {} }}", self.tap, self.ring.is_some())
    }
}

impl AsFd for Batch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl Batch {
    /// A way to and from one queue of the tap. Called before the sandbox closes: making a ring is not allowed
    /// inside.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(tap: BorrowedFd<'_>) -> std::io::Result<Self> {
        let tap = tap.try_clone_to_owned()?;
        let ring = match ring(tap.as_raw_fd()) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::info!(%error, "no io_uring for the tap: one system call per frame");
                None
            }
        };
        Ok(Self { tap, ring })
    }

    /// Without io_uring; for comparison.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn plain(tap: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self { tap: tap.try_clone_to_owned()?, ring: None })
    }

    /// Whether batches go through io_uring.
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Writes each frame of `frames` to the tap, in order. `results` gets one entry each: bytes written, or the
    /// negative error number.
    ///
    /// # Safety
    /// Every piece in `frames` leads to mapped memory.
    pub unsafe fn write(&mut self, frames: &Scatter, results: &mut Vec<i32>) {
        // SAFETY: as promised by the caller.
        unsafe { self.run(Direction::Write, frames, results) }
    }

    /// Reads one frame from the tap into each entry of `frames`, in order. `results` gets one entry each: bytes
    /// read (header included), or the negative error number; `-EAGAIN` where there was none.
    ///
    /// # Safety
    /// Every piece in `frames` leads to mapped, writable memory that no Rust reference covers.
    pub unsafe fn read(&mut self, frames: &Scatter, results: &mut Vec<i32>) {
        // SAFETY: as promised by the caller.
        unsafe { self.run(Direction::Read, frames, results) }
    }

    unsafe fn run(&mut self, direction: Direction, frames: &Scatter, results: &mut Vec<i32>) {
        results.clear();
        let count = frames.count();
        // One frame costs less without the ring.
        if count > 1
            && count <= DEPTH
            && let Some(ring) = &mut self.ring
        {
            results.resize(count, i32::MIN);
            // SAFETY: as promised by the caller.
            let completed = unsafe { submit(ring, direction, frames, results) };
            let unable = results.iter().all(|r| *r == -libc::EOPNOTSUPP);
            if completed && !unable {
                return;
            }
            tracing::warn!("io_uring does not serve the tap: one system call per frame from here on");
            self.ring = None;
            if completed {
                results.clear();
            } else {
                // What the ring did not do is not known to be undone; a lost frame is better than one twice.
                results.iter_mut().filter(|r| **r == i32::MIN).for_each(|r| *r = -libc::EIO);
                return;
            }
        }
        // SAFETY: as promised by the caller.
        unsafe { self.one_by_one(direction, frames, results) }
    }

    unsafe fn one_by_one(&self, direction: Direction, frames: &Scatter, results: &mut Vec<i32>) {
        let fd = self.tap.as_raw_fd();
        let mut empty = false;
        for pieces in frames.iter() {
            if empty {
                results.push(-libc::EAGAIN);
                continue;
            }
            // SAFETY: as promised by the caller.
            let result = unsafe { transfer(fd, direction, pieces) };
            empty = matches!(direction, Direction::Read) && result == -libc::EAGAIN;
            results.push(result);
        }
    }
}

/// One read or write, tried again if a signal came between.
unsafe fn transfer(fd: RawFd, direction: Direction, pieces: &[libc::iovec]) -> i32 {
    loop {
        let (list, len) = (pieces.as_ptr(), pieces.len() as i32);
        // SAFETY: the caller vouches for every piece.
        let done = unsafe {
            match direction {
                Direction::Read => libc::readv(fd, list, len),
                Direction::Write => libc::writev(fd, list, len),
            }
        };
        if done >= 0 {
            return i32::try_from(done).unwrap_or(i32::MAX);
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            Some(code) => return -code,
            None => return -libc::EIO,
        }
    }
}

/// A ring that can do nothing but read and write the tap.
fn ring(tap: RawFd) -> std::io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().dontfork().build(DEPTH as u32)?;
    let submitter = ring.submitter();
    submitter.register_files(&[tap])?;
    submitter.register_restrictions(&mut [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_flags_required(FIXED_FILE),
    ])?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn entry(direction: Direction, pieces: &[libc::iovec]) -> squeue::Entry {
    match (direction, pieces) {
        // A single piece saves the kernel the list.
        (Direction::Read, [one]) => {
            opcode::Read::new(TAP, one.iov_base.cast(), one.iov_len as u32).rw_flags(libc::RWF_NOWAIT).build()
        }
        (Direction::Write, [one]) => opcode::Write::new(TAP, one.iov_base.cast(), one.iov_len as u32)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
        (Direction::Read, many) => {
            opcode::Readv::new(TAP, many.as_ptr(), many.len() as u32).rw_flags(libc::RWF_NOWAIT).build()
        }
        (Direction::Write, many) => {
            opcode::Writev::new(TAP, many.as_ptr(), many.len() as u32).rw_flags(libc::RWF_NOWAIT).build()
        }
    }
}

/// Submits all frames and waits for all of them; false if the ring cannot be relied on any more.
unsafe fn submit(ring: &mut IoUring, direction: Direction, frames: &Scatter, results: &mut [i32]) -> bool {
    {
        let mut queue = ring.submission();
        for (index, pieces) in frames.iter().enumerate() {
            let entry = entry(direction, pieces).user_data(index as u64);
            // SAFETY: the caller vouches for the pieces, and this function returns only once all are complete
            // or, failing that, not executed.
            if unsafe { queue.push(&entry) }.is_err() {
                return false;
            }
        }
    }
    let mut left = results.len();
    let mut failures = 0;
    while left > 0 {
        match ring.submit_and_wait(left) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => {
                failures += 1;
                if failures > 100 {
                    tracing::error!(%error, "io_uring refuses to go on");
                    return false;
                }
            }
        }
        for completion in ring.completion() {
            let at = usize::try_from(completion.user_data()).ok();
            if let Some(result) = at.and_then(|at| results.get_mut(at)) {
                *result = completion.result();
                left = left.saturating_sub(1);
            }
        }
    }
    true
}

#[cfg(test)]
#[path = "batch_test.rs"]
mod batch_test;
