//! What is worth trying without the ring. A guess from what the last tries cost, per queue, never shared.
//!
//! Reads of a file through the page cache: `RWF_NOWAIT` succeeds if the data is cached. A run of misses means a
//! working set larger than the cache, where each try is a wasted call: then only every 16th is tried.
//! Writes through the page cache mostly only copy, but file systems that cannot promise it (ext4) refuse
//! `RWF_NOWAIT`: they are done inline and timed, and when one had to wait (dirty pages being throttled, a block
//! to be read first) the next ones go by the ring. [`crate::server`] asks before and tells afterwards.

use std::time::Duration;

/// Consecutive misses after which reads are rarely tried.
const MISSES: u32 = 32;
/// While misses prevail, one in this many is tried.
const PROBE: u32 = 16;
/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_micros(500);
/// How many writes go by the ring after a slow one.
const PENANCE: u32 = 64;

/// The guess for reads.
#[derive(Debug, Default)]
pub struct Reads {
    misses: u32,
    skipped: u32,
}

impl Reads {
    /// Whether to try the next one.
    #[inline]
    pub fn worth_trying(&mut self) -> bool {
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
    pub fn tried(&mut self, hit: bool) {
        self.misses = if hit { 0 } else { self.misses.saturating_add(1) };
    }
}

/// The guess for writes.
#[derive(Debug, Default)]
pub struct Writes {
    penance: u32,
}

impl Writes {
    /// Whether to do the next one inline.
    #[inline]
    pub fn worth_trying(&mut self) -> bool {
        self.penance = self.penance.saturating_sub(1);
        self.penance == 0
    }

    /// Tells how long one took.
    #[inline]
    pub fn took(&mut self, time: Duration) {
        if time > SLOW {
            self.penance = PENANCE;
        }
    }
}
