//! What a guest may claim to be: its Ethernet address, its IP addresses, and that it is no DHCP server and no router.
//! Asked by whoever passes a guest's frames on ([`crate::tx`]), on a copy that the guest cannot change any more.
//!
//! Refuses what it cannot see through: a frame whose addresses or ports would have to be in the part that is looked at
//! and are not, headers it does not know the length of, more than two VLAN tags. Ports and message types of a packet
//! are only in its first fragment, so without that one the others lead to nothing (RFC 7113, RFC 6980).
//!
//! ```text
//!   Ethernet [VLAN [VLAN]] -+- ARP ---- sender is this NIC, with its addresses
//!                           +- IPv4 --- source -- UDP from or to a DHCP server's side?
//!                           +- IPv6 --- source -- extension headers -- UDP, ICMPv6: DHCP, router, neighbour
//!                           +- others -- the Ethernet address alone
//! ```

mod headers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::mac::Mac;
use headers::{Arp, Network, Refusal, Transport};

/// Bytes of a frame that are enough: an Ethernet header with two tags, IPv6 and a few extension headers.
pub const ENOUGH: usize = 240;

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Spoof {
    /// Its Ethernet source, or an ARP packet's, is not the NIC's.
    #[error("sent with an address that is not the NIC's")]
    Mac,
    /// Its IP source, or one it claims in ARP or neighbour discovery, is not the NIC's.
    #[error("sent with an IP address that is not the NIC's")]
    Ip,
    /// It answers as a DHCP server.
    #[error("sent as a DHCP server")]
    Dhcp,
    /// It announces or redirects as a router.
    #[error("sent as a router")]
    Router,
    /// What has to be checked cannot be seen.
    #[error("not understood")]
    Unclear,
}

/// An IP address, or a network of them, as it is written: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/64`.
///
/// # Errors
/// What it must look like.
pub fn address(text: &str) -> Result<IpNet, &'static str> {
    const FORM: &str = "must be an IP address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64";
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| FORM)
}

/// The rules for one NIC. The default lets everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// The address it must send from; `None`: any.
    pub mac: Option<Mac>,
    /// The IP addresses it may send from; none: any.
    pub addresses: Vec<IpNet>,
    /// It may be no DHCP server.
    pub dhcp: bool,
    /// It may be no router to IPv6 hosts.
    pub router: bool,
}

impl Guard {
    /// Whether there is anything to check.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mac.is_some() || self.looks_inside()
    }

    fn looks_inside(&self) -> bool {
        !self.addresses.is_empty() || self.dhcp || self.router
    }

    /// Checks a frame by its first bytes: [`ENOUGH`] of them, or all.
    ///
    /// # Errors
    /// It must not be passed on.
    #[inline]
    pub fn check(&self, frame: &[u8]) -> Result<(), Spoof> {
        if self.is_on() { self.examine(frame) } else { Ok(()) }
    }

    fn examine(&self, frame: &[u8]) -> Result<(), Spoof> {
        let source = headers::source(frame).ok_or(Spoof::Unclear)?;
        if self.mac.is_some_and(|mac| mac != source) {
            return Err(Spoof::Mac);
        }
        match Network::parse(frame) {
            Ok(Network::Arp(arp)) => self.arp(&arp),
            Ok(Network::V4 { source, transport }) if self.looks_inside() => self.v4(source, transport),
            Ok(Network::V6 { source, transport }) if self.looks_inside() => self.v6(source, transport),
            Ok(_) => Ok(()),
            Err(Refusal) if self.looks_inside() => Err(Spoof::Unclear),
            Err(Refusal) => Ok(()),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|network| network.contains(&address))
    }

    fn arp(&self, arp: &Arp) -> Result<(), Spoof> {
        if self.mac.is_some_and(|mac| mac != arp.sender) {
            return Err(Spoof::Mac);
        }
        // A probe (RFC 5227) has no sender address.
        if arp.address != Ipv4Addr::UNSPECIFIED && !self.has(arp.address.into()) {
            return Err(Spoof::Ip);
        }
        Ok(())
    }

    fn v4(&self, source: Ipv4Addr, transport: Result<Transport, Refusal>) -> Result<(), Spoof> {
        let transport = transport.map_err(|Refusal| Spoof::Unclear)?;
        if let Transport::Udp { from, to } = transport {
            // Servers and relays send from 67; only clients listen on 68 (RFC 2131 section 4.1).
            if self.dhcp && (from == 67 || to == 68) {
                return Err(Spoof::Dhcp);
            }
            // A client that has no address yet.
            if source == Ipv4Addr::UNSPECIFIED && (from, to) == (68, 67) {
                return Ok(());
            }
        }
        if self.has(source.into()) { Ok(()) } else { Err(Spoof::Ip) }
    }

    fn v6(&self, source: Ipv6Addr, transport: Result<Transport, Refusal>) -> Result<(), Spoof> {
        match transport.map_err(|Refusal| Spoof::Unclear)? {
            // Clients listen on 546, servers and relays on 547 (RFC 8415 section 7.2).
            Transport::Udp { from, to } if self.dhcp && (from == 547 || to == 546) => {
                return Err(Spoof::Dhcp);
            }
            // Router advertisement and redirect (RFC 4861 section 4).
            Transport::Icmp6 { kind: 134 | 137, .. } if self.router => return Err(Spoof::Router),
            // Duplicate address detection and multicast reports of a host that has no address yet.
            Transport::Icmp6 { kind: 131..=133 | 135 | 143, .. } if source.is_unspecified() => return Ok(()),
            // Neighbour advertisement: the address it claims.
            Transport::Icmp6 { kind: 136, target: None } if !self.addresses.is_empty() => {
                return Err(Spoof::Unclear);
            }
            Transport::Icmp6 { kind: 136, target: Some(target) } if !self.has_v6(target) => {
                return Err(Spoof::Ip);
            }
            _ => {}
        }
        if self.has_v6(source) { Ok(()) } else { Err(Spoof::Ip) }
    }

    /// The link-local address that follows from the NIC's own is always its own.
    fn has_v6(&self, address: Ipv6Addr) -> bool {
        self.has(address.into()) || self.mac.is_some_and(|mac| address == mac.link_local())
    }
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod guard_test;
