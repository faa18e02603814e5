//! The part of the command line that makes `vhost-net` a switch: ports and uplink, each as `key=value,...`. A pure
//! function from words to values; called by [`crate::switch_run`].
//!
//! Refuses, with what is allowed, keys it does not know, keys given twice, and what contradicts itself.

use std::path::PathBuf;

use clap::Args;

use strata_vhost_net::guard::{Guard, address};
use strata_vhost_net::limit::Rate;
use strata_vhost_net::mac::Mac;
use strata_vhost_net::switch::vlans::{ALLOWED, DEFAULT, Set, Vlans};

/// Flags of a switch.
// The brackets are help texts for people, not links.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Args)]
pub(crate) struct SwitchOptions {
    /// Be a switch that joins the cards at its --port sockets; the name is for logs and metrics
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "switch", requires = "port", conflicts_with_all = ["tap", "tap_fd", "fd", "socket_path", "num_queues", "mac"])]
    pub(crate) switch: Option<String>,

    /// A port of the switch: name=NAME[,fd=FDNUM|socket-path=PATH][,vlan=ID][,trunk=ID+ID...][,mac=ADDRESS][,isolated]
    /// [,guard=mac+dhcp+ra][,allow-ip=NET+NET...][,tx-bits=N][,tx-packets=N][,tx-burst=MS][,rx-...]. Per second; tx is
    /// from the guest. Without fd and socket-path, the next socket that socket activation passed
    #[arg(long, value_name = "KEY=VALUE,...", requires = "switch", value_parser = port)]
    pub(crate) port: Vec<PortWords>,

    /// A tap as a port of its own: tap=NAME|fd=FDNUM[,create][,vlan=ID][,trunk=ID+ID...]
    #[arg(long, value_name = "KEY=VALUE,...", requires = "switch", value_parser = uplink)]
    pub(crate) uplink: Option<UplinkWords>,

    /// Seconds after which an address that was not seen is forgotten
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "switch", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) ageing: u32,
}

/// Where a port's guest comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Socket {
    /// A descriptor.
    Fd(i32),
    /// A path to listen on.
    Path(PathBuf),
    /// The next one of socket activation.
    Passed,
}

/// A port, as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct PortWords {
    pub(crate) name: String,
    pub(crate) socket: Socket,
    pub(crate) vlans: Vlans,
    pub(crate) mac: Mac,
    pub(crate) isolated: bool,
    pub(crate) guard: Guard,
    pub(crate) from_guest: Rate,
    pub(crate) to_guest: Rate,
}

/// An uplink, as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct UplinkWords {
    pub(crate) tap: Option<String>,
    pub(crate) fd: Option<i32>,
    pub(crate) create: bool,
    pub(crate) vlans: Vlans,
}

/// What is left of `key=value,...`; a word alone has no value.
struct Words<'a>(Vec<(&'a str, Option<&'a str>)>);

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Result<Self, String> {
        let mut words: Vec<(&str, Option<&str>)> = Vec::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            if key.is_empty() || value == Some("") {
                return Err(format!("{part:?} is neither KEY nor KEY=VALUE"));
            }
            if words.iter().any(|(other, _)| *other == key) {
                return Err(format!("{key} is given twice"));
            }
            words.push((key, value));
        }
        Ok(Self(words))
    }

    fn take(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        match self.0.iter().position(|(other, _)| *other == key).map(|at| self.0.remove(at)) {
            None => Ok(None),
            Some((_, Some(value))) => Ok(Some(value)),
            Some((_, None)) => Err(format!("{key} needs a value")),
        }
    }

    fn switch(&mut self, key: &str) -> Result<bool, String> {
        match self.0.iter().position(|(other, _)| *other == key).map(|at| self.0.remove(at)) {
            None => Ok(false),
            Some((_, None)) => Ok(true),
            Some((_, Some(value))) => Err(format!("{key}={value}: {key} takes no value")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let parse = |text: &str| text.parse().map_err(|_| format!("{key}={text}: must be a whole number"));
        self.take(key)?.map(parse).transpose()
    }

    fn end(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown key {key}")),
        }
    }
}

fn vlan(key: &str, text: &str) -> Result<u16, String> {
    let allowed = text.parse().ok().filter(|vlan| ALLOWED.contains(vlan));
    allowed.ok_or_else(|| format!("{key}={text}: must be 1 to 4094"))
}

fn vlans(words: &mut Words<'_>) -> Result<Vlans, String> {
    let native = words.take("vlan")?.map(|text| vlan("vlan", text)).transpose()?;
    let Some(trunk) = words.take("trunk")? else { return Ok(Vlans::Access(native.unwrap_or(DEFAULT))) };
    let mut tags = trunk.split('+').map(|text| vlan("trunk", text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(native) = native.filter(|native| tags.contains(native)) {
        return Err(format!("vlan={native} is in trunk too; a VLAN is either tagged or not"));
    }
    tags.extend(native);
    Ok(Vlans::Trunk { native, carried: Set::new(tags) })
}

fn rate(words: &mut Words<'_>, way: &str) -> Result<Rate, String> {
    let key = |what: &str| format!("{way}-{what}");
    let mut rate = Rate {
        bits: words.number(&key("bits"))?,
        packets: words.number(&key("packets"))?,
        ..Rate::default()
    };
    if let Some(milliseconds) = words.number(&key("burst"))? {
        rate.burst = std::time::Duration::from_millis(milliseconds);
        if rate.bits.is_none() && rate.packets.is_none() {
            return Err(format!("{way}-burst means nothing without {way}-bits or {way}-packets"));
        }
    }
    if rate.bits == Some(0) || rate.packets == Some(0) {
        return Err(format!("a limit of 0 for {way}: leave it out, or take the link down"));
    }
    Ok(rate)
}

fn guard(words: &mut Words<'_>, mac: Mac) -> Result<Guard, String> {
    let mut guard = Guard::default();
    for what in words.take("guard")?.into_iter().flat_map(|text| text.split('+')) {
        match what {
            "mac" => guard.mac = Some(mac),
            "dhcp" => guard.dhcp = true,
            "ra" => guard.router = true,
            other => return Err(format!("guard={other}: must be mac, dhcp or ra, joined by +")),
        }
    }
    for text in words.take("allow-ip")?.into_iter().flat_map(|text| text.split('+')) {
        guard.addresses.push(address(text).map_err(|allowed| format!("allow-ip={text}: {allowed}"))?);
    }
    Ok(guard)
}

/// Reads `--port`.
fn port(text: &str) -> Result<PortWords, String> {
    let mut words = Words::new(text)?;
    let name = words.take("name")?.ok_or("a port needs a name=NAME")?.to_owned();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > 64 || !name.chars().all(plain) {
        return Err(format!("name={name}: must be up to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`"));
    }
    let socket = match (words.number("fd")?, words.take("socket-path")?) {
        (Some(_), Some(_)) => return Err("fd and socket-path exclude one another".to_owned()),
        (Some(fd), None) if fd >= 0 => Socket::Fd(fd),
        (Some(fd), None) => return Err(format!("fd={fd}: must be a descriptor's number")),
        (None, Some(path)) => Socket::Path(path.into()),
        (None, None) => Socket::Passed,
    };
    let mac = words.take("mac")?.map(|text| text.parse().map_err(|error| format!("mac={text}: {error}")));
    let mac = mac.transpose()?.unwrap_or_else(|| Mac::for_tap(&name));
    let words = &mut words;
    let port = PortWords {
        vlans: vlans(words)?,
        isolated: words.switch("isolated")?,
        guard: guard(words, mac)?,
        from_guest: rate(words, "tx")?,
        to_guest: rate(words, "rx")?,
        name,
        socket,
        mac,
    };
    std::mem::replace(words, Words(Vec::new())).end()?;
    Ok(port)
}

/// Reads `--uplink`.
fn uplink(text: &str) -> Result<UplinkWords, String> {
    let mut words = Words::new(text)?;
    let (tap, fd) = (words.take("tap")?.map(str::to_owned), words.number("fd")?);
    let uplink = UplinkWords { tap, fd, create: words.switch("create")?, vlans: vlans(&mut words)? };
    words.end()?;
    match (&uplink.tap, uplink.fd) {
        (Some(_), None) | (None, Some(0..)) => Ok(uplink),
        _ => Err("an uplink needs tap=NAME or fd=FDNUM".to_owned()),
    }
}

impl SwitchOptions {
    /// The descriptors that were named.
    pub(crate) fn kept(&self) -> impl Iterator<Item = i32> + '_ {
        let ports = self.port.iter().filter_map(|port| match port.socket {
            Socket::Fd(fd) => Some(fd),
            Socket::Path(_) | Socket::Passed => None,
        });
        ports.chain(self.uplink.as_ref().and_then(|uplink| uplink.fd))
    }

    /// A name that two ports have.
    pub(crate) fn twice(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.port.iter().map(|port| port.name.as_str()).collect();
        names.sort_unstable();
        names.windows(2).find_map(|pair| match pair {
            [a, b] if a == b => Some(*a),
            _ => None,
        })
    }
}

#[cfg(test)]
#[path = "switch_options_test.rs"]
mod switch_options_test;
