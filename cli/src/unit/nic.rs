//! NICs under systemd: their backends' part of the drop-ins, and `strata-attach@`, which makes what one is plugged into.
//!
//! The texts are pure, called by the generator. [`attach`] and [`detach`] are what the unit runs; the work is
//! [`lasting`]'s.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use strata_config::{Cable, DeviceId, Machine, Name, Net, NetSource, OwnNet};

use super::dropin::{Backend, bare, slice};
use crate::attach::lasting;
use crate::plan::net_words;
use crate::say::say;

/// How long it is tried. At boot the network is begun before us, and a bridge made, or told to filter VLANs, a little later.
/// Under a running machine it is asked for again and again, and this keeps it from being so at full speed.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(50);

/// What a NIC is plugged into, and the unit that makes it.
pub(super) struct Place {
    pub(super) unit: String,
    interface: String,
    /// Directives of the unit for this kind of it.
    unit_lines: Vec<String>,
    service_lines: Vec<String>,
}

/// The backend of a NIC.
pub(super) fn backend<'a>(machine: &Machine, net: &'a Net, own: &OwnNet) -> anyhow::Result<Backend<'a>> {
    let name = lasting::interface(&machine.name, net, own);
    let pairs = machine.net_queues(net).to_string();
    let mut words = ["--tap", &name, "--num-queues", &pairs].map(str::to_owned).to_vec();
    words.extend(own.mtu.iter().flat_map(|mtu| ["--mtu".to_owned(), mtu.to_string()]));
    words.extend(net_words(own));
    let interface = bare(&name)?;
    let (mut extra, mut unit_lines, mut service_lines) = (Vec::new(), Vec::new(), Vec::new());
    let kind = match &own.cable {
        Cable::Tap(_) => {
            // One that is there is used as it is.
            unit_lines.push(format!("ConditionPathExists=!/sys/class/net/{interface}"));
            format!("tap {name}")
        }
        Cable::Bridge { name: bridge, .. } => format!("{name} on bridge {bridge}"),
        Cable::Macvtap(parent) => {
            extra.push(format!("DeviceAllow={} rw", lasting::node(&machine.name, net)));
            // Its node is passed on to the group.
            service_lines.push("SystemCallFilter=@chown".to_owned());
            format!("macvtap {name} on {parent}")
        }
    };
    let unit = format!("strata-attach@{}-{}.service", machine.name, net.id);
    let place = Some(Place { unit, interface, unit_lines, service_lines });
    let what = format!("NIC {} ({kind})", net.id);
    Ok(Backend { template: "vhost-net", id: net.id.as_str(), what, words, extra, place })
}

impl Place {
    /// Lines of the machine's unit. Not Requires=: it may be made anew under its guest. That the interface is there is
    /// looked at after all of these units have had their turn.
    pub(super) fn of_machine(&self) -> Vec<String> {
        let Self { unit, interface, .. } = self;
        vec![
            format!("Wants={unit}"),
            format!("After={unit}"),
            format!("AssertPathExists=/sys/class/net/{interface}"),
        ]
    }

    /// Lines of the backend's unit.
    pub(super) fn of_backend(&self) -> Vec<String> {
        vec![format!("Requires={}", self.unit), format!("After={}", self.unit)]
    }

    /// The unit's own.
    pub(super) fn text(&self, machine: &Name, backend: &Backend<'_>) -> String {
        let mut lines = vec![
            "[Unit]".to_owned(),
            format!("Description=Strata {machine}, cable of {}", backend.what.replace('%', "%%")),
            format!("PartOf=strata-vm@{machine}.service"),
        ];
        lines.extend(self.unit_lines.iter().cloned());
        lines.extend([
            "[Service]".to_owned(),
            format!("ExecStart=/usr/bin/strata unit {machine} --attach {}", backend.id),
            format!("Slice={}", slice(machine)),
            format!("LogExtraFields=STRATA_MACHINE={machine} STRATA_DEVICE={}", backend.id),
        ]);
        lines.extend(self.service_lines.iter().cloned());
        lines.join("\n") + "\n"
    }
}

/// Plugs in a NIC of the machine.
///
/// # Errors
/// The machine has no such NIC, or it cannot be plugged in.
pub(super) fn attach(machine: &Machine, id: &DeviceId) -> anyhow::Result<()> {
    let net = machine.nets.iter().find(|net| net.id == *id);
    let net = net.with_context(|| format!("the machine {} has no NIC {id}", machine.name))?;
    let NetSource::Own(own) = &net.source else { bail!("{id} is served by somebody else") };
    let end = Instant::now() + PATIENCE;
    loop {
        match lasting::attach(machine, net, own) {
            Err(_) if Instant::now() < end => std::thread::sleep(BETWEEN),
            done => {
                say(format_args!("{}", done?));
                return Ok(());
            }
        }
    }
}

/// Removes what [`attach`] made; `instance` is MACHINE-NIC.
///
/// # Errors
/// The kernel refuses.
pub(super) fn detach(instance: &str) -> anyhow::Result<()> {
    lasting::detach(instance).with_context(|| format!("cannot remove what was made for {instance}"))
}
