//! One request on its way: what has been done of it and what is to be done next.
//!
//! ```text
//!              +--------- more to do <--------+
//!              v                              |
//!   parse -> next() -> Next::Job --engine--> apply() --> ends: Status
//!              \-> Next::End(Status)
//! ```
//!
//! Owned by [`crate::server`]. Knows the rules of the device (short transfers are continued, the end of the
//! file is an error, what a file system cannot deallocate is written) and nothing of rings or threads.

mod mapped;

use std::time::Instant;

use nix::errno::Errno;
use strata_virtio::memory::IoSlice;

use crate::disk::Disk;
use crate::engine::{Job, Path};
use crate::image::Image;
use crate::layers::Mapper;
use crate::layers::lane::Ask;
use crate::request::{Op, Request, Status};

/// A request and its progress. Reused.
#[derive(Debug, Default)]
pub struct Slot {
    /// What was asked.
    pub request: Request,
    /// Bytes of data transferred.
    done: u64,
    /// First entry of `request.data` that is not done; it is cut down as it is consumed.
    part: usize,
    /// First entry of `request.ranges` that is not done.
    range: usize,
    /// Punching a hole was refused; zeroes are asked for instead.
    keep_storage: bool,
    /// The data is written and only has to be made durable.
    syncing: bool,
    /// Nothing is left to do.
    ended: bool,
    /// How often the kernel asked to try again.
    retries: u8,
    /// When the request was found, if it had to wait for the ring.
    pub found: Option<Instant>,
    /// What comes next is for the lane to do, even if it is known where it lies.
    by_lane: bool,
    /// The pieces of the request that lie in one place.
    cut: Vec<IoSlice>,
}

/// What a request needs next.
#[derive(Debug)]
pub enum Next<'a> {
    /// This, done.
    Job(Job<'a>),
    /// This, asked of the lane.
    Ask(Ask),
    /// Nothing: it has ended so.
    End(Status),
}

/// What a job's outcome means for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ask for the next job.
    Continue,
    /// Do the same job again, and wait for it.
    Retry,
    /// It has failed.
    Failed(Status, Errno),
}

/// How often EAGAIN is taken for an answer.
const RETRIES: u8 = 16;

impl Slot {
    /// Forgets the progress of the request before.
    #[inline]
    pub fn begin(&mut self) {
        self.done = 0;
        self.part = 0;
        self.range = 0;
        self.keep_storage = false;
        self.syncing = false;
        self.ended = false;
        self.retries = 0;
        self.found = None;
        self.by_lane = false;
    }

    /// Has the lane do what comes next.
    pub fn take_the_lane(&mut self) {
        self.by_lane = true;
    }

    /// Forgets how often it was tried, for another attempt after a failure.
    pub fn try_again(&mut self) {
        self.retries = 0;
    }

    /// The next job. `durable`: what is written counts as done only on the device.
    #[inline]
    pub fn next<'a>(&'a mut self, disk: &Disk, mapper: Option<&Mapper>, durable: bool) -> Next<'a> {
        match mapper {
            None => self.next_raw(&disk.image, durable),
            Some(mapper) => self.next_mapped(disk, mapper, durable),
        }
    }

    #[inline]
    fn next_raw<'a>(&'a self, image: &Image, durable: bool) -> Next<'a> {
        if self.ended {
            return Next::End(Status::Ok);
        }
        if self.syncing {
            return Next::Job(Job::Sync);
        }
        match self.request.op {
            Op::Read { offset } => match self.rest() {
                [] => Next::End(Status::Ok),
                data => {
                    let offset = offset + self.done;
                    Next::Job(Job::Read { offset, data, path: path(image, 0, offset, data) })
                }
            },
            Op::Write { offset } => match self.rest() {
                [] => Next::End(Status::Ok),
                data => {
                    let offset = offset + self.done;
                    Next::Job(Job::Write { offset, data, path: path(image, 0, offset, data), durable })
                }
            },
            Op::Flush if !image.flushes() => Next::End(Status::Ok),
            Op::Flush => Next::Job(Job::Sync),
            Op::GetId => Next::End(Status::Ok),
            Op::Discard => match self.request.ranges.get(self.range) {
                Some(range) => Next::Job(Job::Discard { offset: range.offset, len: range.len }),
                None => Next::End(Status::Ok),
            },
            Op::WriteZeroes => match self.request.ranges.get(self.range) {
                Some(range) if range.unmap && !self.keep_storage => {
                    Next::Job(Job::Punch { offset: range.offset, len: range.len })
                }
                Some(range) => Next::Job(Job::Zero { offset: range.offset, len: range.len }),
                None => Next::End(Status::Ok),
            },
        }
    }

    #[inline]
    fn rest(&self) -> &[IoSlice] {
        self.request.data.get(self.part..).unwrap_or_default()
    }

    /// Takes in how the last job went; `mapped`: on layers.
    #[inline]
    pub fn apply_job(&mut self, answer: Result<usize, Errno>, durable: bool, mapped: bool) -> Outcome {
        match (answer, self.request.op) {
            // A file may end inside its last cluster.
            (Ok(0), Op::Read { .. }) if mapped => {
                self.by_lane = true;
                Outcome::Continue
            }
            (answer, _) => self.apply(answer, durable),
        }
    }

    /// Takes in how the last job went.
    #[inline]
    fn apply(&mut self, answer: Result<usize, Errno>, durable: bool) -> Outcome {
        match (answer, self.request.op) {
            // The image has become shorter than it was (somebody truncated it), or takes nothing more.
            (Ok(0), Op::Read { .. } | Op::Write { .. }) if !self.syncing => {
                Outcome::Failed(Status::IoError, Errno::ENODATA)
            }
            (Ok(bytes), Op::Read { .. } | Op::Write { .. }) if !self.syncing => {
                self.consume(bytes);
                Outcome::Continue
            }
            (Ok(_), Op::WriteZeroes | Op::Discard) if !self.syncing => {
                self.range += 1;
                self.syncing =
                    durable && self.request.op == Op::WriteZeroes && self.range == self.request.ranges.len();
                Outcome::Continue
            }
            (Ok(_), _) => {
                self.ended = true;
                Outcome::Continue
            }
            (Err(Errno::EAGAIN | Errno::EINTR), _) if self.retries < RETRIES => {
                self.retries += 1;
                Outcome::Retry
            }
            (Err(Errno::EOPNOTSUPP), Op::Discard) => Outcome::Failed(Status::Unsupported, Errno::EOPNOTSUPP),
            (Err(Errno::EOPNOTSUPP), Op::WriteZeroes) if !self.syncing => {
                if self.keep_storage {
                    // Only the waiting way knows what to do without fallocate.
                    return Outcome::Retry;
                }
                self.keep_storage = true;
                Outcome::Continue
            }
            (Err(errno), _) => Outcome::Failed(Status::IoError, errno),
        }
    }

    #[inline]
    fn consume(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let mut left = bytes;
        while let Some(part) = self.request.data.get_mut(self.part) {
            if left < part.len() {
                *part = part.skip(left);
                return;
            }
            left -= part.len();
            self.part += 1;
        }
    }
}

/// Direct I/O if the image is used so and every piece is aligned. What is not goes through the page cache, which
/// the kernel keeps in step with direct I/O on the same inode; nothing has to be copied to a buffer of ours,
/// whose size the guest would choose.
#[inline]
fn path(image: &Image, node: usize, offset: u64, data: &[IoSlice]) -> Path {
    if image.direct().is_none() {
        return Path { node, direct: false };
    }
    let geometry = image.geometry();
    let unit = geometry.offset_align as usize;
    let memory = geometry.memory_align as usize;
    let aligned = offset.is_multiple_of(u64::from(geometry.offset_align))
        && data.iter().all(|part| part.as_ptr().addr() & (memory - 1) == 0 && part.len() & (unit - 1) == 0);
    Path { node, direct: aligned }
}
