//! Counters of a port. Written by the switch's thread, read by anyone. A frame that comes in is counted once, in
//! `tx_frames` or in one of the `tx_drop`s; what each other port makes of it is counted there, once as well.

use std::sync::Arc;

use strata_virtio::vring::{Counter, QueueStats};

use crate::counted::{self, Counted};
use crate::stats::GuardStats;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// What happened at a port: `tx` is from its guest, `rx` to it.
        #[derive(Debug, Default)]
        pub struct PortStats {
            $($(#[doc = $doc])* pub $name: Counter,)*
            /// Dropped: refused by the port's guard.
            pub guard: GuardStats,
            /// The receive ring.
            pub rx_ring: Arc<QueueStats>,
            /// The transmit ring.
            pub tx_ring: Arc<QueueStats>,
        }

        impl PortStats {
            /// Name and value of every counter.
            #[must_use]
            pub fn list(&self) -> Counted {
                let Self { rx_ring, tx_ring, .. } = self;
                let mut list = vec![
                    $((stringify!($name), self.$name.get()),)*
                    ("tx_malformed", tx_ring.malformed.get()),
                    ("tx_kicks", tx_ring.kicks.get()),
                    ("tx_calls", tx_ring.calls.get()),
                    ("rx_malformed", rx_ring.malformed.get()),
                    ("rx_kicks", rx_ring.kicks.get()),
                    ("rx_calls", rx_ring.calls.get()),
                ];
                list.extend(self.guard.list().map(|(name, counter)| (name, counter.get())));
                list
            }
        }
    };
}

counters! {
    /// Frames that came in.
    tx_frames,
    /// Their bytes, headers not counted.
    tx_bytes,
    /// Of these, those sent to every port of their VLAN: to a group, or to an address not known.
    tx_flooded,
    /// Dropped: no whole Ethernet header.
    tx_drop_short,
    /// Dropped: longer than any frame.
    tx_drop_long,
    /// Dropped: its virtio-net header cannot be true.
    tx_drop_header,
    /// Dropped: of a VLAN that is not the port's.
    tx_drop_vlan,
    /// Dropped: from an address that cannot be a sender's.
    tx_drop_source,
    /// Dropped: for the switch itself, which has no protocols (IEEE 802.1Q table 8-1: spanning tree, pause, LLDP).
    tx_drop_reserved,
    /// Dropped: for an address at the same port, or at one that is isolated as this one is.
    tx_drop_filtered,
    /// Dropped: the link is down.
    tx_drop_link,
    /// Frames the guest got.
    rx_frames,
    /// Their bytes, headers not counted.
    rx_bytes,
    /// Of these, frames that waited for buffers.
    rx_waited,
    /// Of these, large segments that were cut because the guest does not take them.
    rx_cut,
    /// Of these, frames whose checksum was completed because the guest does not do it.
    rx_completed,
    /// Dropped: the guest has no buffers, and enough waits already.
    rx_drop_full,
    /// Dropped: larger than the guest's buffers can be.
    rx_drop_no_room,
    /// Dropped: a large segment that could not be cut for this guest.
    rx_drop_uncut,
    /// Dropped: over the port's rate.
    rx_drop_rate,
    /// Dropped: the link is down or nobody is there.
    rx_drop_link,
    /// Dropped: waiting when the queue was stopped.
    rx_drop_stopped,
    /// Addresses that came here from another port.
    moved,
    /// Times an address was not learnt because the port has as many as it may.
    table_full,
}

/// All ports' counters as Prometheus text (exposition format 0.0.4).
#[must_use]
pub fn prometheus(switch: &str, ports: &[(String, Arc<PortStats>)]) -> String {
    // Names of switches and ports have no character that would have to be escaped.
    let rows: Vec<_> = ports
        .iter()
        .map(|(port, stats)| (format!("switch=\"{switch}\",port=\"{port}\""), stats.list()))
        .collect();
    counted::prometheus("strata_switch", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_line_for_every_port() {
        let ports: Vec<_> = ["a", "b"].map(|name| (name.to_owned(), Arc::new(PortStats::default()))).into();
        ports[1].1.rx_drop_full.add(7);
        let text = prometheus("lab0", &ports);
        assert!(text.contains("strata_switch_rx_drop_full_total{switch=\"lab0\",port=\"b\"} 7\n"), "{text}");
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2 * ports[0].1.list().len());
    }
}
