//! Which processes a machine needs, and with which arguments. The arguments are the seam to vmm, vhost-blk and
//! vhost-net; their own `--help` says what they mean.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use strata_config::{Disk, Machine, Net, NetGuard, NetLimit, NetSource, OwnNet};

use crate::attach::{AttachError, Attachment, attach, interface_file};
use crate::backend::control_socket;
use crate::child::Program;
use crate::disk;
use crate::profile;
use crate::programs::{ProgramMissing, find};
use crate::run_dir;
use crate::say::say;
use crate::upgrade::version::Version;

/// sockaddr_un holds 108 bytes with the NUL.
const LONGEST_SOCKET: usize = 107;

/// Why the processes cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Program(#[from] ProgramMissing),
    #[error(
        "the socket path {} is longer than the 107 bytes the kernel takes; give a shorter --name or id, or set STRATA_RUN_DIR",
        path.display()
    )]
    TooLong { path: PathBuf },
    #[error("cannot make the socket {}", path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot hand the machine to the vmm")]
    Handover(#[source] io::Error),
}

/// A process and what it is plugged into.
pub(crate) type Planned = (Program, Option<Attachment>);

/// A backend per disk image and tap, each on a listening socket the launcher keeps: a backend that is started
/// again finds its clients there.
pub(crate) fn backends(machine: &Machine, folder: &Path) -> Result<Vec<Planned>, PlanError> {
    let disks = machine.disks.iter().filter_map(|it| disk(machine, folder, it).transpose());
    let nets = machine.nets.iter().filter_map(|it| net(machine, folder, it).transpose());
    disks.chain(nets).collect()
}

/// A disk's; `None`: somebody else serves it.
pub(crate) fn disk(machine: &Machine, folder: &Path, disk: &Disk) -> Result<Option<Planned>, PlanError> {
    let Some(args) = disk::words(machine, disk) else { return Ok(None) };
    Ok(Some((backend(machine, folder, disk.id.as_str(), "vhost-blk", args)?, None)))
}

/// A NIC's, which is plugged in; `None`: somebody else serves it.
pub(crate) fn net(machine: &Machine, folder: &Path, net: &Net) -> Result<Option<Planned>, PlanError> {
    let NetSource::Own(own) = &net.source else { return Ok(None) };
    let attachment = attach(machine, net, own)?;
    note_interface(folder, net.id.as_str(), &attachment.interface)?;
    let mut args = attachment.words();
    args.extend(net_words(own));
    let mut program = backend(machine, folder, net.id.as_str(), "vhost-net", args)?;
    program.descriptors.extend(attachment.descriptors());
    Ok(Some((program, Some(attachment))))
}

/// Removes what a device's process had in the machine's folder.
pub(crate) fn clear(folder: &Path, id: &str) {
    let pid = folder.join(format!("{id}.pid"));
    for path in
        [folder.join(format!("{id}.sock")), control_socket(folder, id), interface_file(folder, id), pid]
    {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                say(format_args!("strata: cannot remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }
}

/// What the interface is called, for whoever looks for a NIC's counters.
fn note_interface(folder: &Path, id: &str, name: &str) -> Result<(), PlanError> {
    let path = interface_file(folder, id);
    std::fs::write(&path, name).map_err(|source| PlanError::Socket { path, source })
}

/// What vhost-net is told of a NIC beside its tap.
pub(crate) fn net_words(own: &OwnNet) -> Vec<String> {
    let mut words = vec!["--mac".to_owned(), own.mac.to_string()];
    let guard = &own.guard;
    let guards = guards(guard);
    if !guards.is_empty() {
        words.extend(["--guard".to_owned(), guards.join(",")]);
    }
    if !guard.addresses.is_empty() {
        let addresses: Vec<String> = guard.addresses.iter().map(ToString::to_string).collect();
        words.extend(["--allow-ip".to_owned(), addresses.join(",")]);
    }
    for (flag, NetLimit { rate, packets, burst }) in [("--tx-limit", own.tx), ("--rx-limit", own.rx)] {
        let rates = [("bits", rate), ("packets", packets)];
        let mut parts: Vec<String> =
            rates.iter().filter_map(|(name, rate)| rate.map(|rate| format!("{name}={}", rate.0))).collect();
        parts.extend(burst.map(|burst| format!("burst={}", burst.as_millis())));
        if !parts.is_empty() {
            words.extend([flag.to_owned(), parts.join(",")]);
        }
    }
    words
}

/// What vhost-net is told to guard, a word each.
pub(crate) fn guards(guard: &NetGuard) -> Vec<&'static str> {
    let all = [("mac", guard.mac), ("dhcp", guard.dhcp), ("ra", guard.ra)];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

fn backend(
    machine: &Machine,
    folder: &Path,
    id: &str,
    name: &'static str,
    mut args: Vec<String>,
) -> Result<Program, PlanError> {
    let listener: Arc<OwnedFd> = Arc::new(listen(&folder.join(format!("{id}.sock")))?.into());
    let control: Arc<OwnedFd> = Arc::new(listen(&control_socket(folder, id))?.into());
    args.extend(profile::backend_words(machine.profile, &args));
    args.extend(["--control-fd".to_owned(), control.as_raw_fd().to_string()]);
    args.extend(["--fd".to_owned(), listener.as_raw_fd().to_string()]);
    if !machine.sandbox {
        args.push("--no-sandbox".to_owned());
    }
    let path = find(name)?;
    // A backend that dies is started again as it was; another version comes by `strata upgrade` alone.
    let version = Version::open(&path).ok();
    Ok(Program { id: id.to_owned(), path, version, args, descriptors: vec![listener, control] })
}

fn listen(path: &Path) -> Result<UnixListener, PlanError> {
    fits(path)?;
    let failed = |source| PlanError::Socket { path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Its folder is 0700; this is for the day somebody opens that.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    crate::owner::give(path).map_err(failed)?;
    Ok(listener)
}

fn fits(path: &Path) -> Result<(), PlanError> {
    if path.as_os_str().len() > LONGEST_SOCKET {
        return Err(PlanError::TooLong { path: path.to_owned() });
    }
    Ok(())
}

/// The vmm, with the merged machine in a memory file and, where the machine has one, the far end of the console.
pub(crate) fn vmm(machine: &Machine, folder: &Path, console: Option<OwnedFd>) -> Result<Program, PlanError> {
    fits(&run_dir::control(folder))?;
    let json = serde_json::to_vec_pretty(machine).map_err(|error| PlanError::Handover(error.into()))?;
    let memory = memfd_create(c"strata-machine", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| PlanError::Handover(errno.into()))?;
    let mut file = File::from(memory);
    file.write_all(&json).map_err(PlanError::Handover)?;
    let file: OwnedFd = file.into();
    let mut args = vec!["--machine".to_owned(), format!("/dev/fd/{}", file.as_raw_fd())];
    args.extend(["--run-dir".to_owned(), folder.display().to_string()]);
    let mut descriptors = vec![Arc::new(file)];
    if let Some(console) = console {
        args.extend(["--console-fd".to_owned(), console.as_raw_fd().to_string()]);
        descriptors.push(Arc::new(console));
    }
    if !machine.sandbox {
        args.push("--no-sandbox".to_owned());
    }
    Ok(Program { id: "vmm".to_owned(), path: find("vmm")?, version: None, args, descriptors })
}
