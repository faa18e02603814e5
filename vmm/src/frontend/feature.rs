//! Names of feature bits, for people who have to find out why a backend is refused.

use super::Kind;

/// Of the transport and rings (virtio 1.2 section 6).
const COMMON: &[(u8, &str)] = &[
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
];

/// Of disks (section 5.2.3).
const BLK: &[(u8, &str)] = &[
    (1, "BLK_SIZE_MAX"),
    (2, "BLK_SEG_MAX"),
    (4, "BLK_GEOMETRY"),
    (5, "BLK_RO"),
    (6, "BLK_BLK_SIZE"),
    (9, "BLK_FLUSH"),
    (10, "BLK_TOPOLOGY"),
    (11, "BLK_CONFIG_WCE"),
    (12, "BLK_MQ"),
    (13, "BLK_DISCARD"),
    (14, "BLK_WRITE_ZEROES"),
    (16, "BLK_SECURE_ERASE"),
];

/// Of network cards (section 5.1.3).
const NET: &[(u8, &str)] = &[
    (0, "NET_CSUM"),
    (1, "NET_GUEST_CSUM"),
    (2, "NET_CTRL_GUEST_OFFLOADS"),
    (3, "NET_MTU"),
    (5, "NET_MAC"),
    (7, "NET_GUEST_TSO4"),
    (8, "NET_GUEST_TSO6"),
    (9, "NET_GUEST_ECN"),
    (10, "NET_GUEST_UFO"),
    (11, "NET_HOST_TSO4"),
    (12, "NET_HOST_TSO6"),
    (13, "NET_HOST_ECN"),
    (14, "NET_HOST_UFO"),
    (15, "NET_MRG_RXBUF"),
    (16, "NET_STATUS"),
    (17, "NET_CTRL_VQ"),
    (18, "NET_CTRL_RX"),
    (19, "NET_CTRL_VLAN"),
    (21, "NET_GUEST_ANNOUNCE"),
    (22, "NET_MQ"),
    (23, "NET_CTRL_MAC_ADDR"),
    (54, "NET_GUEST_USO4"),
    (55, "NET_GUEST_USO6"),
    (56, "NET_HOST_USO"),
];

/// The bits of `features`, by name where they have one.
pub(super) fn names(kind: Kind, features: u64) -> String {
    let own = match kind {
        Kind::Blk => BLK,
        Kind::Net { .. } => NET,
        Kind::Other { .. } => &[],
    };
    let name = |bit: u8| {
        let known = own.iter().chain(COMMON).find(|(known, _)| *known == bit);
        known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    };
    (0..64).filter(|bit| features >> bit & 1 == 1).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_device_types_names() {
        assert_eq!(names(Kind::Blk, 1 << 13 | 1 << 29 | 1 << 63), "BLK_DISCARD, EVENT_IDX, bit 63");
        assert_eq!(names(Kind::Net { mac: None }, 1 << 13), "NET_HOST_ECN");
        assert_eq!(names(Kind::Other { device_id: 4 }, 1 << 13), "bit 13");
    }
}
