//! NICs of a checked machine: who serves them, what they are plugged into, and what passes.

mod check;
mod entry;
mod list;

#[cfg(test)]
mod net_test;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use entry::NetEntry;
pub(crate) use entry::{GUARD_KEYS, LIMIT_KEYS};
pub use list::List;

pub(crate) use check::{limit, net};

use crate::mac::Mac;
use crate::name::DeviceId;
use crate::rate::Rate;

/// A virtio-net NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Its id; also the name of its socket in the machine's folder.
    pub id: DeviceId,
    /// Who serves it.
    pub source: NetSource,
    /// Queue pairs asked for, 1 to 32; `None`: one.
    pub queues: Option<u16>,
}

/// Who serves a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetSource {
    /// An own vhost-net process.
    Own(Box<OwnNet>),
    /// Somebody else, behind this socket.
    Socket(PathBuf),
}

/// A NIC of an own vhost-net process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnNet {
    /// What it is plugged into.
    pub cable: Cable,
    /// The guest's address.
    pub mac: Mac,
    /// The network's MTU in bytes, 68 to 65521; `None`: what the cable has.
    pub mtu: Option<u16>,
    /// What the guest may claim to be.
    pub guard: NetGuard,
    /// From the guest.
    pub tx: NetLimit,
    /// To the guest.
    pub rx: NetLimit,
}

/// What a NIC is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cable {
    /// A tap of this name, 1 to 15 bytes; made if there is none.
    Tap(String),
    /// A port of a bridge of the host.
    Bridge {
        /// The bridge.
        name: String,
        /// The VLANs of the port.
        vlans: Vlans,
    },
    /// A macvtap on an interface of the host.
    Macvtap(String),
}

/// VLANs of a bridge's port; none at all: the bridge's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vlans {
    /// Where the guest's untagged frames belong, 1 to 4094.
    pub untagged: Option<u16>,
    /// Those the guest has with tags, 1 to 4094, in ascending order.
    pub tagged: Vec<u16>,
}

/// What a guest may claim to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetGuard {
    /// It sends from the NIC's address only.
    pub mac: bool,
    /// The IP addresses it sends from; none: any.
    pub addresses: Vec<IpNet>,
    /// It is no DHCP server.
    pub dhcp: bool,
    /// It is no IPv6 router.
    pub ra: bool,
}

/// A rate limit for one direction; the default is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetLimit {
    /// Bits per second.
    pub rate: Option<Rate>,
    /// Frames per second.
    pub packets: Option<Rate>,
    /// How long the full speed may last after a pause, 5 ms to 10 s.
    pub burst: Option<Duration>,
}

impl NetSource {
    /// The part of an own process, if it is one.
    #[must_use]
    pub fn own(&self) -> Option<&OwnNet> {
        match self {
            Self::Own(own) => Some(own),
            Self::Socket(_) => None,
        }
    }

    /// The socket of whoever else serves it.
    #[must_use]
    pub fn foreign(&self) -> Option<&Path> {
        match self {
            Self::Socket(path) => Some(path),
            Self::Own(_) => None,
        }
    }
}
