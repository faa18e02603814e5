//! The checked machine: what every other room works with. All values are within their ranges, all ids are
//! unique, all defaults are filled in.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::ConfigError;
use crate::file::MachineFile;
use crate::identity::Uuid;
use crate::name::{DeviceId, Name};
use crate::net::Net;
use crate::service::{Credentials, Ready, Resources};
use crate::serving::Serving;
use crate::vcpu::{Profile, Vcpu};

/// A machine that can be built, as far as one can tell without looking at the host.
///
/// Made only by checking a [`MachineFile`]; serialises as one with every default written out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "MachineFile", try_from = "MachineFile")]
#[non_exhaustive]
pub struct Machine {
    /// The machine's name.
    pub name: Name,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line: no NUL, no newline, at most 2047 bytes.
    pub cmdline: String,
    /// vCPUs, 1 to 255. KVM may allow fewer.
    pub cpus: u8,
    /// Guest memory.
    pub memory: Memory,
    /// Disks in order.
    pub disks: Vec<Disk>,
    /// NICs in order.
    pub nets: Vec<Net>,
    /// Other vhost-user devices in order.
    pub devices: Vec<GenericDevice>,
    /// Where hvc0 goes.
    pub console: Console,
    /// Where the 8250 goes; [`Console::Off`] means there is none.
    pub serial: Serial,
    /// End when the guest reboots.
    pub no_reboot: bool,
    /// Each process enters its sandbox.
    pub sandbox: bool,
    /// How long the guest may take to power off, up to an hour.
    pub stop_timeout: Duration,
    /// How the vCPUs are.
    pub vcpu: Vcpu,
    /// What becomes of the guest while a device has no process.
    pub backend: Backend,
    /// What exits are assumed to cost.
    pub profile: Profile,
    /// When it counts as started.
    pub ready: Ready,
    /// The UUID its guest sees; `None`: whoever starts it makes one.
    pub uuid: Option<Uuid>,
    /// What its guest's service manager is handed.
    pub credentials: Credentials,
    /// Its share of the host, where systemd runs it.
    pub resources: Resources,
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Bytes: 32 MiB to 16 TiB, a multiple of 2 MiB.
    pub size: u64,
    /// A hugetlbfs mount to take it from.
    pub hugetlbfs: Option<PathBuf>,
    /// Allocate and map all of it before the guest starts.
    pub prefault: bool,
}

/// A virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its id; also the name of its socket in the machine's folder.
    pub id: DeviceId,
    /// Who serves it.
    pub source: DiskSource,
    /// Queues asked for, 1 to 64; `None`: as many as the backend has, up to the vCPUs.
    pub queues: Option<u16>,
}

/// Who serves a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// An own vhost-blk process, from an image.
    File {
        /// The image file or block device.
        path: PathBuf,
        /// The image's format; `None`: raw, but refused when it begins like another format.
        format: Option<Format>,
        /// The guest cannot write.
        readonly: bool,
        /// 1 to 20 printable ASCII characters.
        serial: Option<String>,
        /// How.
        serving: Serving,
    },
    /// Somebody else, behind this socket.
    Socket(PathBuf),
}

impl DiskSource {
    /// The socket of whoever else serves it.
    #[must_use]
    pub fn foreign(&self) -> Option<&Path> {
        match self {
            Self::Socket(path) => Some(path),
            Self::File { .. } => None,
        }
    }
}

/// A disk image's format. Never guessed from the image: a guest that writes a raw disk could otherwise turn it
/// into a header that names other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Bytes of the disk, one to one.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// The name the file and vhost-blk use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Any other vhost-user device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenericDevice {
    /// Its id.
    pub id: DeviceId,
    /// The backend's socket.
    pub socket: PathBuf,
    /// The virtio device type, 1 to 63.
    pub device_id: u16,
    /// Queues asked for, 1 to 64; `None`: as many as the backend has.
    pub queues: Option<u16>,
}

/// Where a console's bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// Nowhere: there is no such device.
    Off,
    /// The launcher's standard input and output.
    Stdio,
    /// A pseudo-terminal, named on standard error.
    Pty,
    /// A file, appended to; nothing is read.
    File(PathBuf),
}

/// Where the serial port's bytes go; the same choices as for the console.
pub type Serial = Console;

impl Machine {
    /// Reads and checks a file, TOML or JSON. Relative paths are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`] naming key, value and what is allowed.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        MachineFile::from_file(path)?.try_into()
    }

    /// The queues an own vhost-blk is started with: those asked for, else one per vCPU up to 8.
    pub fn disk_queues(&self, disk: &Disk) -> u16 {
        disk.queues.unwrap_or_else(|| u16::from(self.cpus).min(8))
    }

    /// The queue pairs an own vhost-net is started with: those asked for, else one.
    pub fn net_queues(&self, net: &Net) -> u16 {
        net.queues.unwrap_or(1)
    }
}

impl FromStr for Machine {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        MachineFile::parse(text)?.try_into()
    }
}
