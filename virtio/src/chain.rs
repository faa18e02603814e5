//! One request as the driver posted it: a chain of descriptors, walked once into host addresses.
//!
//! Filled by [`crate::queue::Queue::pop`], read by devices. Refuses, with a [`ChainError`], every shape
//! virtio 1.2 section 2.7.5 forbids: chains longer than their table (loops), indices outside it, indirect
//! tables that are nested, continued, or of odd length, device-readable buffers behind device-writable ones,
//! addresses that are not guest memory, more than 4 GiB in all. A buffer of no bytes is skipped.

use std::sync::Arc;

use crate::memory::{GuestSlice, IoSlice, Memory, MemoryError};
use crate::ring::{Desc, Ring, read_desc_at};
use crate::spec::{DESC_INDIRECT, DESC_NEXT, DESC_SIZE, DESC_WRITE};

/// The most segments a chain may have on each side: what readv and writev take at once (UIO_MAXIOV).
pub const MAX_SEGMENTS: usize = 1024;

/// What is wrong with a chain. The guest's fault; the request is to be answered with length 0.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// More descriptors than its table has: it loops.
    #[error("the chain is longer than its table of {size} descriptors")]
    TooLong {
        /// Descriptors in the table.
        size: u32,
    },
    /// `next` leads outside the table.
    #[error("descriptor {next} is outside the table of {size}")]
    NextOutOfRange {
        /// The index given.
        next: u16,
        /// Descriptors in the table.
        size: u32,
    },
    /// An indirect descriptor where the feature was not negotiated.
    #[error("an indirect descriptor, but INDIRECT_DESC was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("an indirect descriptor inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor that says the chain goes on.
    #[error("an indirect descriptor with the NEXT flag")]
    IndirectContinued,
    /// An indirect table of no descriptors, a broken number of them, or more than indices can reach.
    #[error("an indirect table of {len} bytes; a multiple of 16 from 16 to 1048576 is allowed")]
    IndirectLength {
        /// Length in bytes.
        len: u32,
    },
    /// A buffer the device is to read behind one it is to write.
    #[error("a readable buffer behind a writable one")]
    Order,
    /// An address that is not guest memory, or too many pieces.
    #[error("a buffer of the chain cannot be used")]
    Memory(#[source] MemoryError),
    /// More bytes than a used length can express.
    #[error("the chain's buffers add up to {total:#x} bytes; less than 4 GiB is allowed")]
    TooLarge {
        /// Sum of all buffers.
        total: u64,
    },
}

/// The chain has fewer bytes at that place than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes at offset {offset} of a buffer of {has}")]
pub struct Short {
    /// Offset asked for.
    pub offset: usize,
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes there are in all.
    pub has: usize,
}

/// A request's buffers. Made once and filled again and again; after the first few requests nothing allocates.
/// The addresses stay valid while the chain, or anything else, holds the memory.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    pub(crate) resubmitted: bool,
    readable: Vec<IoSlice>,
    writable: Vec<IoSlice>,
    readable_len: u64,
    writable_len: u64,
    memory: Option<Arc<Memory>>,
}

impl Chain {
    /// An empty one with room for ordinary requests.
    #[must_use]
    pub fn new() -> Self {
        Self { readable: Vec::with_capacity(32), writable: Vec::with_capacity(32), ..Self::default() }
    }

    /// The index that names the request in the used ring.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Whether the request was in flight when an earlier backend ended (inflight region).
    #[inline]
    #[must_use]
    pub fn is_resubmitted(&self) -> bool {
        self.resubmitted
    }

    /// What the device reads, in order; no empty pieces.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[IoSlice] {
        &self.readable
    }

    /// What the device writes, in order; no empty pieces.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[IoSlice] {
        &self.writable
    }

    /// Bytes the device may read.
    #[inline]
    #[must_use]
    pub fn readable_len(&self) -> usize {
        self.readable_len as usize
    }

    /// Bytes the device may write.
    #[inline]
    #[must_use]
    pub fn writable_len(&self) -> usize {
        self.writable_len as usize
    }

    /// Copies from the readable part, from `offset` on.
    ///
    /// # Errors
    /// The part ends before `out` is full; nothing has been copied.
    #[inline]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<(), Short> {
        check(offset, out.len(), self.readable_len)?;
        let (mut skip, mut rest) = (offset, out);
        for piece in &self.readable {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let copied = GuestSlice::from_io(*piece).read(skip, rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
            skip = 0;
        }
        Ok(())
    }

    /// Copies into the writable part, from `offset` on.
    ///
    /// # Errors
    /// The part ends before all of `data` is in; nothing has been copied.
    #[inline]
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> Result<(), Short> {
        check(offset, data.len(), self.writable_len)?;
        let (mut skip, mut rest) = (offset, data);
        for piece in &self.writable {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let copied = GuestSlice::from_io(*piece).write(skip, rest);
            rest = rest.get(copied..).unwrap_or_default();
            skip = 0;
        }
        Ok(())
    }

    /// Copies back from the writable part, from `offset` on: what the device (or the kernel for it) put there.
    /// The driver may have changed it since.
    ///
    /// # Errors
    /// The part ends before `out` is full; nothing has been copied.
    #[inline]
    pub fn copy_back(&self, offset: usize, out: &mut [u8]) -> Result<(), Short> {
        check(offset, out.len(), self.writable_len)?;
        let mut rest = out;
        pieces(&self.writable, offset, rest.len(), |piece| {
            let copied = GuestSlice::from_io(piece).read(0, rest);
            rest = std::mem::take(&mut rest).get_mut(copied..).unwrap_or_default();
        });
        Ok(())
    }

    /// Copies `len` bytes from `source`'s readable part, from `from` on, straight into the writable part, from `offset`
    /// on: from one guest's memory to another's, without a stop.
    ///
    /// # Errors
    /// Either part ends earlier; nothing has been copied.
    #[inline]
    pub fn copy_across(&self, offset: usize, source: &Self, from: usize, len: usize) -> Result<(), Short> {
        check(offset, len, self.writable_len)?;
        check(from, len, source.readable_len)?;
        let mut at = offset;
        pieces(&source.readable, from, len, |piece| {
            let (mut piece, part) = (piece, piece.len());
            pieces(&self.writable, at, part, |target| {
                GuestSlice::from_io(piece).copy_to(&GuestSlice::from_io(target));
                piece = piece.skip(target.len());
            });
            at += part;
        });
        Ok(())
    }

    /// Sets `len` bytes of the writable part to zero, from `offset` on.
    ///
    /// # Errors
    /// The part ends earlier; nothing has been written.
    pub fn zero(&self, offset: usize, len: usize) -> Result<(), Short> {
        check(offset, len, self.writable_len)?;
        pieces(&self.writable, offset, len, |piece| GuestSlice::from_io(piece).fill(0));
        Ok(())
    }

    /// Appends the pieces of `len` readable bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// The part ends earlier; `out` is untouched.
    #[inline]
    pub fn readable_range(&self, offset: usize, len: usize, out: &mut Vec<IoSlice>) -> Result<(), Short> {
        check(offset, len, self.readable_len)?;
        pieces(&self.readable, offset, len, |piece| out.push(piece));
        Ok(())
    }

    /// Appends the pieces of `len` writable bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// The part ends earlier; `out` is untouched.
    #[inline]
    pub fn writable_range(&self, offset: usize, len: usize, out: &mut Vec<IoSlice>) -> Result<(), Short> {
        check(offset, len, self.writable_len)?;
        pieces(&self.writable, offset, len, |piece| out.push(piece));
        Ok(())
    }

    /// Walks the chain that begins at `head`; `head` is inside the table.
    #[inline]
    pub(crate) fn fill(
        &mut self,
        ring: &Ring,
        memory: &Arc<Memory>,
        head: u16,
        indirect: bool,
    ) -> Result<(), ChainError> {
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
        self.clear(head);
        let walked = self.walk(ring, memory, head, indirect);
        if walked.is_err() {
            self.clear(head);
        }
        walked
    }

    #[inline]
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }

    #[inline]
    fn walk(&mut self, ring: &Ring, memory: &Memory, head: u16, indirect: bool) -> Result<(), ChainError> {
        let size = u32::from(ring.size());
        let mut index = head;
        for _ in 0..size {
            let desc = ring.desc(index).ok_or(ChainError::NextOutOfRange { next: index, size })?;
            if desc.flags & DESC_INDIRECT != 0 {
                return match (indirect, desc.flags & DESC_NEXT) {
                    (false, _) => Err(ChainError::IndirectNotNegotiated),
                    (true, 0) => self.walk_indirect(memory, desc.addr, desc.len),
                    (true, _) => Err(ChainError::IndirectContinued),
                };
            }
            self.add(memory, desc)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong { size })
    }

    #[inline]
    fn walk_indirect(&mut self, memory: &Memory, table: u64, len: u32) -> Result<(), ChainError> {
        let size = len / DESC_SIZE as u32;
        // An index has 16 bits; a longer table could not be used up.
        if !len.is_multiple_of(DESC_SIZE as u32) || size == 0 || size > 1 << 16 {
            return Err(ChainError::IndirectLength { len });
        }
        // Most tables lie in one region and are aligned; then no descriptor needs a lookup.
        let whole = memory.slice(table, len as usize).ok();
        let mut index = 0u16;
        for _ in 0..size {
            if u32::from(index) >= size {
                return Err(ChainError::NextOutOfRange { next: index, size });
            }
            let desc = match whole.and_then(|slice| read_desc_at(slice, index)) {
                Some(desc) => desc,
                None => {
                    let mut bytes = [0; DESC_SIZE as usize];
                    let at = table.wrapping_add(u64::from(index) * DESC_SIZE);
                    memory.read_at(at, &mut bytes).map_err(ChainError::Memory)?;
                    Desc::from_bytes(bytes)
                }
            };
            if desc.flags & DESC_INDIRECT != 0 {
                return Err(ChainError::IndirectNested);
            }
            self.add(memory, desc)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong { size })
    }

    #[inline]
    fn add(&mut self, memory: &Memory, desc: Desc) -> Result<(), ChainError> {
        let list = if desc.flags & DESC_WRITE != 0 {
            self.writable_len += u64::from(desc.len);
            &mut self.writable
        } else {
            if !self.writable.is_empty() {
                return Err(ChainError::Order);
            }
            self.readable_len += u64::from(desc.len);
            &mut self.readable
        };
        let total = self.readable_len + self.writable_len;
        if total > u64::from(u32::MAX) {
            return Err(ChainError::TooLarge { total });
        }
        memory.segments(desc.addr, desc.len as usize, MAX_SEGMENTS, list).map_err(ChainError::Memory)
    }
}

#[inline]
fn check(offset: usize, wanted: usize, has: u64) -> Result<(), Short> {
    let has = has as usize;
    match offset.checked_add(wanted) {
        Some(end) if end <= has => Ok(()),
        _ => Err(Short { offset, wanted, has }),
    }
}

/// Calls `take` with the pieces of `len` bytes from `offset` on; the caller has checked that they are there.
#[inline]
fn pieces(list: &[IoSlice], offset: usize, len: usize, mut take: impl FnMut(IoSlice)) {
    let (mut skip, mut left) = (offset, len);
    for piece in list {
        if left == 0 {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let part = piece.skip(skip).take(left);
        left -= part.len();
        skip = 0;
        take(part);
    }
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod chain_test;
