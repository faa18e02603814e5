//! A NIC's table of the machine file, as it is written and as it is written back.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cable, List, Net, NetGuard, NetLimit, NetSource, OwnNet, Vlans};
use crate::compact;
use crate::error::ConfigError;
use crate::name::Name;
use crate::rate::Rate;
use crate::size::{NumberOrText, write_duration};
use crate::switch::port_socket;

/// Keys that a NIC has, and a switch's port: what the guest may claim to be, in the order of [`NetGuard::keys`] ...
pub(crate) const GUARD_KEYS: [&str; 4] = ["guard_mac", "ip", "guard_dhcp", "guard_ra"];
/// ... and its limits, in that of [`NetLimit::keys`], from the guest and to it.
pub(crate) const LIMIT_KEYS: [&str; 6] =
    ["tx_rate", "tx_packets", "tx_burst", "rx_rate", "rx_packets", "rx_burst"];

/// A NIC: served by an own vhost-net process on a tap, a bridge or a macvtap, or a vhost-user socket somebody else
/// serves. Give exactly one of `tap`, `bridge`, `macvtap`, `switch` and `socket`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetEntry {
    /// The tap interface. One that does not exist is made, and goes when the machine does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The bridge to plug the NIC into, by a tap that goes when the machine does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// On a bridge with VLAN filtering: the VLAN of the guest's untagged frames, 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<i64>,
    /// On a bridge with VLAN filtering: the VLANs the guest has with tags, e.g. `[10, 20]` or `10,20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<List>,
    /// The interface of the host to share, by a macvtap that goes when the machine does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<String>,
    /// The running switch (`strata switch run`) to plug the NIC into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// The switch's port; default: the machine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The socket of a running vhost-user-net backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The guest's Ethernet address; default: made from the machine's name and the NIC's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The network's MTU, 68 to 65521; default: the bridge's or the interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65521))]
    pub mtu: Option<i64>,
    /// Queue pairs, 1 to 32; default 1. More than one needs a tap made with `multi_queue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub queues: Option<i64>,
    /// The guest can send from its own Ethernet address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_mac: Option<bool>,
    /// The IP addresses and networks the guest can send from; default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<List>,
    /// The guest can be no DHCP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_dhcp: Option<bool>,
    /// The guest can be no IPv6 router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_ra: Option<bool>,
    /// Bits per second from the guest, e.g. `100M`; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate: Option<NumberOrText>,
    /// Frames per second from the guest; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_packets: Option<NumberOrText>,
    /// How long the guest may send at full speed after a pause, 5ms to 10s; default 20ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_burst: Option<NumberOrText>,
    /// Bits per second to the guest; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate: Option<NumberOrText>,
    /// Frames per second to the guest; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_packets: Option<NumberOrText>,
    /// How long the guest may be sent to at full speed after a pause, 5ms to 10s; default 20ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_burst: Option<NumberOrText>,
    /// The NIC's name within the machine; default `net0`, `net1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl NetEntry {
    /// Makes of a NIC at a switch one behind that port's socket, unless the names can be none: those are refused
    /// when the machine is checked.
    pub(crate) fn plug(&mut self, base: &Path, machine: &str) {
        let Some(switch) = &self.switch else { return };
        let port = self.port.as_deref().unwrap_or(machine);
        if self.socket.is_none() && switch.parse::<Name>().is_ok() && port.parse::<Name>().is_ok() {
            self.socket = Some(port_socket(base, switch, port));
            (self.switch, self.port) = (None, None);
        }
    }

    /// Reads a flag's compact text, e.g. `bridge=br0,vlan=42`. A word alone means `=true`, a doubled comma is one
    /// comma of the value.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key and what is allowed.
    pub fn from_flag(text: &str) -> Result<Self, ConfigError> {
        compact::parse(text)
    }
}

impl From<Net> for NetEntry {
    fn from(net: Net) -> Self {
        let common =
            Self { id: Some(net.id.to_string()), queues: net.queues.map(i64::from), ..Self::default() };
        match net.source {
            NetSource::Socket(path) => Self { socket: Some(path), ..common },
            NetSource::Own(own) => own.write(common),
        }
    }
}

impl OwnNet {
    fn write(self, common: NetEntry) -> NetEntry {
        let Self { cable, mac, mtu, guard, tx, rx } = self;
        let plain = match cable {
            Cable::Tap(name) => NetEntry { tap: Some(name), ..common },
            Cable::Macvtap(name) => NetEntry { macvtap: Some(name), ..common },
            Cable::Bridge { name, vlans: Vlans { untagged, tagged } } => {
                NetEntry { bridge: Some(name), vlan: untagged.map(i64::from), trunk: list(&tagged), ..common }
            }
        };
        let (guard_mac, ip, guard_dhcp, guard_ra) = guard.keys();
        let (tx_rate, tx_packets, tx_burst) = tx.keys();
        let (rx_rate, rx_packets, rx_burst) = rx.keys();
        NetEntry {
            mac: Some(mac.to_string()),
            mtu: mtu.map(i64::from),
            guard_mac,
            ip,
            guard_dhcp,
            guard_ra,
            tx_rate,
            tx_packets,
            tx_burst,
            rx_rate,
            rx_packets,
            rx_burst,
            ..plain
        }
    }
}

impl NetLimit {
    /// The keys it is written with: rate, packets, burst.
    pub(crate) fn keys(self) -> (Option<NumberOrText>, Option<NumberOrText>, Option<NumberOrText>) {
        let rate = |rate: Option<Rate>| rate.map(|rate| NumberOrText::Text(rate.to_string()));
        (rate(self.rate), rate(self.packets), self.burst.map(write_duration))
    }
}

impl NetGuard {
    /// The keys it is written with: `guard_mac`, `ip`, `guard_dhcp`, `guard_ra`.
    pub(crate) fn keys(&self) -> (Option<bool>, Option<List>, Option<bool>, Option<bool>) {
        let on = |on: bool| on.then_some(true);
        // Where there are addresses it is on unless it is said to be off.
        let mac = (self.mac || !self.addresses.is_empty()).then_some(self.mac);
        (mac, list(&self.addresses), on(self.dhcp), on(self.ra))
    }
}

fn list<T: ToString>(items: &[T]) -> Option<List> {
    (!items.is_empty()).then(|| List(items.iter().map(ToString::to_string).collect()))
}
