//! What a queue pair counts: frames, bytes, and every frame that was not passed on, by cause. Written by the
//! pair's thread, read at any time by whoever reports. A frame is either counted as passed or in exactly one of
//! the drops.

use std::sync::Arc;

use crate::counted::{self, Counted};
use crate::guard::Spoof;
use strata_virtio::vring::{Counter, QueueStats};
use strata_virtio::worker::WorkerStats;

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
    /// Dropped: refused by the guard.
    pub guard: GuardStats,
    /// Times the rate limit was reached with frames to send.
    pub throttled: Counter,
}

/// Frames a guard refused, by what they claimed; of a card or of a switch's port.
#[derive(Debug, Default)]
pub struct GuardStats {
    /// Sent with an Ethernet address that is not the card's.
    pub mac: Counter,
    /// Sent with an IP address that is not the guest's.
    pub ip: Counter,
    /// Sent as a DHCP server.
    pub dhcp: Counter,
    /// Sent as an IPv6 router.
    pub ra: Counter,
    /// The guard could not see what it is.
    pub unclear: Counter,
}

impl GuardStats {
    /// Counts a frame.
    #[cold]
    pub(crate) fn refused(&self, why: Spoof) {
        match why {
            Spoof::Mac => &self.mac,
            Spoof::Ip => &self.ip,
            Spoof::Dhcp => &self.dhcp,
            Spoof::Router => &self.ra,
            Spoof::Unclear => &self.unclear,
        }
        .add(1);
    }

    /// Name and counter.
    pub(crate) fn list(&self) -> [(&'static str, &Counter); 5] {
        [
            ("tx_drop_guard_mac", &self.mac),
            ("tx_drop_guard_ip", &self.ip),
            ("tx_drop_guard_dhcp", &self.dhcp),
            ("tx_drop_guard_ra", &self.ra),
            ("tx_drop_guard_unclear", &self.unclear),
        ]
    }
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
    /// Times the rate limit was reached; the tap is not read then.
    pub throttled: Counter,
}

/// All of a pair's counters, for as long as the device lives.
#[derive(Debug, Clone, Default)]
pub struct PairStats {
    /// Towards the guest.
    pub rx: Arc<RxStats>,
    /// From the guest.
    pub tx: Arc<TxStats>,
    /// The receive ring.
    pub rx_ring: Arc<QueueStats>,
    /// The transmit ring.
    pub tx_ring: Arc<QueueStats>,
    /// The thread.
    pub thread: Arc<WorkerStats>,
}

impl PairStats {
    /// Name and value of every counter. The names are those of the control interface and, with `strata_net_` and
    /// `_total` around them, of the metrics.
    #[must_use]
    pub fn list(&self) -> Counted {
        let Self { rx, tx, rx_ring, tx_ring, thread } = self;
        let counters: [(&'static str, &Counter); 26] = [
            ("tx_frames", &tx.frames),
            ("tx_bytes", &tx.bytes),
            ("tx_drop_short", &tx.short),
            ("tx_drop_long", &tx.long),
            ("tx_drop_header", &tx.lies),
            ("tx_drop_refused", &tx.refused),
            ("tx_drop_full", &tx.full),
            ("tx_drop_link", &tx.link),
            ("tx_throttled", &tx.throttled),
            ("tx_malformed", &tx_ring.malformed),
            ("tx_kicks", &tx_ring.kicks),
            ("tx_calls", &tx_ring.calls),
            ("rx_frames", &rx.frames),
            ("rx_bytes", &rx.bytes),
            ("rx_copied", &rx.copied),
            ("rx_drop_no_room", &rx.no_room),
            ("rx_drop_vlan", &rx.vlan),
            ("rx_drop_stopped", &rx.stopped),
            ("rx_starved", &rx.starved),
            ("rx_throttled", &rx.throttled),
            ("rx_malformed", &rx_ring.malformed),
            ("rx_kicks", &rx_ring.kicks),
            ("rx_calls", &rx_ring.calls),
            ("poll_hits", &thread.poll_hits),
            ("poll_misses", &thread.poll_misses),
            ("sleeps", &thread.sleeps),
        ];
        counters.into_iter().chain(tx.guard.list()).map(|(name, counter)| (name, counter.get())).collect()
    }
}

/// The counters of all pairs as Prometheus text (exposition format 0.0.4).
#[must_use]
pub fn prometheus(nic: &str, pairs: &[PairStats]) -> String {
    let nic = nic.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let rows: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(pair, stats)| (format!("nic=\"{nic}\",pair=\"{pair}\""), stats.list()))
        .collect();
    counted::prometheus("strata_net", &rows)
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod stats_test;
