//! The machine: opens everything, enters the sandbox, builds a board, and owns it until it ends.
//!
//! One thread, this one, owns all state. vCPUs, devices, the control socket and signals send it [`Event`]s and
//! touch nothing themselves, so there is no lock to hold wrong and no order to get wrong.
//!
//! ```text
//!   open parts -> isolate -> memory -> lock -> build board
//!                                                  |
//!                                               Booting
//!                                                  | all is loaded, vCPUs may run
//!                                                  v        pause
//!               reset: next life of the board   Running <----------> Paused
//!               <-------------------------------   |       resume      |
//!                                                  | power-off, panic, failure, quit, reset with no_reboot
//!                                                  v                   |
//!                                               Stopping <-------------+
//! ```

mod backends;
mod board;
mod endpoint;
mod file;
mod hotplug;
mod life;
mod parts;
mod ready;
mod roster;
mod service;
mod shared;
mod signals;
mod slots;
mod terminals;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

pub use hotplug::{Arrival, Change};
pub use life::{Command, Event, Failure};
pub use ready::{Lines, Said};
pub use roster::{Backend, Member, Roster};
pub use shared::{Meters, Shared};
use strata_config::ConfigError;
use strata_sandbox::{Namespaces, Role, SandboxError, Spec};

use crate::args::Args;
use crate::frontend::FrontendError;
use crate::kvm::host::{Host, HostError};
use crate::kvm::vcpu::VcpuError;
use crate::kvm::vm::VmError;
use crate::memory::{Ram, RamError};
use crate::pci::{PciError, SHADOW_SIZE, Shadow};
use crate::x86::acpi::AcpiError;
use crate::x86::boot::BootError;
use crate::x86::cmdline::TooLong;
use crate::x86::kernel::KernelError;
use crate::x86::smbios::SmbiosError;

/// Why a machine could not be run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine file.
    #[error("machine file {}", path.display())]
    Config {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// This host cannot run it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Kernel or initrd.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Loading them.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The command line for the guest.
    #[error(transparent)]
    Cmdline(#[from] TooLong),
    /// Guest memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The sandbox.
    #[error("cannot enter the sandbox")]
    Sandbox(#[from] SandboxError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// SMBIOS tables.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// The PCI bus.
    #[error("cannot make the PCI bus")]
    Pci(#[from] PciError),
    /// A backend.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// Two things at one address; a fault of this program.
    #[error("the machine's own devices do not fit together")]
    Bus(#[from] crate::bus::BusError),
    /// Something the system did not give.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The guest or the machine failed while running.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl MachineError {
    fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }
}

/// Runs a machine until it ends well.
///
/// # Errors
/// It could not be started, or did not end well.
pub fn run(args: &Args) -> Result<(), MachineError> {
    strata_sandbox::close_inherited(&needed(args));
    let machine = file::read(&args.machine)?;
    let sandboxed = machine.sandbox && !args.no_sandbox;
    signals::block().map_err(MachineError::system("block signals"))?;
    // Never let go of but by the process's end: the filter has no flock to do it with.
    let _held = std::mem::ManuallyDrop::new(match args.namespaces {
        Namespaces::Given => Some(service::hold(&args.run_dir, &machine)?),
        Namespaces::Own => None,
    });
    let host = Host::open()?;
    host.require_hardware()?;
    let mut parts = parts::Parts::open(machine, args, host)?;

    let isolated = if sandboxed {
        let spec = Spec {
            binds: std::mem::take(&mut parts.visible),
            namespaces: args.namespaces,
            ..Spec::new(Role::Vmm)
        };
        Some(strata_sandbox::isolate(spec)?)
    } else {
        strata_sandbox::disabled(Role::Vmm);
        None
    };
    let memory = &parts.machine.memory;
    let (size, prefault) = (memory.size, memory.prefault);
    let ram = Ram::new(size, prefault, parts.huge_pages.take(), service::memory_file)?;
    let shadow = shadow().map_err(MachineError::system("make PCI configuration space"))?;
    if let Some(isolated) = isolated {
        isolated.lock()?;
    }
    life::Life::new(parts, ram, Arc::new(shadow), args.namespaces)?.run()
}

/// The descriptors that are ours although we did not open them.
fn needed(args: &Args) -> Vec<RawFd> {
    // Without a descriptor for the console it is standard input.
    [file::descriptor(&args.machine), Some(args.console_fd.unwrap_or(0))].into_iter().flatten().collect()
}

/// PCI configuration space, on a huge page where there is one: then a guest scans the bus with one page fault.
fn shadow() -> io::Result<Shadow> {
    match service::memory_file(SHADOW_SIZE as u64) {
        Ok(file) => Shadow::new(file),
        Err(_) => Shadow::anonymous(),
    }
}
