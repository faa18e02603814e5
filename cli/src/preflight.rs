//! What can be seen to be missing on the host before anything is started. The processes check all of it
//! themselves; here it saves starting five of them to read which one complains.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use strata_config::{Cable, Disk, DiskSource, Machine, Net, NetSource};

/// What the host lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lacking {
    #[error("{key} = {}: {}", path.display(), cause(source))]
    File { key: String, path: PathBuf, source: io::Error },
    #[error("{key} = {}: is a folder, not a file", path.display())]
    Folder { key: String, path: PathBuf },
    #[error("{key} = {name}: no such interface; `ip link` lists those there are")]
    NoInterface { key: String, name: String },
    #[error(
        "{key} = {name}: that interface is no tap; name one that is, or none that exists, and it is made"
    )]
    NoTap { key: String, name: String },
    #[error("{key} = {name}: that interface is no bridge; make one with `ip link add NAME type bridge`")]
    NoBridge { key: String, name: String },
    #[error(
        "{key}: switch {switch} has no port {port}: it does not run (start it with `strata switch run FILE`), or its \
         file names no such port"
    )]
    NoPort { key: String, switch: String, port: String },
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, switch on virtualization in the firmware, or nested \
         virtualization where this host is itself a guest"
    )]
    NoKvm,
    #[error("no permission to open /dev/kvm: `usermod -aG kvm USER` as root, then log in again")]
    KvmPermission,
}

fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to read it".to_owned(),
        _ => error.to_string(),
    }
}

/// Looks for KVM and for everything `machine` names.
pub(crate) fn check(machine: &Machine) -> Result<(), Lacking> {
    kvm(Path::new("/dev/kvm"))?;
    named(machine)
}

/// Looks for the files and interfaces `machine` names.
pub(crate) fn named(machine: &Machine) -> Result<(), Lacking> {
    file("kernel", &machine.kernel)?;
    if let Some(path) = &machine.initrd {
        file("initrd", path)?;
    }
    machine.disks.iter().try_for_each(disk)?;
    machine.nets.iter().try_for_each(net)?;
    machine.devices.iter().try_for_each(|device| exists(&format!("{}: socket", device.id), &device.socket))
}

/// Looks for what a disk names.
pub(crate) fn disk(disk: &Disk) -> Result<(), Lacking> {
    let id = &disk.id;
    match &disk.source {
        DiskSource::File { path, .. } => file(&format!("{id}: path"), path),
        DiskSource::Socket(path) => exists(&format!("{id}: socket"), path),
    }
}

/// Looks for what a NIC names.
pub(crate) fn net(net: &Net) -> Result<(), Lacking> {
    let id = &net.id;
    match &net.source {
        NetSource::Own(own) => cable(id.as_str(), &own.cable, Path::new("/sys/class/net")),
        NetSource::Socket(path) => match crate::switch::port_of(path) {
            Some((switch, port)) if !path.exists() => {
                Err(Lacking::NoPort { key: id.to_string(), switch, port })
            }
            _ => exists(&format!("{id}: socket"), path),
        },
    }
}

pub(crate) fn file(key: &str, path: &Path) -> Result<(), Lacking> {
    let lacking = |source| Lacking::File { key: key.to_owned(), path: path.to_owned(), source };
    let opened = File::open(path).and_then(|file| file.metadata()).map_err(lacking)?;
    if opened.is_dir() {
        return Err(Lacking::Folder { key: key.to_owned(), path: path.to_owned() });
    }
    Ok(())
}

fn exists(key: &str, path: &Path) -> Result<(), Lacking> {
    std::fs::metadata(path).map(drop).map_err(|source| Lacking::File {
        key: key.to_owned(),
        path: path.to_owned(),
        source,
    })
}

/// What a NIC is plugged into; a tap that is not there is made.
pub(crate) fn cable(id: &str, cable: &Cable, interfaces: &Path) -> Result<(), Lacking> {
    let (key, name, made) = match cable {
        Cable::Tap(name) => ("tap", name, true),
        Cable::Bridge { name, .. } => ("bridge", name, false),
        Cable::Macvtap(name) => ("macvtap", name, false),
    };
    let folder = interfaces.join(name);
    let has = |attribute: &str| folder.join(attribute).exists();
    let (key, name) = (format!("{id}: {key}"), name.to_owned());
    match cable {
        _ if !folder.exists() => {
            if made {
                Ok(())
            } else {
                Err(Lacking::NoInterface { key, name })
            }
        }
        // tun_flags is an attribute of taps and tuns only; macvtaps have theirs under macvtap/.
        Cable::Tap(_) if !has("tun_flags") && !has("macvtap") => Err(Lacking::NoTap { key, name }),
        Cable::Bridge { .. } if !has("bridge") => Err(Lacking::NoBridge { key, name }),
        _ => Ok(()),
    }
}

pub(crate) fn kvm(path: &Path) -> Result<(), Lacking> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Lacking::NoKvm),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Lacking::KvmPermission),
        // Anything stranger is the vmm's to explain, which knows what it needs from it.
        _ => Ok(()),
    }
}
