//! The virtio-net header (virtio 1.2 section 5.1.6): the 12 bytes before every frame. Owns the check of what a
//! guest says in it; called by [`crate::tx`] on an owned copy, so that nothing changes between check and use.
//!
//! Refuses a header that would make the tap's kernel refuse the frame or read past it: a segment size of zero,
//! a checksum outside the frame, a segmentation the driver did not negotiate. A refused frame is dropped.

use virtio_bindings::virtio_net as net;

use crate::features as feature;

/// Length of the header in bytes: `num_buffers` is always there under VERSION_1 (section 5.1.6.1).
pub const HEADER: usize = 12;
/// The largest frame behind a header: 64 KiB of IP packet, an Ethernet header, a VLAN tag.
pub const MAX_FRAME: usize = 65536 + ETHERNET + 4;
/// Length of an Ethernet header, and so of the shortest frame that says where it goes.
pub const ETHERNET: usize = 14;

const F_NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_UDP: u8 = net::VIRTIO_NET_HDR_GSO_UDP as u8;
const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_UDP_L4: u8 = net::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const GSO_ECN: u8 = net::VIRTIO_NET_HDR_GSO_ECN as u8;

/// Frames on the wire that one of `frame` bytes becomes, whose header is at the beginning of `bytes`.
#[must_use]
pub fn segments(bytes: &[u8], frame: usize) -> u64 {
    let Some([_, gso_type, h0, h1, g0, g1, ..]) = bytes.first_chunk::<HEADER>().copied() else { return 1 };
    let size = usize::from(u16::from_le_bytes([g0, g1]));
    if gso_type == GSO_NONE || size == 0 {
        return 1;
    }
    // A driver may leave the length of the headers out; a segment has at least these.
    let headers = usize::from(u16::from_le_bytes([h0, h1])).max(ETHERNET);
    frame.saturating_sub(headers).div_ceil(size).max(1) as u64
}

/// What a header says that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// A checksum to be filled in, without VIRTIO_NET_F_CSUM.
    #[error("asks for a checksum that was not negotiated")]
    Checksum,
    /// The checksum's place is not inside the frame.
    #[error("checksum at {start}+{offset} of a frame of {frame} bytes")]
    ChecksumPlace {
        /// Where summing begins.
        start: u16,
        /// Where the sum goes, from there.
        offset: u16,
        /// Length of the frame.
        frame: usize,
    },
    /// A segmentation type that does not exist or was not negotiated.
    #[error("segmentation type {0:#x} was not negotiated")]
    Segmentation(u8),
    /// Segments of no bytes.
    #[error("segments of 0 bytes")]
    SegmentSize,
    /// Segmentation without a checksum to be filled in (section 5.1.6.2.1).
    #[error("segmentation without a checksum")]
    SegmentChecksum,
    /// The headers to be repeated in each segment are longer than the frame.
    #[error("headers of {headers} bytes in a frame of {frame}")]
    HeaderLength {
        /// What the header says.
        headers: u16,
        /// Length of the frame.
        frame: usize,
    },
}

/// What a driver may ask for in a header, from the features it accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    features: u64,
}

impl Allowed {
    /// What `features` allow.
    #[must_use]
    pub fn new(features: u64) -> Self {
        Self::of(features)
    }

    /// The same, for a constant.
    #[must_use]
    pub const fn of(features: u64) -> Self {
        Self { features }
    }

    fn segmentation(self, gso_type: u8) -> bool {
        let has = |bit: u64| self.features & bit != 0;
        // Section 5.1.6.2.1: the ECN bit only together with HOST_ECN, and only for TCP.
        let ecn = gso_type & GSO_ECN != 0;
        match gso_type & !GSO_ECN {
            GSO_TCPV4 => has(feature::HOST_TSO4) && (!ecn || has(feature::HOST_ECN)),
            GSO_TCPV6 => has(feature::HOST_TSO6) && (!ecn || has(feature::HOST_ECN)),
            GSO_UDP => has(feature::HOST_UFO) && !ecn,
            GSO_UDP_L4 => has(feature::HOST_USO) && !ecn,
            _ => false,
        }
    }

    /// Checks the header of a frame of `frame` bytes (header not counted) and returns the one for the tap:
    /// fields that mean nothing in it are zero.
    ///
    /// # Errors
    /// What it says that cannot be.
    #[inline]
    pub fn check(self, header: &[u8; HEADER], frame: usize) -> Result<[u8; HEADER], Lie> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *header;
        // Flags a device does not know are ignored (section 5.1.6.2.2), the plain frame is the common case.
        let flags = flags & F_NEEDS_CSUM;
        let (mut clean_csum, mut clean_gso) = ([0; 4], [0; 4]);
        if flags != 0 {
            if self.features & feature::CSUM == 0 {
                return Err(Lie::Checksum);
            }
            let (start, offset) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([o0, o1]));
            if usize::from(start) + usize::from(offset) + 2 > frame {
                return Err(Lie::ChecksumPlace { start, offset, frame });
            }
            clean_csum = [s0, s1, o0, o1];
        }
        if gso_type != GSO_NONE {
            if !self.segmentation(gso_type) {
                return Err(Lie::Segmentation(gso_type));
            }
            if (g0, g1) == (0, 0) {
                return Err(Lie::SegmentSize);
            }
            if flags == 0 {
                return Err(Lie::SegmentChecksum);
            }
            let headers = u16::from_le_bytes([h0, h1]);
            if usize::from(headers) > frame {
                return Err(Lie::HeaderLength { headers, frame });
            }
            clean_gso = [h0, h1, g0, g1];
        }
        let [h0, h1, g0, g1] = clean_gso;
        let [s0, s1, o0, o1] = clean_csum;
        Ok([flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0])
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod header_test;
