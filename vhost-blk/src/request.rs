//! What a guest asks for: a descriptor chain becomes a checked [`Request`] that owns all its completion needs.
//!
//! Guest memory is read here, once; nothing of a request is looked at again afterwards except the data itself.
//! Called by [`crate::server`]. Life: `parse -> (engine) -> answer`; a request that is never answered is a bug.
//!
//! Refuses, with the status the specification has for it: unknown types (UNSUPP), sectors outside the disk,
//! lengths that are not whole sectors, writes to a read-only disk, segments with unknown flags (IOERR or
//! UNSUPP). A chain without room for a status byte cannot be told anything; it is handed back with length 0.
//!
//! Layout (virtio 1.2 section 5.2.6): readable `type: le32, reserved: le32, sector: le64`, then data of a write
//! or segments of a discard; writable data of a read or an identifier, then one status byte. Where descriptors
//! end means nothing (section 2.7.4.2).

mod answer;

use strata_virtio::chain::{Chain, Short};
use strata_virtio::memory::IoSlice;
use virtio_bindings::bindings::virtio_blk as spec;

use self::answer::StatusByte;
pub use self::answer::{Answer, Fault, Refusal, Status};
use crate::image::SECTOR;

#[cfg(test)]
#[path = "request_test.rs"]
mod request_test;

const HEADER: usize = 16;
const SEGMENT: usize = 16;
const WRITE_ZEROES_UNMAP: u32 = 1;

/// Length of a serial number, padded with zeroes.
pub const ID_BYTES: usize = spec::VIRTIO_BLK_ID_BYTES as usize;
/// Most segments of one discard or write-zeroes request; offered as max_discard_seg and max_write_zeroes_seg.
pub const MAX_SEGMENTS: usize = 16;
/// Most sectors of one segment (256 MiB), so that one request is not served for minutes.
pub const MAX_SEGMENT_SECTORS: u32 = 1 << 19;

/// What may be asked of this disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In sectors.
    pub capacity: u64,
    /// Whether everything that changes it is refused.
    pub read_only: bool,
    /// Logical block size in sectors; discard and write-zeroes are whole blocks.
    pub block_sectors: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill `data` from byte `offset`.
    Read {
        /// In bytes from the start of the disk.
        offset: u64,
    },
    /// Write `data` to byte `offset`.
    Write {
        /// In bytes from the start of the disk.
        offset: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Give the serial number, `len` bytes of it.
    GetId,
    /// The contents of `ranges` are not needed any more.
    Discard,
    /// The contents of `ranges` become zeroes.
    WriteZeroes,
}

/// A stretch of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// In bytes from the start of the disk.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
    /// Whether its storage may be given back.
    pub unmap: bool,
}

/// One request, checked. Reused: the vectors keep their room from one request to the next.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Guest memory to fill or to write out; empty for the others.
    pub data: Vec<IoSlice>,
    /// Bytes in `data` (less than 4 GiB), or of the serial number asked for.
    pub len: u64,
    /// What a discard or write-zeroes is about.
    pub ranges: Vec<Range>,
    /// How to answer; taken by whoever does.
    pub answer: Option<Answer>,
}

impl Default for Request {
    fn default() -> Self {
        Self { op: Op::Flush, data: Vec::new(), len: 0, ranges: Vec::new(), answer: None }
    }
}

impl Request {
    /// Takes in a chain.
    ///
    /// # Errors
    /// The guest's fault; nothing is left to do for the chain but to answer it so.
    #[inline]
    pub fn parse(&mut self, chain: &Chain, limits: &Limits) -> Result<(), Fault> {
        self.data.clear();
        self.ranges.clear();
        self.len = 0;
        self.answer = None;
        let Some((answer, writable)) = find_status(chain) else {
            return Err(Fault::Unanswerable { head: chain.head() });
        };
        match self.fill(chain, writable, limits) {
            Ok(op) => {
                self.op = op;
                self.answer = Some(answer);
                Ok(())
            }
            Err((status, why)) => Err(Fault::Refused { answer, status, why }),
        }
    }

    fn fill(&mut self, chain: &Chain, writable: usize, limits: &Limits) -> Result<Op, (Status, Refusal)> {
        let mut header = [0u8; HEADER];
        let readable = chain.readable_len();
        if chain.copy_out(0, &mut header).is_err() {
            return Err((Status::IoError, Refusal::ShortHeader(readable)));
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let data = readable.saturating_sub(HEADER);
        let changes =
            |op| if limits.read_only { Err((Status::IoError, Refusal::ReadOnly(kind))) } else { Ok(op) };
        match kind {
            spec::VIRTIO_BLK_T_IN => {
                let offset = check_extent(sector, writable, limits)?;
                self.len = collected(chain.writable_range(0, writable, &mut self.data), writable)?;
                Ok(Op::Read { offset })
            }
            spec::VIRTIO_BLK_T_OUT => {
                changes(())?;
                let offset = check_extent(sector, data, limits)?;
                self.len = collected(chain.readable_range(HEADER, data, &mut self.data), data)?;
                Ok(Op::Write { offset })
            }
            spec::VIRTIO_BLK_T_FLUSH => Ok(Op::Flush),
            spec::VIRTIO_BLK_T_GET_ID => {
                self.len = writable.min(ID_BYTES) as u64;
                Ok(Op::GetId)
            }
            spec::VIRTIO_BLK_T_DISCARD => {
                changes(())?;
                self.read_segments(chain, data, limits, false)?;
                Ok(Op::Discard)
            }
            spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                changes(())?;
                self.read_segments(chain, data, limits, true)?;
                Ok(Op::WriteZeroes)
            }
            other => Err((Status::Unsupported, Refusal::UnknownType(other))),
        }
    }

    /// `struct virtio_blk_discard_write_zeroes { le64 sector; le32 num_sectors; le32 flags; }`, an array of them.
    fn read_segments(
        &mut self,
        chain: &Chain,
        bytes: usize,
        limits: &Limits,
        zeroes: bool,
    ) -> Result<(), (Status, Refusal)> {
        let count = bytes / SEGMENT;
        if !bytes.is_multiple_of(SEGMENT) || count == 0 || count > MAX_SEGMENTS {
            return Err((Status::IoError, Refusal::SegmentCount(bytes)));
        }
        for index in 0..count {
            let mut segment = [0u8; SEGMENT];
            if chain.copy_out(HEADER + index * SEGMENT, &mut segment).is_err() {
                return Err((Status::IoError, Refusal::SegmentCount(bytes)));
            }
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            // Section 5.2.6.2: unknown flags, and unmap in a discard, are answered with UNSUPP.
            let known = if zeroes { WRITE_ZEROES_UNMAP } else { 0 };
            if flags & !known != 0 {
                return Err((Status::Unsupported, Refusal::SegmentFlags(flags)));
            }
            let whole_blocks = sector.is_multiple_of(limits.block_sectors)
                && u64::from(sectors).is_multiple_of(limits.block_sectors);
            if sectors > MAX_SEGMENT_SECTORS || !whole_blocks {
                return Err((Status::IoError, Refusal::SegmentShape { sector, sectors }));
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = check_range(sector, len, limits)?;
            if len > 0 {
                self.ranges.push(Range { offset, len, unmap: !zeroes || flags & WRITE_ZEROES_UNMAP != 0 });
            }
        }
        Ok(())
    }
}

/// The status byte and how many writable bytes come before it.
fn find_status(chain: &Chain) -> Option<(Answer, usize)> {
    let last = chain.writable().iter().rev().find(|part| !part.is_empty())?;
    let status = StatusByte(last.skip(last.len() - 1));
    let total = chain.writable_len();
    let writable = u32::try_from(total).ok()?;
    Some((Answer { head: chain.head(), writable, status }, total.checked_sub(1)?))
}

/// Whole sectors, inside the disk; the offset in bytes.
fn check_extent(sector: u64, len: usize, limits: &Limits) -> Result<u64, (Status, Refusal)> {
    if !(len as u64).is_multiple_of(SECTOR) {
        return Err((Status::IoError, Refusal::PartialSector(len)));
    }
    check_range(sector, len as u64, limits)
}

fn check_range(sector: u64, len: u64, limits: &Limits) -> Result<u64, (Status, Refusal)> {
    sector
        .checked_add(len / SECTOR)
        .filter(|end| *end <= limits.capacity)
        .and_then(|_| sector.checked_mul(SECTOR))
        .ok_or((Status::IoError, Refusal::OutOfRange { sector, len }))
}

/// The lengths asked for come from the chain itself, so a short one does not happen; it is refused all the same.
fn collected(result: Result<(), Short>, len: usize) -> Result<u64, (Status, Refusal)> {
    result.map(|()| len as u64).map_err(|short| (Status::IoError, Refusal::ShortHeader(short.has)))
}
