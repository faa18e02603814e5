//! The launcher's own socket, `.NAME.launcher` beside the machine's folder: `io.strata.Launcher`, for who may open it.
//!
//! Beside, not inside: the machine's vmm sees its folder, and one that was broken into could ask for a disk of any file
//! its launcher may open. No process of the machine has a path to this one.
//!
//! Called by the supervisor, which is given each request and answers it when it is done: [`crate::upgrade`],
//! [`crate::device`]. Requests are served one after another, so no two of them change a device at once.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use strata_config::{DiskEntry, NetEntry};
use strata_ipc::blocking::{Failure, Interface, parameters, spawn};

use crate::{device, upgrade};

/// How long anything may take: replacing all backends, each of which drains and starts within bounds and some of which
/// have to go back; the longest a guest may be waited for, and a backend's end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

const DESCRIPTION: &str = "\
# The launcher of one running machine.
interface io.strata.Launcher

# outcome: \"replaced\", \"current\" (the installed version ran already) or \"kept\" (the old one runs; reason says why).
# Times are null where nothing was replaced.
type Report (
  device: string,
  outcome: string,
  from: string,
  to: string,
  drain_milliseconds: ?float,
  stall_milliseconds: ?float,
  reason: ?string
)

# Replaces backends by the installed version, one after the other; device: only this one. again: also where the same
# version runs.
method Upgrade(device: ?string, again: ?bool) -> (devices: []Report)

# Has the guest let go of a device, ends its backend and frees its name and slot. force: ends the backend first, and takes
# the device away if the guest does not let go of it in time; forced: that was so. slot: where it was.
method Unplug(device: string, force: ?bool, timeout_milliseconds: ?int) -> (device: string, slot: ?int, forced: bool)

# Starts a backend and has the vmm take it into service. Give one of disk and net, with the keys of the machine file;
# paths are absolute.
method Plug(disk: ?object, net: ?object) -> (device: string, slot: ?int, forced: bool)

error Refused (reason: string)
";

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Other versions of backends.
    Upgrade(upgrade::Request),
    /// A device less or more.
    Device(device::Request),
}

struct Launcher<F>(F);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upgrade {
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    again: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unplug {
    device: String,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    timeout_milliseconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plug {
    #[serde(default)]
    disk: Option<DiskEntry>,
    #[serde(default)]
    net: Option<NetEntry>,
}

impl<F: Fn(Request) -> bool + Send + 'static> Launcher<F> {
    fn ask<T>(&self, request: Request, answer: &Receiver<Result<T, String>>) -> Result<T, Failure> {
        let ending = || Failure::refused("the machine is ending");
        if !(self.0)(request) {
            return Err(ending());
        }
        answer.recv_timeout(PATIENCE).map_err(|_| ending())?.map_err(Failure::refused)
    }

    fn device(&self, what: device::What) -> Result<Value, Failure> {
        let (answer, done) = sync_channel(1);
        let report = self.ask(Request::Device(device::Request { what, answer }), &done)?;
        serde_json::to_value(report).map_err(Failure::refused)
    }
}

impl<F: Fn(Request) -> bool + Send + 'static> Interface for Launcher<F> {
    fn name(&self) -> &'static str {
        "io.strata.Launcher"
    }

    fn description(&self) -> &'static str {
        DESCRIPTION
    }

    fn product(&self) -> &'static str {
        "strata"
    }

    fn call(&self, method: &str, given: Value) -> Result<Value, Failure> {
        match method {
            "Upgrade" => {
                let Upgrade { device, again } = parameters(given, "device")?;
                let (answer, done) = sync_channel(1);
                let request = upgrade::Request { device, again, answer };
                Ok(json!({ "devices": self.ask(Request::Upgrade(request), &done)? }))
            }
            "Unplug" => {
                let Unplug { device, force, timeout_milliseconds } = parameters(given, "device")?;
                let timeout = timeout_milliseconds.map(Duration::from_millis);
                self.device(device::What::Unplug { device, force, timeout })
            }
            "Plug" => match parameters(given, "disk")? {
                Plug { disk: Some(disk), net: None } => self.device(device::What::Disk(Box::new(disk))),
                Plug { disk: None, net: Some(net) } => self.device(device::What::Net(Box::new(net))),
                _ => Err(Failure::refused("give either a disk or a NIC")),
            },
            _ => Err(Failure::unknown(method)),
        }
    }
}

/// Where the launcher of the machine in `folder` listens. No machine's name begins with a dot.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    folder.with_file_name(format!(".{name}.launcher"))
}

/// The same, if somebody listens there: a machine under systemd has no launcher.
pub(crate) fn find(folder: &Path) -> Option<PathBuf> {
    let path = socket(folder);
    UnixStream::connect(&path).is_ok().then_some(path)
}

/// Serves it on a thread of its own; `ask` is given each request, and says whether there is still somebody for it.
pub(crate) fn serve(folder: &Path, ask: impl Fn(Request) -> bool + Send + 'static) -> anyhow::Result<()> {
    let path = socket(folder);
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    spawn(listener, Launcher(ask)).context("no thread for it")
}
