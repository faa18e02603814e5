//! Little-endian registers as bytes: what accesses of any width at any offset come down to.
//!
//! Used by every register block of the bus. Nothing here can fail: past the end reads as zero and writes vanish.

/// Copies `data` over `block` from `offset`.
pub(super) fn overlay(block: &mut [u8], offset: usize, data: &[u8]) {
    for (slot, byte) in block.iter_mut().skip(offset).zip(data) {
        *slot = *byte;
    }
}

/// Fills `out` from `block` at `offset`.
pub(super) fn extract(block: &[u8], offset: usize, out: &mut [u8]) {
    out.fill(0);
    for (byte, slot) in out.iter_mut().zip(block.iter().skip(offset)) {
        *byte = *slot;
    }
}

fn field<const N: usize>(block: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    extract(block, offset, &mut out);
    out
}

pub(super) fn le8(block: &[u8], offset: usize) -> u8 {
    u8::from_le_bytes(field(block, offset))
}

pub(super) fn le16(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(block, offset))
}

pub(super) fn le32(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(block, offset))
}

pub(super) fn le64(block: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(block, offset))
}

/// Whether an access of `len` bytes at `offset` touches the `width` bytes at `field`.
pub(super) fn touches(offset: usize, len: usize, field: usize, width: usize) -> bool {
    offset < field + width && field < offset.saturating_add(len)
}
