//! Devices of running machines that our backends serve, as commands address them: by machine and id.
//!
//! Owns the way from such a pair to a backend's control socket. Called by [`crate::disk`] and [`crate::net`]. Refuses
//! devices that are not there, with the list of those that are, and such as somebody else's backend serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use strata_config::{DeviceId, Machine};

use crate::backend::{call, control_socket};
use crate::run_dir::Running;

/// A device that one of our backends serves.
pub(crate) struct Served {
    pub(crate) machine: String,
    pub(crate) id: String,
    pub(crate) socket: PathBuf,
    /// The Varlink interface of its backend.
    interface: &'static str,
}

impl Served {
    /// The device `id` of a machine, which is known to be ours.
    pub(crate) fn new(running: &Running, id: &str, interface: &'static str) -> Self {
        let socket = control_socket(&running.path, id);
        Self { machine: running.name(), id: id.to_owned(), socket, interface }
    }

    /// The device `id` among `all` of its kind, each with the socket of whoever else serves it.
    ///
    /// # Errors
    /// There is none, or it is not ours.
    pub(crate) fn among<'a>(
        all: impl IntoIterator<Item = (&'a DeviceId, Option<&'a Path>)>,
        kind: &str,
        id: &DeviceId,
        running: &Running,
        interface: &'static str,
    ) -> anyhow::Result<Self> {
        let (name, all) = (running.name(), all.into_iter().collect::<Vec<_>>());
        match all.iter().find(|(there, _)| *there == id) {
            Some((_, None)) => Ok(Self::new(running, id.as_str(), interface)),
            Some((_, Some(path))) => anyhow::bail!(
                "{} of {name} is served by another program, behind {}: ask that",
                id.as_str(),
                path.display()
            ),
            None if all.is_empty() => {
                anyhow::bail!("{name} has no {kind} {}; it has none at all", id.as_str())
            }
            None => {
                let ids: Vec<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
                anyhow::bail!("{name} has no {kind} {}; it has {}", id.as_str(), ids.join(", "))
            }
        }
    }

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
    Machine::from_file(&running.path.join("machine.json")).context("cannot read what the machine is")
}
