//! The device-specific configuration space (`virtio_net_config`, virtio 1.2 section 5.1.4), made from the card's
//! state each time it is read. A driver can change nothing in it: the address is set through the control queue.

use crate::mac::Mac;

/// Size in bytes, up to and including the fields of receive-side scaling, which are zero.
pub const CONFIG_SIZE: usize = 24;

/// VIRTIO_NET_S_LINK_UP
const LINK_UP: u16 = virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP as u16;
/// VIRTIO_NET_S_ANNOUNCE
const ANNOUNCE: u16 = virtio_bindings::virtio_net::VIRTIO_NET_S_ANNOUNCE as u16;

/// What a driver can read.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// The card's address.
    pub mac: Mac,
    /// Whether the link is up.
    pub link: bool,
    /// Whether the driver is asked to announce itself.
    pub announce: bool,
    /// Most queue pairs.
    pub pairs: u16,
    /// The network's MTU, zero if unknown.
    pub mtu: u16,
}

impl Space {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; CONFIG_SIZE] {
        let [m0, m1, m2, m3, m4, m5] = self.mac.bytes();
        let status = if self.link { LINK_UP } else { 0 } | if self.announce { ANNOUNCE } else { 0 };
        let [s0, s1] = status.to_le_bytes();
        let [p0, p1] = self.pairs.to_le_bytes();
        let [t0, t1] = self.mtu.to_le_bytes();
        let mut space = [0; CONFIG_SIZE];
        for (to, from) in space.iter_mut().zip([m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1]) {
            *to = from;
        }
        space
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod config_test;
