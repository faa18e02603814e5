//! A switch's file, as it is written and as it is written back.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Port, PortVlans, Switch};
use crate::error::ConfigError;
use crate::name::Name;
use crate::net::{GUARD_KEYS, LIMIT_KEYS, List};
use crate::node::Node;
use crate::size::NumberOrText;

/// A switch as written in TOML or JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Strata switch", inline)]
pub struct SwitchFile {
    /// The switch's name: as a machine's; default: the file's name without its suffix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seconds after which an address that was not seen is forgotten, 1 to 1000000; default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ageing: Option<i64>,
    /// A tap of the host as one more port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkEntry>,
    /// One for each guest's card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<PortEntry>,
    /// The process in its sandbox; default true. False is for debugging only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<bool>,
}

/// A switch's way out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UplinkEntry {
    /// The tap interface, which exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The VLAN of untagged frames, 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<i64>,
    /// The VLANs with tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<i64>,
}

/// A port of a switch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortEntry {
    /// Its name, by which a machine's NIC asks for it; the only key without a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The VLAN of untagged frames, 1 to 4094; default 1, or none with `trunk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<i64>,
    /// The VLANs the guest has with tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<i64>,
    /// The guest's Ethernet address; default: made from the names of switch and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// It reaches no other port that is isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
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
}

/// The keys of [`PortEntry`] that a lab's file has at a machine's NIC.
pub(crate) fn port_keys() -> impl Iterator<Item = &'static str> {
    ["vlan", "trunk", "mac", "isolated"].into_iter().chain(GUARD_KEYS).chain(LIMIT_KEYS)
}

impl SwitchFile {
    /// Reads a file, TOML or JSON. A missing name is taken from the file's.
    ///
    /// # Errors
    /// [`ConfigError`] naming key, value and what is allowed.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let mut file = Self::deserialize(Node::from_file(path)?)?;
        if file.name.is_none() {
            file.name = Name::of_file(path);
        }
        Ok(file)
    }
}

impl From<Switch> for SwitchFile {
    fn from(switch: Switch) -> Self {
        let uplink = switch.uplink.map(|(tap, vlans)| {
            let (vlan, trunk) = vlans.write();
            UplinkEntry { tap: Some(tap), vlan, trunk }
        });
        Self {
            name: Some(switch.name.to_string()),
            ageing: Some(switch.ageing.into()),
            uplink,
            port: switch.ports.into_iter().map(PortEntry::from).collect(),
            sandbox: Some(switch.sandbox),
        }
    }
}

impl PortVlans {
    fn write(&self) -> (Option<i64>, Vec<i64>) {
        (self.untagged.map(i64::from), self.tagged.iter().map(|vlan| i64::from(*vlan)).collect())
    }
}

impl From<Port> for PortEntry {
    fn from(port: Port) -> Self {
        let (vlan, trunk) = port.vlans.write();
        let (guard_mac, ip, guard_dhcp, guard_ra) = port.guard.keys();
        let (tx_rate, tx_packets, tx_burst) = port.tx.keys();
        let (rx_rate, rx_packets, rx_burst) = port.rx.keys();
        Self {
            name: Some(port.name.to_string()),
            vlan,
            trunk,
            mac: Some(port.mac.to_string()),
            isolated: port.isolated.then_some(true),
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
        }
    }
}
