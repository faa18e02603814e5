//! What a queue pair counts: frames, bytes, and every frame that was not passed on, by cause. Written by the
//! pair's thread, read at any time by whoever reports. A frame is either counted as passed or in exactly one of
//! the drops.

use strata_virtio::vring::Counter;

/// From the guest to the tap.
#[derive(Debug, Default)]
pub struct TxStats {
    /// Frames the tap took.
    pub frames: Counter,
    /// Their bytes, headers not counted.
    pub bytes: Counter,
    /// Dropped: no whole Ethernet header.
    pub short: Counter,
    /// Dropped: longer than any frame, or in more pieces than the kernel takes at once.
    pub long: Counter,
    /// Dropped: its virtio-net header cannot be true.
    pub lies: Counter,
    /// Dropped: the tap's kernel refused it.
    pub refused: Counter,
    /// Dropped: the tap's buffer was full.
    pub full: Counter,
    /// Dropped: the link is down, or the tap is gone.
    pub link: Counter,
}

/// From the tap to the guest.
#[derive(Debug, Default)]
pub struct RxStats {
    /// Frames the guest got.
    pub frames: Counter,
    /// Their bytes, headers not counted.
    pub bytes: Counter,
    /// Of these, frames that went through memory of ours, because they were larger than those before.
    pub copied: Counter,
    /// Dropped: larger than the guest's buffers can be.
    pub no_room: Counter,
    /// Dropped: of a VLAN the guest filters out.
    pub vlan: Counter,
    /// Dropped: taken from the tap when the queue was stopped, and not yet passed on.
    pub stopped: Counter,
    /// Times the guest had no buffers; the tap is not read then.
    pub starved: Counter,
}

impl TxStats {
    /// Name and value of every counter.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 8] {
        [
            ("tx_frames", self.frames.get()),
            ("tx_bytes", self.bytes.get()),
            ("tx_drop_short", self.short.get()),
            ("tx_drop_long", self.long.get()),
            ("tx_drop_header", self.lies.get()),
            ("tx_drop_refused", self.refused.get()),
            ("tx_drop_full", self.full.get()),
            ("tx_drop_link", self.link.get()),
        ]
    }
}

impl RxStats {
    /// Name and value of every counter.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 7] {
        [
            ("rx_frames", self.frames.get()),
            ("rx_bytes", self.bytes.get()),
            ("rx_copied", self.copied.get()),
            ("rx_drop_no_room", self.no_room.get()),
            ("rx_drop_vlan", self.vlan.get()),
            ("rx_drop_stopped", self.stopped.get()),
            ("rx_starved", self.starved.get()),
        ]
    }
}
