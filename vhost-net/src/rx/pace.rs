//! How many frames a read of the tap asks for, and when the tap counts as empty, which is when the driver is called.
//! Owned by [`super::Rx`]; knows numbers only.
//!
//! A read that gives all it asked for doubles the next one. One that does not found the tap empty for the moment. A lone
//! frame is passed on at once, and what the driver answers comes before the next look; after several it pays to look
//! again, since whoever sends them writes while we read; and while they come densely, several times, since each call
//! costs the driver a wake-up and the guest an interrupt.

use crate::batch::DEPTH;

/// Lone frames in a row after which they are taken for the beginning of more.
const LONE: u32 = 4;
/// Frames read at once after which the tap is looked at once more.
const BURST: usize = 4;
/// Looks that may give less than that, one after the other, while frames come densely. All of them together take less
/// than a call does.
const PATIENCE: u32 = 8;

/// The pace of one receive queue.
#[derive(Debug)]
pub(super) struct Pace {
    /// Reads the next batch makes.
    window: usize,
    /// Lone frames in a row.
    lone: u32,
    /// Looks in a row that gave little.
    thin: u32,
    /// How many of them there may be: [`PATIENCE`] after a batch's worth, half as many each time there was less.
    patience: u32,
    /// Frames since the tap last counted as empty.
    streak: usize,
}

impl Pace {
    /// Frames come one at a time, as far as is known.
    pub(super) fn new() -> Self {
        Self { window: 1, lone: 0, thin: 0, patience: 0, streak: 0 }
    }

    /// Reads the next batch makes, 1 to [`DEPTH`].
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// The next frame does not wait for another look at the tap, unless more are to be expected.
    pub(super) fn is_lone(&self) -> bool {
        self.window == 1 && self.patience == 0
    }

    /// A batch of `reads` gave `got` frames. Whether the tap is worth another look before the driver is called.
    pub(super) fn took(&mut self, reads: usize, got: usize) -> bool {
        self.streak = self.streak.saturating_add(got);
        if got >= reads {
            self.thin = 0;
            self.lone = if self.is_lone() { self.lone + 1 } else { LONE };
            if self.lone >= LONE {
                self.window = (self.window * 2).min(DEPTH);
            }
            return true;
        }
        self.lone = 0;
        // The next burst is perhaps as long as this one was.
        self.window = got.max(1);
        self.thin = if got < BURST { self.thin + 1 } else { 0 };
        if self.thin <= self.patience {
            return true;
        }
        self.thin = 0;
        self.patience = if self.streak >= DEPTH { PATIENCE } else { self.patience / 2 };
        self.streak = 0;
        false
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod pace_test;
