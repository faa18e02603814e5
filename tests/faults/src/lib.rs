//! Faults under verified load, without a guest: what `load-vmm` (the vmm's own frontend with a driver of ours in place
//! of a guest) and `fault-campaign` (which breaks things around it) share.

mod ledger;
mod random;
mod report;

pub use ledger::{Block, Ledger};
pub use random::Random;
pub use report::{Disk, Nic, Report};

/// Bytes of a block that is written and read whole.
pub const BLOCK: usize = 4096;

/// What a block holds after its `version`th write: its number and the version, then bytes that follow from both.
/// Version 0 is a block never written.
#[must_use]
pub fn pattern(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let mut random = Random::new(block.rotate_left(32) ^ version);
    let mut bytes = [block.to_le_bytes(), version.to_le_bytes()].concat();
    while bytes.len() < BLOCK {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes
}
