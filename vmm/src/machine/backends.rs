//! Which backends a machine has and where their sockets are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use strata_config::{DiskSource, Machine, NetSource};
use strata_virtio::memory::Memory;

use super::MachineError;
use crate::frontend::{self, Handle, Hook, Kind, Settings};
use crate::pci::PciDevice;

/// Descriptors of a ring, at most. The guest's driver uses what the device offers.
const QUEUE_SIZE: u16 = 256;
/// How long a backend may take to answer at the start.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether rings stand, at most.
const LOOK: Duration = Duration::from_secs(1);
/// Folders that hold everybody's sockets: of these only the one socket is shown to the vmm.
const CROWDED: [&str; 6] = ["/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm"];

/// What the settings of all backends have in common, known before the sandbox hides the way to find it out.
#[derive(Debug, Clone)]
pub(super) struct Place {
    run_dir: PathBuf,
    give_up: Option<Duration>,
    look: Duration,
}

impl Place {
    /// Of a machine's own backends, which listen in its folder.
    ///
    /// # Errors
    /// The folder is not there.
    pub(super) fn new(machine: &Machine, run_dir: &Path) -> Result<Self, MachineError> {
        // Often enough that four looks fit into the time after which a backend counts as hung.
        let look = machine.backend.hung_after.map_or(LOOK, |time| LOOK.min(time / 4));
        Ok(Self { run_dir: real(run_dir)?, give_up: machine.backend.reset_after, look })
    }

    /// Whether all of a folder would be more than the one socket that is meant: it holds everybody's, or those of this
    /// machine's launcher and of other machines.
    fn is_crowded(&self, folder: &Path) -> bool {
        CROWDED.iter().any(|crowded| folder == Path::new(crowded)) || self.run_dir.parent() == Some(folder)
    }

    /// The settings of one of them.
    pub(super) fn settings(&self, id: &str, kind: Kind, queues: Option<u16>) -> Settings {
        self.elsewhere(id, self.run_dir.join(format!("{id}.sock")), kind, queues)
    }

    fn elsewhere(&self, id: &str, path: PathBuf, kind: Kind, queues: Option<u16>) -> Settings {
        let (id, give_up, look) = (id.to_owned(), self.give_up, self.look);
        Settings { id, path, kind, queues, queue_size: QUEUE_SIZE, give_up, look, hook: None }
    }
}

/// The settings of all backends, in the machine file's order, and the paths through which they are reached.
///
/// # Errors
/// A folder is not there.
pub(super) fn settings(
    machine: &Machine,
    place: &Place,
) -> Result<(Vec<Settings>, Vec<PathBuf>), MachineError> {
    let mut visible = vec![place.run_dir.clone()];
    let mut all = Vec::new();
    for disk in &machine.disks {
        let id = disk.id.as_str();
        all.push(match &disk.source {
            DiskSource::File { .. } => place.settings(id, Kind::Blk, Some(machine.disk_queues(disk))),
            DiskSource::Socket(path) => {
                place.elsewhere(id, foreign(path, place, &mut visible)?, Kind::Blk, disk.queues)
            }
        });
    }
    for net in &machine.nets {
        let id = net.id.as_str();
        all.push(match &net.source {
            NetSource::Own(nic) => {
                let kind = Kind::Net { mac: Some(nic.mac.bytes()) };
                place.settings(id, kind, Some(machine.net_queues(net)))
            }
            NetSource::Socket(path) => {
                place.elsewhere(id, foreign(path, place, &mut visible)?, Kind::Net { mac: None }, net.queues)
            }
        });
    }
    for device in &machine.devices {
        let path = foreign(&device.socket, place, &mut visible)?;
        let kind = Kind::Other { device_id: device.device_id };
        all.push(place.elsewhere(device.id.as_str(), path, kind, device.queues));
    }
    Ok((all, visible))
}

/// A socket of somebody else's, by its real path. Its folder is made visible, because a backend that restarts
/// makes its socket anew.
fn foreign(path: &Path, place: &Place, visible: &mut Vec<PathBuf>) -> Result<PathBuf, MachineError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = real(folder)?;
    let path = path.file_name().map_or_else(|| folder.clone(), |name| folder.join(name));
    let shown = if place.is_crowded(&folder) { path.clone() } else { folder };
    if !visible.contains(&shown) {
        visible.push(shown);
    }
    Ok(path)
}

fn real(folder: &Path) -> Result<PathBuf, MachineError> {
    folder.canonicalize().map_err(MachineError::system(format!("find the folder {}", folder.display())))
}

/// Connects to all of them; `hook` is called when one is lost or back.
///
/// # Errors
/// One does not answer, or does not offer what the machine file asks for.
pub(super) fn connect(
    backends: &[Settings],
    memory: &Arc<Memory>,
    hook: &Hook,
) -> Result<Vec<(PciDevice, Handle)>, MachineError> {
    backends
        .iter()
        .map(|settings| Settings { hook: Some(hook.clone()), ..settings.clone() })
        .map(|settings| frontend::connect(settings, memory, PATIENCE).map_err(Into::into))
        .collect()
}

#[cfg(test)]
#[path = "backends_test.rs"]
mod backends_test;
