//! What a switch in user space is: the checked [`Switch`], and the rules that make it of its file (`switch/entry.rs`).
//! Also where a switch's sockets are, which the launchers of the switch and of its machines have to agree on.

mod entry;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use entry::port_keys;
pub use entry::{PortEntry, SwitchFile, UplinkEntry};

use crate::error::ConfigError;
use crate::mac::Mac;
use crate::name::Name;
use crate::net::{NetGuard, NetLimit, limit};
use crate::node::Node;

/// The folder of all switches, beside the machines': no machine can have its name.
pub const SWITCHES: &str = ".switches";
/// The most ports, with the uplink.
const MOST_PORTS: usize = 64;

/// The socket of a switch's port: alone in its folder, which is all of the switch that its guest's vmm gets to see.
/// `base` is where this user's machines have their folders.
#[must_use]
pub fn port_socket(base: &Path, switch: &str, port: &str) -> PathBuf {
    base.join(SWITCHES).join(switch).join("ports").join(port).join("sock")
}

/// A switch that can be made, as far as one can tell without looking at the host. Serialises as its file, with every
/// default written out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "SwitchFile", try_from = "SwitchFile")]
#[non_exhaustive]
pub struct Switch {
    /// Its name.
    pub name: Name,
    /// Seconds.
    pub ageing: u32,
    /// A tap of the host, and its VLANs.
    pub uplink: Option<(String, PortVlans)>,
    /// Ports, in order; their names differ.
    pub ports: Vec<Port>,
    /// The process enters its sandbox.
    pub sandbox: bool,
}

/// A port of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: Name,
    /// Its VLANs.
    pub vlans: PortVlans,
    /// The guest's address.
    pub mac: Mac,
    /// It reaches no other port that is isolated.
    pub isolated: bool,
    /// What the guest may not claim to be.
    pub guard: NetGuard,
    /// From the guest.
    pub tx: NetLimit,
    /// To the guest.
    pub rx: NetLimit,
}

/// A port's VLANs, 1 to 4094; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlans {
    /// Of frames without a tag.
    pub untagged: Option<u16>,
    /// Of frames with one, ascending.
    pub tagged: Vec<u16>,
}

impl Switch {
    /// Reads and checks a text, TOML or JSON.
    ///
    /// # Errors
    /// [`ConfigError`] naming key, value and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        SwitchFile::deserialize(Node::parse(text)?)?.try_into()
    }
}

type Checked<T> = Result<T, ConfigError>;

fn conflict<T>(reason: &str) -> Checked<T> {
    Err(ConfigError::Conflict { path: String::new(), reason: reason.to_owned() })
}

impl TryFrom<SwitchFile> for Switch {
    type Error = ConfigError;

    fn try_from(file: SwitchFile) -> Checked<Self> {
        let text = file.name.as_deref().unwrap_or("switch");
        let name: Name = text.parse().map_err(|allowed| ConfigError::text("name", text, allowed))?;
        let ageing = file.ageing.unwrap_or(300);
        let seconds = u32::try_from(ageing).ok().filter(|seconds| (1..=1_000_000).contains(seconds));
        let uplink = file.uplink.map(uplink).transpose().map_err(|error| error.inside("uplink"))?;
        let (mut names, mut ports) = (HashSet::new(), Vec::new());
        for (index, entry) in file.port.into_iter().enumerate() {
            let port = port(&name, index, entry).map_err(|error| error.inside(&format!("port[{index}]")))?;
            if !names.insert(port.name.clone()) {
                let key = format!("port[{index}].name");
                return Err(ConfigError::text(
                    key,
                    port.name.as_str(),
                    "another port has it; names must differ",
                ));
            }
            ports.push(port);
        }
        if ports.is_empty() {
            let what = "a switch has a [[port]] for each guest's card".to_owned();
            return Err(ConfigError::Missing { key: "port".to_owned(), what });
        }
        if ports.len() + usize::from(uplink.is_some()) > MOST_PORTS {
            return conflict(&format!(
                "{} ports; a switch has up to {MOST_PORTS}, the uplink included",
                ports.len()
            ));
        }
        Ok(Self {
            name,
            ageing: seconds
                .ok_or_else(|| ConfigError::value("ageing", ageing, "must be 1 to 1000000 seconds"))?,
            uplink,
            ports,
            sandbox: file.sandbox.unwrap_or(true),
        })
    }
}

fn uplink(entry: UplinkEntry) -> Checked<(String, PortVlans)> {
    let what = "the name of a tap".to_owned();
    let tap = entry.tap.ok_or_else(|| ConfigError::Missing { key: "tap".to_owned(), what })?;
    // IFNAMSIZ is 16 with the NUL. A comma would end the word on vhost-net's command line.
    let plain = tap.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%' | b','));
    if !(1..=15).contains(&tap.len()) || !plain || tap == "." || tap == ".." {
        return Err(ConfigError::text("tap", &tap, "must be an interface name of 1 to 15 characters"));
    }
    Ok((tap, vlans(entry.vlan, &entry.trunk)?))
}

fn vlans(vlan: Option<i64>, trunk: &[i64]) -> Checked<PortVlans> {
    let check = |key: &str, vlan: i64| {
        let number = u16::try_from(vlan).ok().filter(|vlan| (1..=4094).contains(vlan));
        number.ok_or_else(|| ConfigError::value(key, vlan, "must be 1 to 4094"))
    };
    let untagged = vlan.map(|vlan| check("vlan", vlan)).transpose()?;
    let mut tagged = trunk.iter().map(|vlan| check("trunk", *vlan)).collect::<Checked<Vec<u16>>>()?;
    tagged.sort_unstable();
    tagged.dedup();
    if untagged.is_some_and(|vlan| tagged.contains(&vlan)) {
        return conflict("`vlan` is in `trunk` too; a VLAN is either tagged or not");
    }
    let untagged = if tagged.is_empty() { Some(untagged.unwrap_or(1)) } else { untagged };
    Ok(PortVlans { untagged, tagged })
}

fn port(switch: &Name, index: usize, entry: PortEntry) -> Checked<Port> {
    let what = "what a machine's NIC asks for".to_owned();
    let text = entry.name.ok_or_else(|| ConfigError::Missing { key: "name".to_owned(), what })?;
    let name: Name = text.parse().map_err(|allowed| ConfigError::text("name", &text, allowed))?;
    let mac = match &entry.mac {
        Some(text) => text.parse().map_err(|allowed| ConfigError::text("mac", text, allowed))?,
        None => Mac::generated(switch, index),
    };
    Ok(Port {
        vlans: vlans(entry.vlan, &entry.trunk)?,
        mac,
        isolated: entry.isolated.unwrap_or(false),
        guard: NetGuard::of_keys(entry.guard_mac, entry.ip, entry.guard_dhcp, entry.guard_ra)?,
        tx: limit("tx", entry.tx_rate, entry.tx_packets, entry.tx_burst)?,
        rx: limit("rx", entry.rx_rate, entry.rx_packets, entry.rx_burst)?,
        name,
    })
}

#[cfg(test)]
#[path = "switch_test.rs"]
mod switch_test;
