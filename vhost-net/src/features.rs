//! What the device offers and what a driver's choice means for the tap. Called by [`crate::device`] and, for
//! the checks on headers, by [`crate::header`]. Refuses nothing: bits that were not offered are masked away.

use strata_virtio::spec::RING_FEATURES;
use virtio_bindings::virtio_net as net;

use crate::tap::offload;

/// The mask of a feature bit.
const fn bit(number: u32) -> u64 {
    1 << number
}

/// VIRTIO_NET_F_CSUM: the device takes frames whose checksum is still to be filled in.
pub const CSUM: u64 = bit(net::VIRTIO_NET_F_CSUM);
/// VIRTIO_NET_F_GUEST_CSUM: so does the driver.
pub const GUEST_CSUM: u64 = bit(net::VIRTIO_NET_F_GUEST_CSUM);
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the driver may change its offloads while it runs.
pub const CTRL_GUEST_OFFLOADS: u64 = bit(net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
/// VIRTIO_NET_F_MTU: the configuration space has the network's MTU.
pub const MTU: u64 = bit(net::VIRTIO_NET_F_MTU);
/// VIRTIO_NET_F_MAC: the configuration space has the card's address.
pub const MAC: u64 = bit(net::VIRTIO_NET_F_MAC);
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes TCP over IPv4 segments larger than the MTU.
pub const GUEST_TSO4: u64 = bit(net::VIRTIO_NET_F_GUEST_TSO4);
/// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
pub const GUEST_TSO6: u64 = bit(net::VIRTIO_NET_F_GUEST_TSO6);
/// VIRTIO_NET_F_GUEST_ECN: those with ECN too.
pub const GUEST_ECN: u64 = bit(net::VIRTIO_NET_F_GUEST_ECN);
/// VIRTIO_NET_F_GUEST_UFO: the driver takes UDP datagrams to be fragmented.
pub const GUEST_UFO: u64 = bit(net::VIRTIO_NET_F_GUEST_UFO);
/// VIRTIO_NET_F_HOST_TSO4: the device takes TCP over IPv4 segments larger than the MTU.
pub const HOST_TSO4: u64 = bit(net::VIRTIO_NET_F_HOST_TSO4);
/// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
pub const HOST_TSO6: u64 = bit(net::VIRTIO_NET_F_HOST_TSO6);
/// VIRTIO_NET_F_HOST_ECN: those with ECN too.
pub const HOST_ECN: u64 = bit(net::VIRTIO_NET_F_HOST_ECN);
/// VIRTIO_NET_F_HOST_UFO: the device takes UDP datagrams to be fragmented.
pub const HOST_UFO: u64 = bit(net::VIRTIO_NET_F_HOST_UFO);
/// VIRTIO_NET_F_MRG_RXBUF: a frame may span several receive buffers.
pub const MRG_RXBUF: u64 = bit(net::VIRTIO_NET_F_MRG_RXBUF);
/// VIRTIO_NET_F_STATUS: the configuration space has the link's state.
pub const STATUS: u64 = bit(net::VIRTIO_NET_F_STATUS);
/// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
pub const CTRL_VQ: u64 = bit(net::VIRTIO_NET_F_CTRL_VQ);
/// VIRTIO_NET_F_CTRL_RX: it takes receive modes and address tables.
pub const CTRL_RX: u64 = bit(net::VIRTIO_NET_F_CTRL_RX);
/// VIRTIO_NET_F_CTRL_VLAN: it takes VLAN filters.
pub const CTRL_VLAN: u64 = bit(net::VIRTIO_NET_F_CTRL_VLAN);
/// VIRTIO_NET_F_CTRL_RX_EXTRA: it takes the less usual receive modes.
pub const CTRL_RX_EXTRA: u64 = bit(net::VIRTIO_NET_F_CTRL_RX_EXTRA);
/// VIRTIO_NET_F_GUEST_ANNOUNCE: the driver sends gratuitous frames when asked to.
pub const GUEST_ANNOUNCE: u64 = bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
/// VIRTIO_NET_F_MQ: more than one queue pair.
pub const MQ: u64 = bit(net::VIRTIO_NET_F_MQ);
/// VIRTIO_NET_F_CTRL_MAC_ADDR: the control queue sets the card's address.
pub const CTRL_MAC_ADDR: u64 = bit(net::VIRTIO_NET_F_CTRL_MAC_ADDR);
/// VIRTIO_NET_F_GUEST_USO4: the driver takes UDP over IPv4 to be segmented.
pub const GUEST_USO4: u64 = bit(net::VIRTIO_NET_F_GUEST_USO4);
/// VIRTIO_NET_F_GUEST_USO6: the same over IPv6.
pub const GUEST_USO6: u64 = bit(net::VIRTIO_NET_F_GUEST_USO6);
/// VIRTIO_NET_F_HOST_USO: the device takes UDP to be segmented.
pub const HOST_USO: u64 = bit(net::VIRTIO_NET_F_HOST_USO);

/// The offloads a driver may switch through the control queue (virtio 1.2 section 5.1.6.5.6).
pub const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// What the device offers: `uso` if the tap can segment UDP, `mtu` if its MTU is known.
#[must_use]
pub fn offered(pairs: u16, uso: bool, mtu: bool) -> u64 {
    let mut features = RING_FEATURES
        | CSUM
        | GUEST_CSUM
        | CTRL_GUEST_OFFLOADS
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | GUEST_UFO
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | HOST_UFO
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_VLAN
        | CTRL_RX_EXTRA
        | GUEST_ANNOUNCE
        | CTRL_MAC_ADDR;
    if pairs > 1 {
        features |= MQ;
    }
    if uso {
        features |= GUEST_USO4 | GUEST_USO6 | HOST_USO;
    }
    if mtu {
        features |= MTU;
    }
    features
}

/// What the tap may put into frames for the guest, as TUNSETOFFLOAD takes it. Without a checksum offload there
/// is no segmentation offload: a segment carries a partial checksum.
#[must_use]
pub fn tap_offloads(features: u64) -> u32 {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let mut offloads = offload::CSUM;
    for (feature, flag) in [
        (GUEST_TSO4, offload::TSO4),
        (GUEST_TSO6, offload::TSO6),
        (GUEST_ECN, offload::TSO_ECN),
        (GUEST_UFO, offload::UFO),
    ] {
        if features & feature != 0 {
            offloads |= flag;
        }
    }
    // The tap knows UDP segmentation only for both IP versions at once.
    if features & GUEST_USO4 != 0 && features & GUEST_USO6 != 0 {
        offloads |= offload::USO4 | offload::USO6;
    }
    // ECN qualifies TSO and means nothing alone.
    if offloads & (offload::TSO4 | offload::TSO6) == 0 {
        offloads &= !offload::TSO_ECN;
    }
    offloads
}

#[cfg(test)]
#[path = "features_test.rs"]
mod features_test;
