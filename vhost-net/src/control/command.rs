//! Control commands as values: parsed from bytes a guest wrote, before anything is done. Refuses whatever
//! virtio 1.2 section 5.1.6.5 does not describe.

use virtio_bindings::virtio_net as net;

use crate::mac::Mac;

/// What a driver asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A receive mode, on or off (VIRTIO_NET_CTRL_RX).
    Receive(RxMode, bool),
    /// The unicast and the multicast addresses to receive (VIRTIO_NET_CTRL_MAC_TABLE_SET).
    Addresses {
        /// Besides the card's own.
        unicast: Vec<Mac>,
        /// Groups.
        multicast: Vec<Mac>,
    },
    /// The card's own address (VIRTIO_NET_CTRL_MAC_ADDR_SET).
    Address(Mac),
    /// A VLAN to receive, or no longer (VIRTIO_NET_CTRL_VLAN).
    Vlan(u16, bool),
    /// The driver has announced itself (VIRTIO_NET_CTRL_ANNOUNCE_ACK).
    Announced,
    /// How many queue pairs are used (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET).
    Pairs(u16),
    /// The offloads the driver takes from now on, as feature bits (VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET).
    Offloads(u64),
}

/// Which frames are received, beside those to the addresses set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxMode {
    /// All of them.
    Promiscuous,
    /// To any group.
    AllMulticast,
    /// To any single card.
    AllUnicast,
    /// None to a group.
    NoMulticast,
    /// None to a single card.
    NoUnicast,
    /// None to everyone.
    NoBroadcast,
}

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends early.
    #[error("the command ends early")]
    Short,
    /// It is longer than any sensible one.
    #[error("a command of {0} bytes; up to 65536 are allowed")]
    Long(usize),
    /// There is no such command.
    #[error("command {command} of class {class} is unknown")]
    Unknown {
        /// Class.
        class: u8,
        /// Command within it.
        command: u8,
    },
    /// A switch is neither on nor off.
    #[error("a switch set to {0}; 0 and 1 are allowed")]
    Switch(u8),
    /// An address of the wrong kind for its place.
    #[error("{0} is in the table of the other kind of addresses, or cannot be a card's own")]
    Address(Mac),
    /// A VLAN that does not exist.
    #[error("VLAN {0}; 0 to 4095 are allowed")]
    Vlan(u16),
}

/// Reads bytes front to back.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (now, later) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = later;
        Ok(*now)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn word(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    fn switch(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Switch(other)),
        }
    }

    /// A table of addresses: a count and that many, all groups or none of them.
    fn table(&mut self, groups: bool) -> Result<Vec<Mac>, Malformed> {
        let count = self.take().map(u32::from_le_bytes)? as usize;
        // The count is the guest's; what is there bounds it.
        if count > self.0.len() / 6 {
            return Err(Malformed::Short);
        }
        let mut table = Vec::with_capacity(count);
        for _ in 0..count {
            let mac = Mac::new(self.take()?);
            if mac.is_group() != groups {
                return Err(Malformed::Address(mac));
            }
            table.push(mac);
        }
        Ok(table)
    }
}

impl Command {
    /// Parses a command: class, command, and its data. Bytes behind it are ignored.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let (class, command) = (reader.byte()?, reader.byte()?);
        match (u32::from(class), u32::from(command)) {
            (net::VIRTIO_NET_CTRL_RX, number) => {
                let mode = match number {
                    net::VIRTIO_NET_CTRL_RX_PROMISC => RxMode::Promiscuous,
                    net::VIRTIO_NET_CTRL_RX_ALLMULTI => RxMode::AllMulticast,
                    net::VIRTIO_NET_CTRL_RX_ALLUNI => RxMode::AllUnicast,
                    net::VIRTIO_NET_CTRL_RX_NOMULTI => RxMode::NoMulticast,
                    net::VIRTIO_NET_CTRL_RX_NOUNI => RxMode::NoUnicast,
                    net::VIRTIO_NET_CTRL_RX_NOBCAST => RxMode::NoBroadcast,
                    _ => return Err(Malformed::Unknown { class, command }),
                };
                Ok(Self::Receive(mode, reader.switch()?))
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let unicast = reader.table(false)?;
                let multicast = reader.table(true)?;
                Ok(Self::Addresses { unicast, multicast })
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let mac = Mac::new(reader.take()?);
                if mac.is_group() || mac.bytes() == [0; 6] {
                    return Err(Malformed::Address(mac));
                }
                Ok(Self::Address(mac))
            }
            (net::VIRTIO_NET_CTRL_VLAN, net::VIRTIO_NET_CTRL_VLAN_ADD | net::VIRTIO_NET_CTRL_VLAN_DEL) => {
                let id = reader.word()?;
                if id > 4095 {
                    return Err(Malformed::Vlan(id));
                }
                Ok(Self::Vlan(id, u32::from(command) == net::VIRTIO_NET_CTRL_VLAN_ADD))
            }
            (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Ok(Self::Announced),
            (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                Ok(Self::Pairs(reader.word()?))
            }
            (net::VIRTIO_NET_CTRL_GUEST_OFFLOADS, net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                Ok(Self::Offloads(u64::from_le_bytes(reader.take()?)))
            }
            _ => Err(Malformed::Unknown { class, command }),
        }
    }
}

#[cfg(test)]
#[path = "command_test.rs"]
mod command_test;
