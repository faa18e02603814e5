//! All that has a path, opened before the sandbox closes the door. Also where most mistakes of a user show, so the
//! order is: cheap and likely first.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use strata_config::{Console, Halt, Machine, Uuid};
use strata_sandbox::Notify;

use super::endpoint::Endpoint;
use super::{MachineError, backends, service};
use crate::args::Args;
use crate::frontend::Settings;
use crate::kvm::cpuid::{Template, Wanted};
use crate::kvm::host::Host;
use crate::memory::HugePages;
use crate::x86::boot::Payload;
use crate::x86::cmdline::{self, Facts};
use crate::x86::kernel::{Kernel, Source};
use crate::x86::smbios;

/// The control socket's name in the machine's folder.
const CONTROL: &str = "control.sock";

/// Everything opened.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) host: Host,
    pub(super) cpuid: Template,
    pub(super) payload: Payload,
    /// What the guest's firmware tables say of it.
    pub(super) identity: smbios::Facts,
    pub(super) huge_pages: Option<HugePages>,
    /// Taken by whoever serves it, as are the terminals.
    pub(super) control: Option<UnixListener>,
    pub(super) console: Option<Endpoint>,
    pub(super) serial: Option<Endpoint>,
    pub(super) backends: Vec<Settings>,
    /// For those that come later.
    pub(super) place: backends::Place,
    /// The service manager, if there is one; taken by what knows the machine's state.
    pub(super) notify: Notify,
    /// What the sandbox has to leave visible so that backends can be reached, again and again.
    pub(super) visible: Vec<PathBuf>,
}

impl Parts {
    /// Opens everything for `machine` on `host`.
    ///
    /// # Errors
    /// Something is missing, is not what it should be, or does not fit.
    pub(super) fn open(machine: Machine, args: &Args, host: Host) -> Result<Self, MachineError> {
        let facts =
            Facts { console: machine.console != Console::Off, serial: machine.serial != Console::Off };
        let kernel = Kernel::open(&machine.kernel)?;
        let initrd = machine.initrd.as_deref().map(|path| Source::open("the initrd", path)).transpose()?;
        let cmdline = cmdline::complete(&machine.cmdline, facts, kernel.cmdline_limit())?;
        let payload = Payload { kernel, initrd, cmdline };
        payload.place(machine.memory.size)?;
        let identity = smbios::Facts {
            name: machine.name.to_string(),
            uuid: machine.uuid.map(Uuid::bytes).unwrap_or_default(),
            credentials: service::credentials(&machine)?,
        };
        smbios::check(&identity)?;

        host.require_vcpus(machine.cpus.into())?;
        if machine.vcpu.halt == Halt::Guest {
            host.require_own_halt()?;
        }
        let cpuid = Template::new(
            host.supported.as_slice(),
            Wanted {
                topology: machine.vcpu.topology,
                nested: machine.vcpu.nested,
                vmx_registers: host.registers.has_vmx(),
                tsc_deadline: host.tsc_deadline,
                polls: machine.vcpu.halt == Halt::Poll,
            },
        );
        if machine.vcpu.nested && !cpuid.is_nested() {
            tracing::info!(
                "the guest cannot run virtual machines of its own: this host's KVM does not offer nested \
                 virtualization (module parameter nested=1 of kvm_intel or kvm_amd)"
            );
        }
        let huge_pages = machine.memory.hugetlbfs.as_deref().map(HugePages::open).transpose()?;
        let console = Endpoint::open("console", &machine.console, args.console_fd)?;
        let serial = Endpoint::open("serial port", &machine.serial, args.console_fd)?;
        let control = Some(listen(&args.run_dir)?);
        let place = backends::Place::new(&machine, &args.run_dir)?;
        let (backends, visible) = backends::settings(&machine, &place)?;
        Ok(Self {
            machine,
            host,
            cpuid,
            payload,
            identity,
            huge_pages,
            control,
            console,
            serial,
            backends,
            place,
            notify: Notify::from_environment(),
            visible,
        })
    }
}

/// The control socket: 0600, in place of one that an earlier vmm left behind.
fn listen(run_dir: &Path) -> Result<UnixListener, MachineError> {
    let path = run_dir.join(CONTROL);
    let failed = |source| MachineError::System {
        doing: format!("make the control socket {}", path.display()),
        source,
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
