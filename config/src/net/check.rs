//! The rules for a NIC's table.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::{
    Cable, GUARD_KEYS, LIMIT_KEYS, List, Net, NetEntry, NetGuard, NetLimit, NetSource, OwnNet, Vlans,
};
use crate::check::{Checked, belongs_to_backend, device_id, in_range, name_of, socket};
use crate::error::ConfigError;
use crate::mac::Mac;
use crate::name::{DeviceId, Name};
use crate::rate::Rate;
use crate::size::{NumberOrText, read_duration};

/// Where the machines of root and of the service manager have their folders; others say so before.
const RUN_DIR: &str = "/run/strata";
const BURSTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(10);

pub(crate) fn net(
    mut entry: NetEntry,
    name: &Name,
    index: usize,
    ids: &mut HashSet<DeviceId>,
) -> Checked<Net> {
    entry.plug(Path::new(RUN_DIR), name.as_str());
    let id = device_id(entry.id.as_deref(), "net", index, ids)?;
    let queues = entry.queues.map(|queues| in_range("queues", queues, 1, 32)).transpose()?;
    let places = [
        ("tap", entry.tap.is_some()),
        ("bridge", entry.bridge.is_some()),
        ("macvtap", entry.macvtap.is_some()),
        ("switch", entry.switch.is_some()),
        ("socket", entry.socket.is_some()),
    ];
    one_of(&places)?;
    if let Some(switch) = &entry.switch {
        return Err(match &entry.port {
            Some(port) if switch.parse::<Name>().is_ok() => name_of("port", port),
            _ => name_of("switch", switch),
        });
    }
    if entry.port.is_some() {
        return conflict("`port` is a port of a `switch`, which is missing");
    }
    let source = match entry.socket.take() {
        Some(path) => {
            belongs_to_backend(&given(&entry))?;
            NetSource::Socket(socket(path)?)
        }
        None => NetSource::Own(Box::new(own(entry, name, index)?)),
    };
    Ok(Net { id, source, queues })
}

/// The keys that only an own backend has, and whether each is given.
fn given(entry: &NetEntry) -> Vec<(&'static str, bool)> {
    let NetEntry { tx_rate, tx_packets, tx_burst, rx_rate, rx_packets, rx_burst, .. } = entry;
    let guards =
        [entry.guard_mac.is_some(), entry.ip.is_some(), entry.guard_dhcp.is_some(), entry.guard_ra.is_some()];
    let limits = [tx_rate, tx_packets, tx_burst, rx_rate, rx_packets, rx_burst].map(Option::is_some);
    let own = [
        ("vlan", entry.vlan.is_some()),
        ("trunk", entry.trunk.is_some()),
        ("mac", entry.mac.is_some()),
        ("mtu", entry.mtu.is_some()),
    ];
    own.into_iter()
        .chain(GUARD_KEYS.into_iter().zip(guards))
        .chain(LIMIT_KEYS.into_iter().zip(limits))
        .collect()
}

fn one_of(places: &[(&str, bool)]) -> Checked<()> {
    let names: Vec<&str> = places.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    let conflict = |reason| Err(ConfigError::Conflict { path: String::new(), reason });
    match names.as_slice() {
        [_] => Ok(()),
        [] => conflict("needs `tap`, `bridge`, `macvtap`, `switch` or `socket`".to_owned()),
        [first, second, ..] => conflict(format!("`{first}` and `{second}` exclude one another; keep one")),
    }
}

fn own(entry: NetEntry, name: &Name, index: usize) -> Checked<OwnNet> {
    let mac = match &entry.mac {
        Some(text) => text.parse().map_err(|allowed| ConfigError::text("mac", text, allowed))?,
        None => Mac::generated(name, index),
    };
    let vlans = Vlans {
        untagged: entry.vlan.map(|vlan| in_range("vlan", vlan, 1, 4094)).transpose()?,
        tagged: entry.trunk.map_or(Ok(Vec::new()), trunk)?,
    };
    if vlans.untagged.is_some_and(|vlan| vlans.tagged.contains(&vlan)) {
        return conflict("`vlan` is in `trunk` too; a VLAN is either tagged or not");
    }
    let cable = match (entry.bridge, entry.macvtap, entry.tap) {
        (Some(bridge), ..) => Cable::Bridge { name: interface("bridge", bridge)?, vlans },
        _ if vlans != Vlans::default() => {
            return conflict("`vlan` and `trunk` go with `bridge` only");
        }
        (_, Some(parent), _) => Cable::Macvtap(interface("macvtap", parent)?),
        (.., tap) => Cable::Tap(interface("tap", tap.unwrap_or_default())?),
    };
    Ok(OwnNet {
        cable,
        mac,
        mtu: entry.mtu.map(|mtu| in_range("mtu", mtu, 68, 65_521)).transpose()?,
        guard: NetGuard::of_keys(entry.guard_mac, entry.ip, entry.guard_dhcp, entry.guard_ra)?,
        tx: limit("tx", entry.tx_rate, entry.tx_packets, entry.tx_burst)?,
        rx: limit("rx", entry.rx_rate, entry.rx_packets, entry.rx_burst)?,
    })
}

fn conflict<T>(reason: &str) -> Checked<T> {
    Err(ConfigError::Conflict { path: String::new(), reason: reason.to_owned() })
}

fn trunk(List(words): List) -> Checked<Vec<u16>> {
    let vlan = |word: &String| {
        let number = word.parse().ok().filter(|number| (1..=4094).contains(number));
        number.ok_or_else(|| ConfigError::text("trunk", word, "must be VLANs from 1 to 4094, such as 10,20"))
    };
    let mut vlans = words.iter().map(vlan).collect::<Checked<Vec<u16>>>()?;
    vlans.sort_unstable();
    vlans.dedup();
    Ok(vlans)
}

fn addresses(List(words): List) -> Checked<Vec<IpNet>> {
    const FORM: &str = "must be an IP address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64";
    let address = |word: &String| {
        let net = word.parse().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| ConfigError::text("ip", word, FORM))
    };
    words.iter().map(address).collect()
}

impl NetGuard {
    /// What a NIC or a switch's port has for `guard_mac`, `ip`, `guard_dhcp`, `guard_ra`.
    pub(crate) fn of_keys(
        mac: Option<bool>,
        ip: Option<List>,
        dhcp: Option<bool>,
        ra: Option<bool>,
    ) -> Checked<Self> {
        let addresses = ip.map_or(Ok(Vec::new()), addresses)?;
        // An IP address means little from an Ethernet address that is not the NIC's.
        let mac = mac.unwrap_or(!addresses.is_empty());
        Ok(Self { mac, addresses, dhcp: dhcp.unwrap_or(false), ra: ra.unwrap_or(false) })
    }
}

/// One direction's limit, of a NIC or of a switch's port: `way` is `tx` or `rx`, before each key's name.
pub(crate) fn limit(
    way: &str,
    rate: Option<NumberOrText>,
    packets: Option<NumberOrText>,
    burst: Option<NumberOrText>,
) -> Checked<NetLimit> {
    let read = |key: &str, raw: Option<NumberOrText>| {
        let parse = |raw: NumberOrText| {
            let value = raw.plain().parse::<Rate>();
            value.map_err(|allowed| ConfigError::value(format!("{way}_{key}"), &raw, allowed))
        };
        raw.map(parse).transpose()
    };
    let (rate, packets) = (read("rate", rate)?, read("packets", packets)?);
    let Some(raw) = burst else { return Ok(NetLimit { rate, packets, burst: None }) };
    let key = format!("{way}_burst");
    if rate.is_none() && packets.is_none() {
        return conflict(&format!("`{key}` means nothing without `{way}_rate` or `{way}_packets`"));
    }
    let burst = read_duration(&raw).ok().filter(|burst| BURSTS.contains(burst));
    let burst = burst.ok_or_else(|| ConfigError::value(key, &raw, "must be 5ms to 10s, such as 50ms"))?;
    Ok(NetLimit { rate, packets, burst: Some(burst) })
}

fn interface(key: &str, name: String) -> Checked<String> {
    // IFNAMSIZ is 16 with the NUL; dev_valid_name() refuses slash, colon, space, `.` and `..`. A `%` would have the
    // kernel choose a number.
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
    if (1..=15).contains(&name.len()) && plain && name != "." && name != ".." {
        return Ok(name);
    }
    Err(ConfigError::text(
        key,
        &name,
        "must be an interface name: 1 to 15 characters, no slash, colon, percent sign or space",
    ))
}
