//! What is worth trying without the ring. A guess from what the last tries cost, per queue, never shared.
//!
//! Reads of a file through the page cache: `RWF_NOWAIT` succeeds if the data is cached. A run of misses means a
//! working set larger than the cache, where each try is a wasted call: then only every 16th is tried.
//! Writes through the page cache mostly only copy, but file systems that cannot promise it (ext4) refuse
//! `RWF_NOWAIT`: they are done inline and timed, and when one had to wait (dirty pages being throttled, a block
//! to be read first) the next ones go by the ring. Called by [`crate::server`].

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::syscalls::{self, Wait};
use super::{Job, Path};
use crate::image::{Image, Kind};

/// Consecutive misses after which reads are rarely tried.
const MISSES: u32 = 32;
/// While misses prevail, one in this many is tried.
const PROBE: u32 = 16;
/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_micros(500);
/// How many writes go by the ring after a slow one.
const PENANCE: u32 = 64;

/// What has been learnt about doing without the ring.
#[derive(Debug, Default)]
pub struct Inline {
    reads: Reads,
    writes: Writes,
    /// The file system cannot promise not to wait (RWF_NOWAIT).
    no_promise: bool,
}

impl Inline {
    /// Does the job here and now if that is worth it; `None` if it is not, or it would have waited.
    #[inline]
    pub fn attempt(&mut self, image: &Image, job: &Job<'_>) -> Option<Result<usize, Errno>> {
        match job {
            // The ring has no operation for it.
            Job::Discard { .. } if image.kind() == Kind::BlockDevice => {
                Some(syscalls::run(image, job, Wait::Allowed))
            }
            // Memory is its only home: it never waits.
            _ if image.kind() == Kind::MemoryFile => Some(syscalls::run(image, job, Wait::Allowed)),
            Job::Read { path: Path { direct: false, .. }, .. }
                if !self.no_promise && self.reads.worth_trying() =>
            {
                let answer = syscalls::run(image, job, Wait::Forbidden);
                self.reads.tried(answer.is_ok());
                match answer {
                    Err(Errno::EAGAIN) => None,
                    Err(Errno::EOPNOTSUPP) => {
                        self.no_promise = true;
                        None
                    }
                    answer => Some(answer),
                }
            }
            Job::Write { path: Path { direct: false, .. }, durable: false, .. }
                if self.writes.worth_trying() =>
            {
                let start = Instant::now();
                let answer = syscalls::run(image, job, Wait::Allowed);
                self.writes.took(start.elapsed());
                Some(answer)
            }
            _ => None,
        }
    }
}

/// The guess for reads.
#[derive(Debug, Default)]
struct Reads {
    misses: u32,
    skipped: u32,
}

impl Reads {
    /// Whether to try the next one.
    #[inline]
    fn worth_trying(&mut self) -> bool {
        if self.misses < MISSES {
            return true;
        }
        self.skipped += 1;
        if self.skipped >= PROBE {
            self.skipped = 0;
            return true;
        }
        false
    }

    /// Tells how a try ended.
    #[inline]
    fn tried(&mut self, hit: bool) {
        self.misses = if hit { 0 } else { self.misses.saturating_add(1) };
    }
}

/// The guess for writes.
#[derive(Debug, Default)]
struct Writes {
    penance: u32,
}

impl Writes {
    /// Whether to do the next one inline.
    #[inline]
    fn worth_trying(&mut self) -> bool {
        self.penance = self.penance.saturating_sub(1);
        self.penance == 0
    }

    /// Tells how long one took.
    #[inline]
    fn took(&mut self, time: Duration) {
        if time > SLOW {
            self.penance = PENANCE;
        }
    }
}

#[cfg(test)]
#[path = "inline_test.rs"]
mod inline_test;
