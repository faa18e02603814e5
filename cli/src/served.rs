//! Devices of running machines that our backends serve, as commands address them: by machine and id.
//!
//! Owns the way from such a pair to a backend's control socket. Called by [`crate::disk`], [`crate::net`] and, for what a
//! machine is, [`crate::reload`]. Refuses
//! devices that are not there, with the list of those that are, and such as somebody else's backend serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use strata_config::{DeviceId, Machine, Name};

use crate::backend::{call, control_socket};
use crate::control;
use crate::run_dir::{Running, base};

/// A kind of device: what people call it, and how its backends are asked.
pub(crate) struct Kind {
    pub(crate) word: &'static str,
    /// The Varlink interface of its backends.
    pub(crate) interface: &'static str,
    /// A machine's devices of this kind, each with the socket of whoever else serves it.
    pub(crate) devices: fn(&Machine) -> Devices<'_>,
}

pub(crate) type Devices<'a> = Vec<(&'a DeviceId, Option<&'a Path>)>;

/// A device that one of our backends serves.
pub(crate) struct Served {
    pub(crate) machine: String,
    pub(crate) id: String,
    pub(crate) socket: PathBuf,
    interface: &'static str,
}

impl Kind {
    /// The device `id` of a machine, which is known to be ours.
    pub(crate) fn known(&self, running: &Running, id: &DeviceId) -> Served {
        let (id, interface) = (id.as_str().to_owned(), self.interface);
        Served { machine: running.name(), socket: control_socket(&running.path, &id), id, interface }
    }

    /// The device `id` of the machine `name`.
    ///
    /// # Errors
    /// The machine does not run, it has no such device, or that is not ours.
    pub(crate) fn find(&self, name: &Name, id: &DeviceId) -> anyhow::Result<Served> {
        let running = control::find(name)?;
        let machine = machine_of(&running)?;
        let all = (self.devices)(&machine);
        match all.iter().find(|(there, _)| *there == id) {
            Some((_, None)) => Ok(self.known(&running, id)),
            Some((_, Some(path))) => anyhow::bail!(
                "{} of {name} is served by another program, behind {}: ask that",
                id.as_str(),
                path.display()
            ),
            None if all.is_empty() => {
                anyhow::bail!("{name} has no {} {}; it has none at all", self.word, id.as_str())
            }
            None => {
                let ids: Vec<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
                anyhow::bail!("{name} has no {} {}; it has {}", self.word, id.as_str(), ids.join(", "))
            }
        }
    }

    /// The device that is named, all of a machine's that are ours, or all machines'.
    ///
    /// # Errors
    /// As [`Kind::find`], or it is not to be known what a machine has.
    pub(crate) fn chosen(&self, name: Option<&Name>, id: Option<&DeviceId>) -> anyhow::Result<Vec<Served>> {
        let machines = match (name, id) {
            (Some(name), Some(id)) => return Ok(vec![self.find(name, id)?]),
            (Some(name), None) => vec![control::find(name)?],
            (None, _) => Running::all(&base())?,
        };
        let mut chosen = Vec::new();
        for running in machines {
            let machine = machine_of(&running)?;
            let ours = (self.devices)(&machine).into_iter().filter(|(_, other)| other.is_none());
            chosen.extend(ours.map(|(id, _)| self.known(&running, id)));
        }
        Ok(chosen)
    }
}

impl Served {
    /// Calls a method of its backend and gives the answer's parameters.
    ///
    /// # Errors
    /// As [`call`].
    pub(crate) fn ask(&self, method: &str, parameters: Value, patience: Duration) -> anyhow::Result<Value> {
        call(&self.socket, &format!("{}.{method}", self.interface), parameters, patience)
            .with_context(|| format!("{} of {}", self.id, self.machine))
    }
}

/// What a machine's launcher left in its folder.
pub(crate) fn machine_of(running: &Running) -> anyhow::Result<Machine> {
    running.machine().context("cannot read what the machine is")
}
