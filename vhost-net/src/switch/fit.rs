//! Whether a driver takes a frame with the offloads its header asks for (virtio 1.2 section 5.1.6.4). Pure.

use virtio_bindings::virtio_net as net;

use crate::features as feature;
use crate::header::HEADER;

/// What a port has to have done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Nothing.
    AsIs,
    /// Its checksum completed.
    Complete,
    /// To be cut into segments.
    Cut,
}

/// What `header`, a checked one, means to a driver that accepted `features`.
#[inline]
#[must_use]
pub fn fit(features: u64, header: &[u8; HEADER]) -> Fit {
    let [flags, gso, ..] = *header;
    let has = |bit: u64| features & bit != 0;
    if flags & net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 == 0 {
        return Fit::AsIs;
    }
    let sums = has(feature::GUEST_CSUM);
    let ecn = net::VIRTIO_NET_HDR_GSO_ECN as u8;
    let takes = match u32::from(gso & !ecn) {
        net::VIRTIO_NET_HDR_GSO_NONE => return if sums { Fit::AsIs } else { Fit::Complete },
        net::VIRTIO_NET_HDR_GSO_TCPV4 => has(feature::GUEST_TSO4),
        net::VIRTIO_NET_HDR_GSO_TCPV6 => has(feature::GUEST_TSO6),
        _ => false,
    };
    let takes = takes && sums && (gso & ecn == 0 || has(feature::GUEST_ECN));
    if takes { Fit::AsIs } else { Fit::Cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offload_needs_its_feature() {
        let header = |flags: u8, gso: u8| {
            let mut header = [0; HEADER];
            [header[0], header[1]] = [flags, gso];
            header
        };
        let all = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
        for (flags, gso, needs, without) in [
            (1, 0, feature::GUEST_CSUM, Fit::Complete),
            (1, 1, feature::GUEST_TSO4, Fit::Cut),
            (1, 4, feature::GUEST_TSO6, Fit::Cut),
            (1, 0x81, feature::GUEST_ECN, Fit::Cut),
            (1, 1, feature::GUEST_CSUM, Fit::Cut),
        ] {
            assert_eq!(fit(all, &header(flags, gso)), Fit::AsIs);
            assert_eq!(fit(all & !needs, &header(flags, gso)), without);
        }
        assert_eq!(fit(0, &header(0, 0)), Fit::AsIs);
    }
}
