//! How bytes get between guest memory and the image: two ways, used in one loop.
//!
//! A [`Job`] is one operation on the image. [`syscalls`] does it here and now; [`uring`] hands it to the kernel
//! and reports later. [`crate::server`] tries what will not wait by the first way and submits what would by the
//! second: cached data costs no round trip through a queue, and a slow device never holds up the ring.
//! Without io_uring (`--engine sync`, or a kernel that forbids it) everything goes the first way and waits.
//!
//! Refuses nothing: a job is made from a checked request. Whatever the kernel answers is passed on.

pub mod inline;
pub mod syscalls;
pub mod uring;

#[cfg(test)]
mod engine_test;

use strata_virtio::memory::IoSlice;

/// Which ways are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring if the kernel lets us, else system calls that wait.
    #[default]
    Auto,
    /// io_uring, or do not start.
    Uring,
    /// System calls that wait.
    Sync,
}

/// Which of a disk's files, and through which of its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Which file; 0 is the disk's own.
    pub node: usize,
    /// O_DIRECT; the caller has checked the alignment. Otherwise the page cache.
    pub direct: bool,
}

/// One operation on an image.
#[derive(Debug, Clone, Copy)]
pub enum Job<'a> {
    /// Fill `data` from `offset`; may fill less.
    Read {
        /// Byte offset in the image.
        offset: u64,
        /// Where to.
        data: &'a [IoSlice],
        /// By which descriptor.
        path: Path,
    },
    /// Write `data` to `offset`; may write less.
    Write {
        /// Byte offset in the image.
        offset: u64,
        /// Where from.
        data: &'a [IoSlice],
        /// By which descriptor.
        path: Path,
        /// Whether it has to be on the device before it counts as done (a write-through disk).
        durable: bool,
    },
    /// Bring data, and the metadata needed to find it, to the device.
    Sync,
    /// Give the storage back; what is read there afterwards is zero (files), or anything (block devices).
    Discard {
        /// Byte offset in the image.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Give the storage back; what is read there afterwards is zero.
    Punch {
        /// Byte offset in the image.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Make it read as zero and keep the storage.
    Zero {
        /// Byte offset in the image.
        offset: u64,
        /// In bytes.
        len: u64,
    },
}

impl Job<'_> {
    /// Which of the disk's files it is for.
    #[inline]
    #[must_use]
    pub fn node(&self) -> usize {
        match self {
            Self::Read { path, .. } | Self::Write { path, .. } => path.node,
            _ => 0,
        }
    }
}
