//! `strata unit`: what systemd has to know of a machine, from its machine file.
//!
//! Owns the drop-ins under the templates `strata-vm@`, `vhost-blk@`, `vhost-net@` and `strata-attach@`, written at boot and at every
//! `systemctl daemon-reload` (so also by `enable`) by a systemd.generator(7) that calls this. A machine file that is
//! wrong costs its own machine only, and the reason is in that unit's description.

mod dropin;
mod machines;
mod nic;
mod register;
mod systemd;
#[cfg(test)]
mod unit_test;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use strata_config::{ConfigError, DeviceId, Machine, Name, Uuid};

use crate::profile;
use crate::say::{print, say};
use dropin::Files;
pub(crate) use dropin::slice;
use systemd::Systemd;

/// Where machine files are.
pub(crate) const MACHINES: &str = "/etc/strata/machines";

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct UnitArgs {
    /// The machine; all without it
    pub(crate) name: Option<Name>,
    /// The folder of machine files
    #[arg(long, value_name = "FOLDER", default_value = MACHINES)]
    pub(crate) machines: PathBuf,
    /// Write the files there, as a systemd generator does
    #[arg(long, value_name = "FOLDER", conflicts_with = "name")]
    pub(crate) generator: Option<PathBuf>,
    /// Enter the machine, which systemd runs, into systemd-machined's list; strata-register@NAME does this
    #[arg(long, requires = "name", conflicts_with = "generator", hide = true)]
    pub(crate) register: bool,
    /// Plug in this NIC of the machine, to stay until it is detached; strata-attach@ does this
    #[arg(long, value_name = "NIC", requires = "name", conflicts_with_all = ["generator", "register"], hide = true)]
    pub(crate) attach: Option<DeviceId>,
    /// Remove what was made for this NIC, if anything was
    #[arg(long, value_name = "MACHINE-NIC", conflicts_with_all = ["name", "generator"], hide = true)]
    pub(crate) detach: Option<String>,
}

/// Shows, or as a generator writes, the drop-ins.
///
/// # Errors
/// A machine file is wrong (when shown), or the folder cannot be written.
pub(crate) fn run(args: &UnitArgs) -> anyhow::Result<()> {
    if let Some(folder) = &args.generator {
        return generate(&args.machines, folder, Systemd::here());
    }
    if let Some(instance) = &args.detach {
        return nic::detach(instance);
    }
    if let (Some(name), Some(id)) = (&args.name, &args.attach) {
        return nic::attach(&generated(name)?, id);
    }
    let names = match &args.name {
        Some(name) if args.register => return register::register(name),
        Some(name) => vec![name.clone()],
        None => machines::names(&args.machines)?,
    };
    let systemd = Systemd::here();
    for name in names {
        let machine = identified(machines::read(&args.machines, &name)?);
        for (path, text) in dropin::of(&machine, systemd)? {
            print(&format!("# /run/systemd/generator/{}\n{text}\n", path.display()))?;
        }
    }
    Ok(())
}

fn generate(machines: &Path, folder: &Path, systemd: Systemd) -> anyhow::Result<()> {
    let mut instances: BTreeMap<String, Name> = BTreeMap::new();
    for name in machines::names(machines)? {
        let files = machines::read(machines, &name).map_err(anyhow::Error::from).and_then(|machine| {
            unique(&machine, &mut instances)?;
            dropin::of(&identified(machine), systemd)
        });
        let files = files.unwrap_or_else(|error| {
            say(format_args!(
                "strata-generator: {}: {error:#}",
                machines.join(format!("{name}.toml")).display()
            ));
            dropin::wrong(&name, &format!("{error:#}"))
        });
        write(folder, files)?;
    }
    Ok(())
}

/// Where the generator's copy of a machine file is.
fn copy(name: &Name) -> String {
    format!("/run/systemd/generator/strata/{name}.json")
}

/// The machine as systemd knows it: what the generator read at the last reload.
fn generated(name: &Name) -> Result<Machine, ConfigError> {
    Machine::from_file(Path::new(&copy(name)))
}

/// The machine of this name, from its file and what lies over it.
pub(crate) fn read(name: &Name) -> Result<Machine, ConfigError> {
    machines::read(Path::new(MACHINES), name)
}

/// Whether units can be made of it.
pub(crate) fn check(machine: &Machine) -> anyhow::Result<()> {
    dropin::of(machine, Systemd::default()).map(drop)
}

/// With a UUID, and what exits are assumed to cost, in any case.
pub(crate) fn identified(mut machine: Machine) -> Machine {
    // A host without an id has no systemd either; then the name alone has to do.
    let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    machine.uuid.get_or_insert_with(|| Uuid::generated(&host, &machine.name));
    machine.profile = profile::resolve(machine.profile);
    machine
}

/// `a-b`'s device `c` and `a`'s device `b-c` would be one instance.
fn unique(machine: &Machine, instances: &mut BTreeMap<String, Name>) -> anyhow::Result<()> {
    for instance in dropin::instances(machine) {
        if let Some(other) = instances.insert(instance.clone(), machine.name.clone()) {
            anyhow::bail!("its device {instance} is also one of machine {other}; give one another id");
        }
    }
    Ok(())
}

fn write(folder: &Path, files: Files) -> anyhow::Result<()> {
    for (path, text) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        // What is made of a machine file can be read by whom that file can be read by at most: root.
        let mode = if path.extension().is_some_and(|suffix| suffix == "json") { 0o600 } else { 0o644 };
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path);
        written
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
