//! `strata run`: from the flags to the exit status.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::Context;
use strata_config::{ConfigError, Console, Machine, MachineFile, Resources};

use crate::args::RunArgs;
use crate::escape::Mode;
use crate::plan;
use crate::preflight;
use crate::run_dir::{RunDir, base};
use crate::say::say;
use crate::shuttle::Shuttle;
use crate::supervise::{Event, Supervisor};

/// The machine the flags and the file describe together.
///
/// # Errors
/// What is wrong with either, for exit status 2.
pub(crate) fn machine(args: RunArgs) -> Result<Machine, ConfigError> {
    let mut file = match &args.file {
        Some(path) => MachineFile::from_file(path)?,
        None => MachineFile::default(),
    };
    let mut flags = args.overlay();
    if let Ok(here) = std::env::current_dir() {
        flags.resolve(&here);
    }
    file.overlay(flags);
    file.plug(&base());
    if file.name.is_none() {
        file.name = Some(format!("vm-{}", std::process::id()));
    }
    file.try_into().map(crate::unit::identified)
}

/// Runs the machine to its end.
///
/// # Errors
/// What failed and why, for exit status 1.
pub(crate) fn run(machine: &Machine) -> anyhow::Result<()> {
    preflight::check(machine)?;
    let run_dir = RunDir::create(&base(), &machine.name)?;
    run_dir.note(machine)?;
    let backends = plan::backends(machine, run_dir.path())?;
    let (near, far) = if machine.console == Console::Stdio || machine.serial == Console::Stdio {
        let (near, far) = UnixStream::pair().context("cannot make the console's socket")?;
        (Some(near), Some(OwnedFd::from(far)))
    } else {
        (None, None)
    };
    let vmm = plan::vmm(machine, run_dir.path(), far)?;
    if machine.resources != Resources::default() {
        say("strata: note: `resources` are for systemd to give (strata-vm@NAME); this run has no limits");
    }
    if !machine.sandbox {
        say("strata: WARNING: the processes run WITHOUT their sandboxes");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (supervisor, keys) = Supervisor::new(machine, &run_dir);
    let shuttle = match near {
        Some(near) => {
            let key = move |key| drop(keys.send(Event::Key(key)));
            Some(Shuttle::start(near, Mode::Run, key, || {}).context("cannot connect the console")?)
        }
        None => None,
    };
    let ended = runtime.block_on(supervisor.run(backends, vmm));
    if let Some(shuttle) = shuttle {
        shuttle.finish();
    }
    Ok(ended?)
}
