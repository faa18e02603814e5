#![allow(unsafe_code)] // submission entries carry raw addresses of guest memory
//! Jobs handed to the kernel: one io_uring per queue.
//!
//! What io_uring does is not seen by seccomp, so a ring is made before the sandbox is locked and restricted for
//! good (IORING_REGISTER_RESTRICTIONS): the six operations below, on the registered descriptors of the image
//! and no others. The filter then allows io_uring_enter only; no second ring can be made.
//!
//! Guest memory is not registered as fixed buffers: that would pin every page of the guest.
//!
//! Flags: COOP_TASKRUN and TASKRUN_FLAG spare the interrupt of the queue thread when a completion arrives and
//! let it see by a load that there is work. SINGLE_ISSUER and DEFER_TASKRUN are not used: they bind a ring to
//! one thread, and the rings here outlive the queue's thread (one per start of the queue).
//!
//! Called by [`crate::server`] on the queue's thread; `UringPool` by `main` and the device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use strata_virtio::memory::IoSlice;

use super::syscalls::MAX_PARTS;
use super::{Job, Path};
use crate::image::{Files, Image};

/// Entries of the submission queue; a batch that is longer is submitted in parts.
const SUBMISSIONS: u32 = 128;
/// Jobs after which the kernel is told of them although more may follow: the device works on them meanwhile.
const BATCH: usize = 8;
/// Entries of the completion queue: no less than a queue has requests.
const COMPLETIONS: u32 = 1024;
/// Worker threads of the kernel for what cannot be done without waiting (flush, buffered writes), per ring.
const WORKERS: u32 = 4;

/// Files are registered in pairs: page cache, O_DIRECT (or the page cache again).
const OWN: types::Fixed = types::Fixed(0);

fn file(path: Path) -> types::Fixed {
    types::Fixed(path.node as u32 * 2 + u32::from(path.direct))
}

/// One ring and what is under way in it.
pub struct Uring {
    ring: IoUring,
    /// Pushed or submitted, and not yet reported.
    under_way: usize,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl AsFd for Uring {
    /// Readable (poll(2)) while completions wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Uring {
    /// Makes a ring for a disk's files and closes it to everything else.
    ///
    /// # Errors
    /// io_uring is missing or forbidden (ENOSYS, EPERM), or memory is.
    pub fn new(files: &Files) -> io::Result<Self> {
        let ring = build(true).or_else(|_| build(false))?;
        let pair = |image: &Image| {
            let buffered = image.buffered().as_raw_fd();
            [buffered, image.direct().map_or(buffered, |fd| fd.as_raw_fd())]
        };
        let files: Vec<RawFd> = files.iter().flat_map(pair).collect();
        let submitter = ring.submitter();
        submitter.register_files(&files)?;
        // Bounded and unbounded workers; refused by kernels before 5.15, which then have their own limits.
        drop(submitter.register_iowq_max_workers(&mut [WORKERS, WORKERS]));
        let mut allowed = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ];
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, under_way: 0 })
    }

    /// Whether a completion can be taken, or one would be there after [`Uring::submit`]. Looks at memory only.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        self.under_way > 0 && (!self.ring.completion().is_empty() || self.ring.submission().taskrun())
    }

    /// Jobs pushed and not yet reported.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Puts a job into the submission queue; the kernel sees it at the next [`Uring::submit`] at the latest.
    /// `token` comes back with the completion.
    ///
    /// # Safety
    /// Job data must stay mapped, and the list of its parts in place, until `token` is reported.
    ///
    /// # Errors
    /// EAGAIN: the queue is full and the kernel would not take from it now. EOPNOTSUPP: not a job for a ring.
    pub unsafe fn push(&mut self, token: u64, job: &Job<'_>) -> Result<(), Errno> {
        let entry = Self::entry(job)?.user_data(token);
        if self.ring.submission().is_full() {
            self.submit();
        }
        // SAFETY: the caller keeps data and list alive; the descriptors are registered ones.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Errno::EAGAIN)?;
        self.under_way += 1;
        if self.ring.submission().len() >= BATCH {
            self.submit();
        }
        Ok(())
    }

    fn entry(job: &Job<'_>) -> Result<squeue::Entry, Errno> {
        let entry = match *job {
            Job::Read { offset, data, path } => match data {
                [one] => opcode::Read::new(file(path), one.as_ptr(), length(one)).offset(offset).build(),
                many => opcode::Readv::new(file(path), IoSlice::as_iovecs(many), count(many))
                    .offset(offset)
                    .build(),
            },
            Job::Write { offset, data, path, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match data {
                    [one] => opcode::Write::new(file(path), one.as_ptr(), length(one))
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    many => opcode::Writev::new(file(path), IoSlice::as_iovecs(many), count(many))
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Job::Sync => opcode::Fsync::new(OWN).flags(types::FsyncFlags::DATASYNC).build(),
            Job::Punch { offset, len } => opcode::Fallocate::new(OWN, len)
                .offset(offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Job::Zero { offset, len } => opcode::Fallocate::new(OWN, len)
                .offset(offset)
                .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Job::Discard { .. } => return Err(Errno::EOPNOTSUPP),
        };
        Ok(entry)
    }

    /// Shows the kernel what has been pushed, and lets it finish what waits for this thread. No system call if
    /// there is neither.
    pub fn submit(&mut self) {
        let waiting = self.ring.submission();
        if waiting.is_empty() && !waiting.taskrun() && !waiting.cq_overflow() {
            return;
        }
        drop(waiting);
        // EAGAIN and EBUSY (no memory now, or completions to be taken first) leave the rest in the queue for
        // the next call; EINTR the same.
        if let Err(error) = self.ring.submit()
            && !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
        {
            tracing::error!("io_uring does not accept requests: {error}");
        }
    }

    /// Takes one completion: its token, and bytes done or why not.
    #[inline]
    pub fn reaped(&mut self) -> Option<(u64, Result<usize, Errno>)> {
        let completion = self.ring.completion().next()?;
        self.under_way = self.under_way.saturating_sub(1);
        let answer = completion.result();
        let answer = usize::try_from(answer).map_err(|_| Errno::from_raw(answer.wrapping_neg()));
        Some((completion.user_data(), answer))
    }

    /// Sleeps until at least one completion is there. For draining; the loop itself waits on the descriptor.
    pub fn wait(&mut self) {
        if let Err(error) = self.ring.submit_and_wait(1)
            && error.raw_os_error() != Some(libc::EINTR)
        {
            tracing::error!("io_uring cannot be waited for: {error}");
            // Do not spin at full speed on an error that stays.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

fn build(coop: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_clamp().setup_cqsize(COMPLETIONS).dontfork();
    if coop {
        // Linux 5.19.
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    }
    builder.build(SUBMISSIONS)
}

fn length(part: &IoSlice) -> u32 {
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}

fn count(parts: &[IoSlice]) -> u32 {
    parts.len().min(MAX_PARTS) as u32
}

/// The rings of a disk, one per queue, made while that is still allowed; lent to a queue while it runs.
#[derive(Debug, Default)]
pub struct UringPool(Mutex<Vec<Uring>>);

impl UringPool {
    /// Makes `queues` rings.
    ///
    /// # Errors
    /// As [`Uring::new`].
    pub fn new(files: &Files, queues: usize) -> io::Result<Self> {
        (0..queues).map(|_| Uring::new(files)).collect::<io::Result<_>>().map(|rings| Self(Mutex::new(rings)))
    }

    /// Whether there is no ring, now.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Lends a ring, if one is free.
    pub fn take(&self) -> Option<Uring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Takes a ring back. Nothing may be under way in it.
    pub fn give_back(&self, ring: Uring) {
        debug_assert_eq!(ring.under_way(), 0);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
    }
}
