//! The guest's VLAN filter (virtio 1.2 section 5.1.6.5.3): which tags it wants to receive. Set by the control
//! queue, looked at by the receive queues for each frame. Off until the guest names the first VLAN, so that a
//! driver that never uses the filter is not cut off by it. Untagged frames always pass.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WORDS: usize = 4096 / 64;
/// TPIDs of a VLAN tag: 802.1Q and 802.1ad.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// Where the TPID, and behind it the tag, is in a frame.
const TAG_AT: usize = 12;

/// 4096 VLANs, each wanted or not.
#[derive(Debug)]
pub struct VlanFilter {
    on: AtomicBool,
    wanted: [AtomicU64; WORDS],
}

impl Default for VlanFilter {
    fn default() -> Self {
        Self { on: AtomicBool::new(false), wanted: [const { AtomicU64::new(0) }; WORDS] }
    }
}

impl VlanFilter {
    /// Lets VLAN `id` through, or no longer; false if there is no such VLAN.
    pub fn set(&self, id: u16, wanted: bool) -> bool {
        let Some(word) = self.wanted.get(usize::from(id) / 64) else { return false };
        let bit = 1 << (id % 64);
        if wanted {
            word.fetch_or(bit, Ordering::Relaxed);
            self.on.store(true, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        true
    }

    /// Everything passes again.
    pub fn clear(&self) {
        self.on.store(false, Ordering::Relaxed);
        for word in &self.wanted {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a frame passes; `read` gives bytes of it, and says whether it could.
    #[inline]
    pub fn passes(&self, read: impl FnOnce(usize, &mut [u8]) -> bool) -> bool {
        if !self.on.load(Ordering::Relaxed) {
            return true;
        }
        let mut bytes = [0; 4];
        if !read(TAG_AT, &mut bytes) {
            return true;
        }
        let [t0, t1, v0, v1] = bytes;
        if !TAGS.contains(&[t0, t1]) {
            return true;
        }
        let id = u16::from_be_bytes([v0, v1]) & 0xfff;
        let word = self.wanted.get(usize::from(id) / 64).map_or(0, |word| word.load(Ordering::Relaxed));
        word & (1 << (id % 64)) != 0
    }
}

#[cfg(test)]
#[path = "vlan_test.rs"]
mod vlan_test;
