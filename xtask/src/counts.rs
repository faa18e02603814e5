//! How many tests passed, failed and were skipped, and why.
//!
//! Called by: `test`, which adds up what cargo's tests and the guest cases report.

use std::fmt;

/// A sum of results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ended as they should.
    pub(crate) passed: u64,
    /// Did not; a line about each.
    pub(crate) failed: Vec<String>,
    /// Could not be tried here; a line about each.
    pub(crate) skipped: Vec<String>,
}

impl Counts {
    /// Adds another sum.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// True if nothing failed and, `strictly`, nothing was skipped.
    pub(crate) fn green(&self, strictly: bool) -> bool {
        self.failed.is_empty() && (!strictly || self.skipped.is_empty())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}
