#![allow(unsafe_code)] // one store: the status byte, into guest memory that the parser has bounds-checked
//! How a request is answered, and what is refused with which words.

use strata_virtio::memory::{IoSlice, Memory};
use virtio_bindings::bindings::virtio_blk as spec;

use super::{HEADER, MAX_SEGMENTS, SEGMENT};
use crate::image::SECTOR;

/// How a request ended (virtio 1.2 section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed: by the device, or because it reaches outside the disk.
    IoError,
    /// Not something this device does.
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        (match self {
            Self::Ok => spec::VIRTIO_BLK_S_OK,
            Self::IoError => spec::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => spec::VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// Where the answer goes: the last writable byte of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatusByte(pub(super) IoSlice);

/// A chain that can be answered: its head, its status byte, and what the used ring will say.
#[derive(Debug)]
pub struct Answer {
    pub(super) head: u16,
    /// Bytes of the chain's writable part, status byte included.
    pub(super) writable: u32,
    pub(super) status: StatusByte,
}

impl Answer {
    /// Writes the status byte and returns head and length for the used ring.
    ///
    /// The length counts the whole writable part also where a read failed: the driver must not look at the data
    /// then, and drivers that check the length expect the status byte to be covered.
    ///
    /// `memory` is what the request was parsed from; taking it shows that it is still mapped.
    #[inline]
    #[must_use]
    pub fn write(self, _memory: &Memory, status: Status) -> (u16, u32) {
        let at = self.status.0.as_ptr();
        // SAFETY: `at` leads to one byte that `Chain` resolved inside `_memory`, which is borrowed, so mapped.
        // The guest may race with the store; it is a single byte, volatile, and no reference is made.
        unsafe { at.write_volatile(status.byte()) };
        (self.head, self.writable)
    }
}

/// A guest's fault. It knows how it is to be answered.
#[derive(Debug)]
pub enum Fault {
    /// No byte for a status: the head goes back with length 0.
    Unanswerable {
        /// Head of the chain.
        head: u16,
    },
    /// Refused with a status.
    Refused {
        /// Where to answer.
        answer: Answer,
        /// What to answer.
        status: Status,
        /// For the (rate-limited) log.
        why: Refusal,
    },
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fewer readable bytes than a header has.
    #[error("a request header of {0} bytes; it has {HEADER}")]
    ShortHeader(usize),
    /// A type that was not offered.
    #[error("request type {0} is not known")]
    UnknownType(u32),
    /// Data is not a whole number of sectors.
    #[error("{0} bytes of data are not whole sectors of {SECTOR} bytes")]
    PartialSector(usize),
    /// Outside the disk.
    #[error("{len} bytes at sector {sector} reach beyond the disk")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A change to a read-only disk.
    #[error("request type {0} would change a read-only disk")]
    ReadOnly(u32),
    /// Segments of a discard or write-zeroes request.
    #[error("{0} bytes of segments; 1 to {MAX_SEGMENTS} of {SEGMENT} bytes are allowed")]
    SegmentCount(usize),
    /// A segment that is too long or not made of whole blocks.
    #[error("a segment of {sectors} sectors at sector {sector}: too long, or not whole blocks")]
    SegmentShape {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u32,
    },
    /// Flags that are not defined for the request.
    #[error("segment flags {0:#x} are not known for this request")]
    SegmentFlags(u32),
}
