//! The device's configuration space and features: what a driver is told about the disk.
//!
//! `struct virtio_blk_config`, virtio 1.2 section 5.2.4, as bytes. Pure: made from a [`Disk`], changed by the
//! device alone.

use strata_virtio::spec;
use virtio_bindings::bindings::virtio_blk as blk;

use crate::disk::Disk;
use crate::request::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS};

/// Length of the structure up to the last field this device has.
pub const CONFIG_SIZE: usize = 60;
/// Where the write cache is switched (1: write back).
pub const WRITEBACK: usize = 32;

/// Most data buffers in a request: the least queue that frontends commonly make (128) less header and status.
const SEG_MAX: u32 = 126;
/// Most bytes in one of them: together less than the 4 GiB that a used element can count.
const SIZE_MAX: u32 = 4 << 20;

/// The features offered for a disk.
#[must_use]
pub fn features(disk: &Disk, queues: u16) -> u64 {
    let bit = |number: u32| 1u64 << number;
    let mut features = spec::F_VERSION_1
        | spec::F_INDIRECT_DESC
        | spec::F_EVENT_IDX
        | bit(blk::VIRTIO_BLK_F_SIZE_MAX)
        | bit(blk::VIRTIO_BLK_F_SEG_MAX)
        | bit(blk::VIRTIO_BLK_F_BLK_SIZE)
        | bit(blk::VIRTIO_BLK_F_TOPOLOGY)
        | bit(blk::VIRTIO_BLK_F_FLUSH);
    if queues > 1 {
        features |= bit(blk::VIRTIO_BLK_F_MQ);
    }
    if disk.image.read_only() {
        features |= bit(blk::VIRTIO_BLK_F_RO);
    } else {
        features |= bit(blk::VIRTIO_BLK_F_CONFIG_WCE)
            | bit(blk::VIRTIO_BLK_F_DISCARD)
            | bit(blk::VIRTIO_BLK_F_WRITE_ZEROES);
    }
    features
}

/// Whether the driver that accepted `features` and left the config byte at `writeback` may rely on a write only
/// when it is on the device.
#[must_use]
pub fn write_through(features: u64, writeback: u8) -> bool {
    let has = |number: u32| features & 1u64 << number != 0;
    // Section 5.2.5.2: without FLUSH a driver has no way to ask; with CONFIG_WCE the byte decides.
    !has(blk::VIRTIO_BLK_F_FLUSH) || (has(blk::VIRTIO_BLK_F_CONFIG_WCE) && writeback == 0)
}

/// Whether a driver that accepted `features` may write the config byte.
#[must_use]
pub fn cache_can_be_switched(features: u64) -> bool {
    features & 1u64 << blk::VIRTIO_BLK_F_CONFIG_WCE != 0
}

/// The structure for a disk with that many queues, write cache on.
#[must_use]
pub fn space(disk: &Disk, queues: u16) -> [u8; CONFIG_SIZE] {
    let geometry = &disk.geometry;
    let block = geometry.logical_block;
    let in_blocks = |bytes: u32| bytes / block;
    let exponent = (geometry.physical_block / block).trailing_zeros();
    let min_io = in_blocks(geometry.min_io).max(1 << exponent);
    let mut space = Writer::default();
    space.put(&disk.limits().capacity.to_le_bytes()); // capacity
    space.put(&SIZE_MAX.to_le_bytes()); // size_max
    space.put(&SEG_MAX.to_le_bytes()); // seg_max
    space.put(&[0; 4]); // geometry: not offered
    space.put(&block.to_le_bytes()); // blk_size
    space.put(&[exponent as u8, 0]); // topology: physical_block_exp, alignment_offset
    space.put(&u16::try_from(min_io).unwrap_or(1).to_le_bytes()); // min_io_size
    space.put(&in_blocks(geometry.opt_io).to_le_bytes()); // opt_io_size
    space.put(&[1, 0]); // writeback, unused0
    space.put(&queues.to_le_bytes()); // num_queues
    space.put(&MAX_SEGMENT_SECTORS.to_le_bytes()); // max_discard_sectors
    space.put(&(MAX_SEGMENTS as u32).to_le_bytes()); // max_discard_seg
    space.put(&(geometry.physical_block / 512).to_le_bytes()); // discard_sector_alignment
    space.put(&MAX_SEGMENT_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    space.put(&(MAX_SEGMENTS as u32).to_le_bytes()); // max_write_zeroes_seg
    space.put(&[1, 0, 0, 0]); // write_zeroes_may_unmap, unused1
    space.bytes
}

struct Writer {
    bytes: [u8; CONFIG_SIZE],
    at: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: [0; CONFIG_SIZE], at: 0 }
    }
}

impl Writer {
    fn put(&mut self, field: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
    }
}
