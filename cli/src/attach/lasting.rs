//! What a NIC is plugged into where no process stays that could hold it: under systemd. A persistent tap or a macvtap in
//! the host's own network namespace, which members of this process's group may open.
//!
//! Called by `strata unit` in `strata-attach@MACHINE-NIC`, a unit of a moment with the one right that this takes
//! (CAP_NET_ADMIN). Each interface bears that unit's name as its alias, and nothing is removed that does not. What
//! fails leaves nothing behind.
//!
//! Refuses what [`super::attach`] does, and to take an interface of the name it needs that is somebody else's. A tap of
//! the machine file's own name is no such: it is left to whoever made it.

use nix::unistd::getegid;
use strata_config::{Cable, Machine, Name, Net, OwnNet};

use super::link::Links;
use super::{AttachError, Plug, macvtap, tun};

/// The longest name of an interface.
const LONGEST: usize = 15;

/// The alias of what is made for a NIC: the unit that does it.
fn mark(instance: &str) -> String {
    format!("strata-attach@{instance}")
}

/// The name of the interface of a NIC. What is made without a name in the machine file gets one that people know it by:
/// `vm-web-net0`, or as much of it as there is room for and a number.
pub(crate) fn interface(machine: &Name, net: &Net, own: &OwnNet) -> String {
    if let Cable::Tap(name) = &own.cable {
        return name.clone();
    }
    let full = format!("vm-{machine}-{}", net.id);
    if full.len() <= LONGEST {
        return full;
    }
    let start: String = full.chars().take(LONGEST - 7).collect();
    format!("{start}-{:06x}", hash(&full) & 0x00ff_ffff)
}

/// The node of a NIC's macvtap. Its interface's number is in it, so that follows from the NIC's name, too.
pub(crate) fn node(machine: &Name, net: &Net) -> String {
    macvtap::node(number(machine, net)).display().to_string()
}

fn number(machine: &Name, net: &Net) -> u32 {
    macvtap::large(hash(&format!("{machine}-{}", net.id)))
}

/// FNV-1a: spread out and never changing is enough.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Plugs in one NIC of `machine`, to stay; what was done, for people.
pub(crate) fn attach(machine: &Machine, net: &Net, own: &OwnNet) -> Result<String, AttachError> {
    let (id, name) = (net.id.as_str(), interface(&machine.name, net, own));
    let plug = Plug { id, pairs: machine.net_queues(net), own };
    let mark = mark(&format!("{}-{id}", machine.name));
    let mut links = plug.links()?;
    // Of a machine whose end nobody was left to see to. Whatever used it ended before this unit began.
    remove(&mut links, &mark).map_err(plug.failed("remove what an earlier start has left"))?;
    if plug.find(&mut links, &name)?.is_some() {
        return match own.cable {
            Cable::Tap(_) => Ok(format!("{id}: the tap {name} is there already and stays its maker's")),
            _ => Err(AttachError::Taken { id: id.to_owned(), name }),
        };
    }
    match &own.cable {
        Cable::Tap(_) => {
            plug.lasting_tap(&mut links, &name, &mark, |links| {
                let seen = plug.seen(links, &name)?;
                let up = links.bring_up(seen.index, own.mtu.map_or(seen.mtu, u32::from), None);
                up.map_err(plug.failed(format!("bring up {name}")))
            })?;
            Ok(format!("{id}: the tap {name}"))
        }
        Cable::Bridge { name: bridge, vlans } => {
            let master = plug.master(&mut links, bridge, vlans)?;
            plug.lasting_tap(&mut links, &name, &mark, |links| plug.join(links, &name, &master).map(drop))?;
            Ok(format!("{id}: {name} is a port of {bridge}"))
        }
        Cable::Macvtap(parent) => {
            let (parent_index, mtu) = plug.shared(&mut links, parent)?;
            let index = number(&machine.name, net);
            let failed = || plug.failed(format!("make a macvtap on {parent}"));
            links.add_macvtap(parent_index, index, &name, own.mac.bytes(), None).map_err(failed())?;
            let done = links
                .set_alias(index, &mark)
                .and_then(|()| macvtap::give(index, getegid().as_raw()))
                .and_then(|()| links.bring_up(index, mtu, None));
            if done.is_err() {
                // What went wrong first is told.
                let _ = links.remove(index);
            }
            done.map_err(failed())?;
            Ok(format!("{id}: {name} is a macvtap on {parent}"))
        }
    }
}

impl Plug<'_> {
    /// Makes a tap of this name, has `place` put it where it belongs, and only then has it stay.
    fn lasting_tap(
        &self,
        links: &mut Links,
        name: &str,
        mark: &str,
        place: impl FnOnce(&mut Links) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let tap = tun::make(name).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => AttachError::Taken { id: self.id.to_owned(), name: name.to_owned() },
            _ => self.failed(format!("make the tap {name}"))(source),
        })?;
        let index = self.seen(links, name)?.index;
        links.set_alias(index, mark).map_err(self.failed(format!("mark {name}")))?;
        place(links)?;
        tun::keep(&tap, getegid().as_raw()).map_err(self.failed(format!("have {name} stay")))
    }
}

/// Removes what was made for a NIC, if anything was; `instance` is MACHINE-NIC.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn detach(instance: &str) -> std::io::Result<()> {
    remove(&mut Links::open()?, &mark(instance))
}

fn remove(links: &mut Links, mark: &str) -> std::io::Result<()> {
    for seen in links.with_alias(mark)? {
        match links.remove(seen.index) {
            // Gone by itself meanwhile, as a macvtap with the interface below it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            other => other?,
        }
    }
    Ok(())
}
