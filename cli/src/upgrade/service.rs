//! The launcher's own socket, `launcher.sock` in the machine's folder: `io.strata.Launcher`, for who may open it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use strata_ipc::blocking::{Failure, Interface, parameters, spawn};

use super::Request;

/// Its name in the machine's folder.
pub(crate) const SOCKET: &str = "launcher.sock";

/// How long replacing all backends may take: each drains and starts within bounds, some have to go back.
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

error Refused (reason: string)
";

struct Launcher<F>(F);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    again: bool,
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
        if method != "Upgrade" {
            return Err(Failure::unknown(method));
        }
        let Asked { device, again } = parameters(given, "device")?;
        let (answer, reports) = sync_channel(1);
        if !(self.0)(Request { device, again, answer }) {
            return Err(Failure::refused("the machine is ending"));
        }
        match reports.recv_timeout(PATIENCE) {
            Ok(Ok(reports)) => Ok(json!({ "devices": reports })),
            Ok(Err(why)) => Err(Failure::refused(why)),
            Err(_) => Err(Failure::refused("the machine is ending")),
        }
    }
}

/// Serves it on a thread of its own; `ask` is given each request, and says whether there is still somebody for it.
pub(crate) fn serve(folder: &Path, ask: impl Fn(Request) -> bool + Send + 'static) -> anyhow::Result<()> {
    let path = folder.join(SOCKET);
    // Not given to the account the machine's processes run as: started by root, they cannot ask for anything here.
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    spawn(listener, Launcher(ask)).context("no thread for it")
}
