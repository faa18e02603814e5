//! The inflight region: what lets a backend that crashed lose no request and repeat none that was answered.
//!
//! A frontend keeps the region's descriptor across backends (vhost-user "Inflight I/O tracking", split
//! layout). [`Inflight`] is the whole of it, made or mapped by the session; [`QueueRegion`] is one queue's part,
//! handed to the device in `QueueSetup` and driven by [`crate::queue::Queue`] alone, which marks a request
//! before it hands it out and clears it after the used index is published.
//!
//! The region describes one life of a ring: a frontend gives a zeroed one to a ring the driver has set up anew
//! (device reset), since marks of the former ring would name requests that are no more.
//!
//! Refuses regions that are too small, not a regular file, or of another version. What it reads back is
//! checked: the frontend may have written anything there.

mod region;

use std::os::fd::OwnedFd;

pub(crate) use region::Tracker;
pub use region::{Inflight, QueueRegion};

/// Why an inflight region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// Number of queues or their size is zero or too large.
    #[error(
        "an inflight region for {queues} queues of {size} descriptors; neither may be 0, nor beyond {max_queues} and {max_size}"
    )]
    Shape {
        /// Number of queues asked for.
        queues: u16,
        /// Descriptors per queue asked for.
        size: u16,
        /// Most queues.
        max_queues: u16,
        /// Most descriptors.
        max_size: u16,
    },
    /// Fewer bytes than the queues need, or beyond the end of the file.
    #[error("the inflight region has {have:#x} bytes where its queues need {need:#x}")]
    TooSmall {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The file offset is not a multiple of the page size.
    #[error("the inflight region begins at byte {offset:#x} of its file, which is not a multiple of 4096")]
    Misaligned {
        /// The offset given.
        offset: u64,
    },
    /// The descriptor is something else than a file.
    #[error("the inflight descriptor is not a regular file")]
    NotAFile,
    /// The region speaks a later version of the layout.
    #[error("the inflight region has version {0}; 1 is understood")]
    Version(u16),
    /// The region was laid out for fewer descriptors than the queue has.
    #[error("the inflight region has {have} descriptors where the queue has {need}")]
    QueueSize {
        /// Descriptors in the region.
        have: u16,
        /// Descriptors of the queue.
        need: u16,
    },
    /// The system refused.
    #[error("the inflight region cannot be {what}")]
    System {
        /// What was being done to it.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A new region with the descriptor to hand to the frontend.
#[derive(Debug)]
pub struct Created {
    /// The mapped region.
    pub inflight: Inflight,
    /// The memfd behind it.
    pub fd: OwnedFd,
}

#[cfg(test)]
#[path = "inflight_test.rs"]
mod inflight_test;
