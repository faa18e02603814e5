//! The headers of a frame, read as far as a [`super::Guard`] needs. Every byte is a guest's.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::header::ETHERNET;
use crate::mac::Mac;

const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Below, the field is a length and LLC follows (IEEE 802.3).
const FIRST_TYPE: u16 = 0x0600;
/// LLC and SNAP in front of a type, without an organisation (RFC 1042).
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
const UDP: u8 = 17;
const ICMP6: u8 = 58;
/// More extension headers than any sender uses.
const MOST_EXTENSIONS: usize = 8;

/// It cannot be told what this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Arp(Arp),
    V4 { source: Ipv4Addr, transport: Result<Transport, Refusal> },
    V6 { source: Ipv6Addr, transport: Result<Transport, Refusal> },
    Other,
}

/// Who an ARP packet says it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) sender: Mac,
    pub(super) address: Ipv4Addr,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp {
        from: u16,
        to: u16,
    },
    Icmp6 {
        kind: u8,
        /// The address that a neighbour or redirect message is about, if it is there.
        target: Option<Ipv6Addr>,
    },
    Other,
    /// A fragment that is not the first.
    Later,
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk::<N>().copied()
}

fn word(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_be_bytes)
}

/// Who an Ethernet frame says it is from.
pub(super) fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(ETHERNET - 1)?;
    bytes(frame, 6).map(Mac::new)
}

impl Network {
    pub(super) fn parse(frame: &[u8]) -> Result<Self, Refusal> {
        let (mut at, mut tags) = (12, 0);
        let mut kind = word(frame, at).ok_or(Refusal)?;
        while VLAN.contains(&kind) {
            tags += 1;
            at += 4;
            if tags > 2 {
                return Err(Refusal);
            }
            kind = word(frame, at).ok_or(Refusal)?;
        }
        at += 2;
        if kind < FIRST_TYPE {
            match bytes::<6>(frame, at) {
                // Some hosts take it for the type it wraps.
                Some(SNAP) => kind = word(frame, at + 6).ok_or(Refusal)?,
                _ => return Ok(Self::Other),
            }
            at += 8;
        }
        let packet = frame.get(at..).ok_or(Refusal)?;
        match kind {
            ARP => arp(packet).ok_or(Refusal),
            IPV4 => v4(packet).ok_or(Refusal),
            IPV6 => v6(packet).ok_or(Refusal),
            _ => Ok(Self::Other),
        }
    }
}

fn arp(packet: &[u8]) -> Option<Network> {
    // Ethernet and IPv4 (RFC 826); an operation is not looked at.
    if bytes(packet, 0)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let arp = Arp { sender: Mac::new(bytes(packet, 8)?), address: Ipv4Addr::from(bytes::<4>(packet, 14)?) };
    Some(Network::Arp(arp))
}

fn v4(packet: &[u8]) -> Option<Network> {
    let [first] = bytes(packet, 0)?;
    let length = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || length < 20 {
        return None;
    }
    let [protocol] = bytes(packet, 9)?;
    let source = Ipv4Addr::from(bytes::<4>(packet, 12)?);
    let transport = if word(packet, 6)? & 0x1fff == 0 {
        transport(protocol, packet.get(length..))
    } else {
        Ok(Transport::Later)
    };
    Some(Network::V4 { source, transport })
}

fn v6(packet: &[u8]) -> Option<Network> {
    let [first, ..] = bytes::<40>(packet, 0)?;
    let [next] = bytes(packet, 6)?;
    let source = Ipv6Addr::from(bytes::<16>(packet, 8)?);
    (first >> 4 == 6).then(|| Network::V6 { source, transport: extensions(next, packet.get(40..)) })
}

/// Walks the extension headers (RFC 8200 section 4) to what is carried.
fn extensions(mut next: u8, rest: Option<&[u8]>) -> Result<Transport, Refusal> {
    let mut rest = rest.ok_or(Refusal)?;
    let mut fragment = false;
    for _ in 0..MOST_EXTENSIONS {
        let length = match next {
            // Hop-by-hop options, routing, destination options, mobility, host identity, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let [_, units] = bytes(rest, 0).ok_or(Refusal)?;
                8 + 8 * usize::from(units)
            }
            // Authentication.
            51 => {
                let [_, units] = bytes(rest, 0).ok_or(Refusal)?;
                8 + 4 * usize::from(units)
            }
            44 => {
                let offset = word(rest, 2).ok_or(Refusal)?;
                if offset & 0xfff8 != 0 {
                    return Ok(Transport::Later);
                }
                fragment = true;
                8
            }
            // Nothing in a fragment may be neighbour discovery (RFC 6980).
            ICMP6 if fragment && matches!(bytes(rest, 0), None | Some([133..=137])) => return Err(Refusal),
            other => return transport(other, Some(rest)),
        };
        [next] = bytes(rest, 0).ok_or(Refusal)?;
        rest = rest.get(length..).ok_or(Refusal)?;
    }
    Err(Refusal)
}

fn transport(protocol: u8, rest: Option<&[u8]>) -> Result<Transport, Refusal> {
    let rest = rest.ok_or(Refusal)?;
    match protocol {
        UDP => match (word(rest, 0), word(rest, 2)) {
            (Some(from), Some(to)) => Ok(Transport::Udp { from, to }),
            _ => Err(Refusal),
        },
        ICMP6 => {
            let [kind] = bytes(rest, 0).ok_or(Refusal)?;
            Ok(Transport::Icmp6 { kind, target: bytes::<16>(rest, 8).map(Ipv6Addr::from) })
        }
        _ => Ok(Transport::Other),
    }
}
