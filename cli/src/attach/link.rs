//! Interfaces of the host through rtnetlink(7): looked for, brought up, made ports of bridges.

use std::io;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgeVlanInfo, BridgeVlanInfoFlags, In6AddrGenMode, InfoBridge,
    InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use strata_config::Vlans;

/// What there is of an interface.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) macvtap: bool,
    /// What people, or we, wrote on it.
    pub(super) alias: Option<String>,
    /// If it is a bridge.
    pub(super) bridge: Option<Bridge>,
}

/// What matters of a bridge.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bridge {
    /// It filters VLANs.
    pub(super) filters: bool,
    /// The VLAN a new port is in; 0: none.
    pub(super) default_vlan: u16,
}

/// A conversation with the kernel about the interfaces of one network namespace.
pub(super) struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// About those of the namespace this thread is in.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks; the interfaces in the answer.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<LinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let part =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (part.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if part.header.sequence_number != self.sequence {
                    continue;
                }
                match part.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => found.push(link),
                    NetlinkPayload::Done(_) => return Ok(found),
                    // The end, too: what went wrong, or nothing.
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(found),
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// The interface of this name.
    pub(super) fn find(&mut self, name: &str) -> io::Result<Option<Seen>> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(link), 0) {
            Ok(found) => Ok(found.last().map(seen)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Those that bear this alias.
    pub(super) fn with_alias(&mut self, alias: &str) -> io::Result<Vec<Seen>> {
        let all = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(all.iter().map(seen).filter(|seen| seen.alias.as_deref() == Some(alias)).collect())
    }

    /// Writes an alias on an interface.
    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.ask(RouteNetlinkMessage::SetLink(link), 0).map(drop)
    }

    /// Removes an interface.
    pub(super) fn remove(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(link), 0).map(drop)
    }

    /// Brings an interface up, with an MTU and perhaps an address.
    pub(super) fn bring_up(&mut self, index: u32, mtu: u32, mac: Option<[u8; 6]>) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        link.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        self.ask(RouteNetlinkMessage::SetLink(link), 0).map(drop)
    }

    /// Makes an interface a port of a bridge. `guest` is the guest's address; the tap gets one that is like it and
    /// higher than any other port's, since a bridge takes the lowest for its own. The host itself does not talk
    /// through it.
    pub(super) fn enslave(&mut self, index: u32, bridge: u32, guest: [u8; 6]) -> io::Result<()> {
        let [_, rest @ ..] = guest;
        let mut address = vec![0xfe];
        address.extend(rest);
        let mut link = LinkMessage::default();
        link.header.index = index;
        let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        link.attributes.extend([LinkAttribute::Address(address), LinkAttribute::Controller(bridge)]);
        self.ask(RouteNetlinkMessage::SetLink(link.clone()), 0)?;
        link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![no_address])];
        match self.ask(RouteNetlinkMessage::SetLink(link), 0) {
            // A host without IPv6 has no addresses to keep it from.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Puts a bridge's port in exactly these VLANs; `default` is the one it was put in when it became a port.
    pub(super) fn set_vlans(&mut self, index: u32, default: u16, vlans: &Vlans) -> io::Result<()> {
        let untagged = vlans.untagged.map(|vid| BridgeVlanInfo {
            flags: BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            vid,
        });
        let tagged =
            vlans.tagged.iter().map(|vid| BridgeVlanInfo { flags: BridgeVlanInfoFlags::empty(), vid: *vid });
        if default != 0 && vlans.untagged != Some(default) {
            let old = BridgeVlanInfo { flags: BridgeVlanInfoFlags::empty(), vid: default };
            self.ask(RouteNetlinkMessage::DelLink(port(index, old)), 0)?;
        }
        for vlan in untagged.into_iter().chain(tagged) {
            self.ask(RouteNetlinkMessage::SetLink(port(index, vlan)), 0)?;
        }
        Ok(())
    }

    /// Makes a macvtap in bridge mode on `parent`, under a number and a name of its own, in another namespace if one is
    /// given.
    pub(super) fn add_macvtap(
        &mut self,
        parent: u32,
        index: u32,
        name: &str,
        mac: [u8; 6],
        namespace: Option<RawFd>,
    ) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mode = InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Bridge)]);
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(parent),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVtap), LinkInfo::Data(mode)]),
        ];
        link.attributes.extend(namespace.map(LinkAttribute::NetNsFd));
        self.ask(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }
}

/// A message about a VLAN of a port.
fn port(index: u32, vlan: BridgeVlanInfo) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.interface_family = AddressFamily::Bridge;
    link.header.index = index;
    link.attributes.push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(vlan)]));
    link
}

fn seen(link: &LinkMessage) -> Seen {
    let mut seen = Seen { index: link.header.index, ..Seen::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => seen.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => seen.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::MacVtap) => seen.macvtap = true,
                        LinkInfo::Kind(InfoKind::Bridge) => _ = seen.bridge.get_or_insert_default(),
                        LinkInfo::Data(InfoData::Bridge(options)) => {
                            let bridge = seen.bridge.get_or_insert_default();
                            for option in options {
                                match option {
                                    InfoBridge::VlanFiltering(on) => bridge.filters = *on,
                                    InfoBridge::VlanDefaultPvid(vlan) => bridge.default_vlan = *vlan,
                                    _ => {}
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    seen
}
