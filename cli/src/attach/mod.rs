//! What NICs are plugged into: taps, ports of bridges, macvtaps. Made by the launcher, which has the right to, and handed
//! to the backends as descriptors; a backend has no such right and is given none.
//!
//! Nothing made here outlives the machine, however its launcher ends. A tap is not persistent: it goes with its last
//! descriptor, and with it its place on the bridge and its VLANs. A macvtap would stay; it is made in a network
//! namespace of its own, which goes with the launcher's descriptor of it, and takes the macvtap along. The descriptors
//! also outlive a backend: one that is started again finds its tap as it was, with the frames that came meanwhile.
//! Under systemd no launcher stays to hold descriptors; [`lasting`] makes the same there to stay until it is removed.
//!
//! Refuses interfaces that are not there or not what they are said to be, VLANs on a bridge that does not filter them,
//! and says what to do about missing rights.

mod error;
pub(crate) mod lasting;
mod link;
mod macvtap;
mod tun;

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strata_config::{Cable, Machine, OwnNet, Vlans};

pub(crate) use error::AttachError;
use link::{Links, Seen};

/// Names of the taps of bridge ports; the kernel puts a number for the `%d`.
const PORT: &str = "strata%d";

/// A NIC's place in the host's network, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// The interface's name.
    pub(crate) interface: String,
    /// One per queue pair.
    queues: Vec<Arc<OwnedFd>>,
    /// What the guest is told.
    mtu: Option<u16>,
    /// A macvtap's network namespace.
    _namespace: Option<OwnedFd>,
}

impl Attachment {
    /// Words for the backend's command line.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut numbers = String::new();
        for queue in &self.queues {
            let comma = if numbers.is_empty() { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(numbers, "{comma}{}", queue.as_raw_fd());
        }
        let mut words = vec!["--tap-fd".to_owned(), numbers];
        if let Some(mtu) = self.mtu {
            words.extend(["--mtu".to_owned(), mtu.to_string()]);
        }
        words
    }

    /// What it is to inherit.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.queues.iter().cloned()
    }
}

/// Where the launcher notes what the interface of a NIC is called.
pub(crate) fn interface_file(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.interface"))
}

/// Plugs in one NIC of `machine`.
pub(crate) fn attach(
    machine: &Machine,
    net: &strata_config::Net,
    own: &OwnNet,
) -> Result<Attachment, AttachError> {
    let cable = Plug { id: net.id.as_str(), pairs: machine.net_queues(net), own };
    match &own.cable {
        Cable::Tap(name) => cable.tap(name),
        Cable::Bridge { name, vlans } => cable.bridge(name, vlans),
        Cable::Macvtap(parent) => cable.macvtap(parent),
    }
}

/// A NIC being plugged in.
struct Plug<'a> {
    id: &'a str,
    pairs: u16,
    own: &'a OwnNet,
}

/// A bridge that a port can be made of.
struct Master<'a> {
    name: &'a str,
    vlans: &'a Vlans,
    index: u32,
    mtu: u32,
    default_vlan: u16,
}

const ROOT: &str =
    "run strata as root, or make a tap for this user (`ip tuntap add dev NAME mode tap user USER`)";

impl Plug<'_> {
    /// The error for what the system answered.
    fn failed(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> AttachError {
        let (id, what) = (self.id.to_owned(), what.into());
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => AttachError::Permission { id, what, advice: ROOT },
            _ => AttachError::System { id, what, source },
        }
    }

    fn tap(&self, name: &str) -> Result<Attachment, AttachError> {
        let mut links = self.links()?;
        let before = self.find(&mut links, name)?;
        if let Some(seen) = &before {
            if let Some(wanted) = self.own.mtu.filter(|wanted| u32::from(*wanted) != seen.mtu) {
                let (id, name) = (self.id.to_owned(), name.to_owned());
                return Err(AttachError::Mtu { id, name, has: seen.mtu, wanted });
            }
            let node = macvtap::node(seen.index);
            if seen.macvtap {
                let queues = macvtap::open(&node, self.pairs);
                let queues = queues.map_err(self.failed(format!("open {}", node.display())))?;
                return Ok(self.attachment(name.to_owned(), queues, seen.mtu, None));
            }
        }
        let (name, queues) = self.open_tap(name)?;
        let seen = self.seen(&mut links, &name)?;
        // One that was there may have been a dead machine's, and gone with its last holder just before it was opened.
        let mtu = if before.is_some_and(|before| before.index == seen.index) {
            seen.mtu
        } else {
            let mtu = self.own.mtu.map_or(seen.mtu, u32::from);
            links.bring_up(seen.index, mtu, None).map_err(self.failed(format!("bring up {name}")))?;
            mtu
        };
        Ok(self.attachment(name, queues, mtu, None))
    }

    fn bridge(&self, bridge: &str, vlans: &Vlans) -> Result<Attachment, AttachError> {
        let mut links = self.links()?;
        let master = self.master(&mut links, bridge, vlans)?;
        let (port, queues) = self.open_tap(PORT)?;
        let mtu = self.join(&mut links, &port, &master)?;
        Ok(self.attachment(port, queues, mtu, None))
    }

    /// The bridge, if the NIC can become a port of it.
    fn master<'a>(
        &self,
        links: &mut Links,
        name: &'a str,
        vlans: &'a Vlans,
    ) -> Result<Master<'a>, AttachError> {
        let seen = self.find(links, name)?;
        let advice = "; make it with `ip link add NAME type bridge`";
        let Seen { index, mtu, bridge, .. } = seen.ok_or_else(|| self.missing("bridge", name, advice))?;
        let id = || self.id.to_owned();
        let bridge = bridge.ok_or_else(|| AttachError::NotABridge { id: id(), name: name.to_owned() })?;
        if *vlans != Vlans::default() && !bridge.filters {
            return Err(AttachError::NoVlans { id: id(), name: name.to_owned() });
        }
        Ok(Master { name, vlans, index, mtu, default_vlan: bridge.default_vlan })
    }

    /// Makes a tap a port of the bridge, in its VLANs, and brings it up; its MTU.
    fn join(&self, links: &mut Links, port: &str, master: &Master<'_>) -> Result<u32, AttachError> {
        let index = self.seen(links, port)?.index;
        let mtu = self.own.mtu.map_or(master.mtu, u32::from);
        links
            .enslave(index, master.index, self.own.mac.bytes())
            .map_err(self.failed(format!("plug {port} into {}", master.name)))?;
        if *master.vlans != Vlans::default() {
            let set = links.set_vlans(index, master.default_vlan, master.vlans);
            set.map_err(self.failed(format!("set the VLANs of {port} on {}", master.name)))?;
        }
        // Last: no frame passes before the port is in its VLANs.
        links.bring_up(index, mtu, None).map_err(self.failed(format!("bring up {port}")))?;
        Ok(mtu)
    }

    fn macvtap(&self, parent: &str) -> Result<Attachment, AttachError> {
        let mut links = self.links()?;
        let (parent_index, mtu) = self.shared(&mut links, parent)?;
        let made = macvtap::make(&mut links, parent_index, self.own.mac.bytes(), mtu, self.pairs);
        let (name, queues, namespace) = made.map_err(self.failed(format!("make a macvtap on {parent}")))?;
        Ok(self.attachment(name, queues, mtu, Some(namespace)))
    }

    /// An interface to share: its number, and the MTU of a macvtap on it.
    fn shared(&self, links: &mut Links, parent: &str) -> Result<(u32, u32), AttachError> {
        let seen = self.find(links, parent)?;
        let seen =
            seen.ok_or_else(|| self.missing("macvtap", parent, "; `ip link` lists those there are"))?;
        Ok((seen.index, self.own.mtu.map_or(seen.mtu, u32::from)))
    }

    fn links(&self) -> Result<Links, AttachError> {
        Links::open().map_err(self.failed("ask for interfaces"))
    }

    fn find(&self, links: &mut Links, name: &str) -> Result<Option<Seen>, AttachError> {
        links.find(name).map_err(self.failed(format!("look for {name}")))
    }

    fn missing(&self, key: &'static str, name: &str, advice: &'static str) -> AttachError {
        AttachError::Missing { id: self.id.to_owned(), key, name: name.to_owned(), advice }
    }

    /// An interface that was just made.
    fn seen(&self, links: &mut Links, name: &str) -> Result<Seen, AttachError> {
        self.find(links, name)?.ok_or_else(|| self.missing("tap", name, ""))
    }

    /// Opens a tap, or makes it, with a queue per pair; its name and they.
    fn open_tap(&self, name: &str) -> Result<(String, Vec<OwnedFd>), AttachError> {
        tun::open(name, self.pairs).map_err(|source| {
            let (id, name, pairs) = (self.id.to_owned(), name.to_owned(), self.pairs);
            match source.raw_os_error() {
                Some(libc::EBUSY) => AttachError::Busy { id, name },
                Some(libc::EINVAL) => {
                    let why =
                        "it is no tap, or was made with or without `multi_queue`, unlike what is needed";
                    AttachError::Mismatch { id, name, pairs, why }
                }
                Some(libc::E2BIG) => {
                    AttachError::Mismatch { id, name, pairs, why: "another process has queues of it" }
                }
                _ => self.failed(format!("open the tap {}", name.replace("%d", "N")))(source),
            }
        })
    }

    fn attachment(
        &self,
        interface: String,
        queues: Vec<OwnedFd>,
        mtu: u32,
        namespace: Option<OwnedFd>,
    ) -> Attachment {
        let queues = queues.into_iter().map(Arc::new).collect();
        // What the guest's driver takes (Linux: 68 to 65535 without the Ethernet header).
        let mtu = u16::try_from(mtu).ok().filter(|mtu| (68..=65_521).contains(mtu));
        Attachment { interface, queues, mtu, _namespace: namespace }
    }
}

#[cfg(test)]
mod attach_test;
#[cfg(test)]
mod lasting_test;
