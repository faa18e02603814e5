//! The machine file as it is written: reading it from TOML or JSON, laying flags over it, its JSON Schema.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::BackendEntry;
use crate::entry::{DeviceEntry, DiskEntry};
use crate::error::ConfigError;
use crate::name::Name;
use crate::net::NetEntry;
use crate::node::Node;
use crate::service::ResourcesEntry;
use crate::size::NumberOrText;
use crate::vcpu::VcpuEntry;

/// A machine as written in TOML, in JSON or in flags: the same keys in all three, all optional here.
/// `Machine::try_from` (or [`crate::Machine::from_file`]) checks it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Strata machine", inline)]
pub struct MachineFile {
    /// The machine's name: 1 to 64 of a-z, 0-9, `-`, `_`, `.`; default: the file's name without its suffix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest's kernel: a bzImage or an ELF vmlinux with a PVH entry. The only key without a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; default: `console=hvc0`, or `console=ttyS0` when only the serial port is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// vCPUs, 1 to 255; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub cpus: Option<i64>,
    /// Guest memory, e.g. `512M` or `6G` (powers of 1024); a plain number means MiB; default `512M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<NumberOrText>,
    /// Disks, in the order the guest numbers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskEntry>,
    /// NICs, in the order the guest numbers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetEntry>,
    /// Other vhost-user devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device: Vec<DeviceEntry>,
    /// Where the virtio console (hvc0) goes: `stdio`, `off`, `pty` or `file=PATH`; default `stdio`, or `off`
    /// when the serial port has stdio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// Where an 8250 serial port goes: `off` (no such port, the default), `stdio`, `pty` or `file=PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// End the machine when the guest reboots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_reboot: Option<bool>,
    /// Each process in its sandbox; default true. False is for debugging only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<bool>,
    /// How long the guest may take to power off before it is killed: seconds, or e.g. `500ms`; default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<NumberOrText>,
    /// A mounted hugetlbfs to take guest memory from; default: transparent huge pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlbfs: Option<PathBuf>,
    /// Allocate and map all guest memory before the guest starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<bool>,
    /// What exits are assumed to cost: `nested` (dear), `bare` (cheap), or `auto`, the default: nested where a
    /// hypervisor is below this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "nested", "bare"]))]
    pub profile: Option<String>,
    /// How the vCPUs are.
    #[serde(default, skip_serializing_if = "VcpuEntry::is_default")]
    pub vcpu: VcpuEntry,
    /// What becomes of the guest while the process behind a device is gone.
    #[serde(default, skip_serializing_if = "BackendEntry::is_default")]
    pub backend: BackendEntry,
    /// When systemd counts the machine as started: `vmm`, when its vCPUs run (the default), or `guest`, when the guest
    /// writes the line `READY=1` to its /dev/hvc1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["vmm", "guest"]))]
    pub ready: Option<String>,
    /// The UUID the guest sees (SMBIOS type 1; systemd in the guest makes its machine id of it); default: made from the
    /// host's machine id and the machine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Credentials for systemd in the guest, by name, as text (SMBIOS type 11). Whoever may read this file may read
    /// them: secrets belong into `credential_files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, String>,
    /// Credentials by name, as files that are read when the machine starts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_files: BTreeMap<String, PathBuf>,
    /// The machine's share of the host, where systemd runs it.
    #[serde(default, skip_serializing_if = "ResourcesEntry::is_default")]
    pub resources: ResourcesEntry,
}

impl MachineFile {
    /// Reads TOML.
    ///
    /// # Errors
    /// [`ConfigError`] with line and column for syntax, with the key's path for everything else.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::deserialize(Node::of_toml(text)?)
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`MachineFile::from_toml`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::deserialize(Node::of_json(text)?)
    }

    /// Reads TOML or JSON: a text whose first character is `{` is JSON.
    ///
    /// # Errors
    /// As [`MachineFile::from_toml`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::deserialize(Node::parse(text)?)
    }

    /// Reads a file. Its relative paths are relative to its folder, and a missing name is taken from the file's
    /// (`web.toml` is the machine `web`).
    ///
    /// # Errors
    /// [`ConfigError::Read`], or as [`MachineFile::from_toml`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut file = Self::deserialize(Node::from_file(path)?)?;
        let base = std::path::absolute(path).map_err(read)?;
        file.resolve(base.parent().unwrap_or(Path::new("/")));
        if file.name.is_none() {
            file.name = Name::of_file(path);
        }
        Ok(file)
    }

    /// Finds the sockets of NICs at switches; `base` is where this user's machines have their folders.
    pub fn plug(&mut self, base: &Path) {
        let name = self.name.clone().unwrap_or_default();
        for net in &mut self.net {
            net.plug(base, &name);
        }
    }

    /// Makes every relative path absolute, from `base`.
    pub fn resolve(&mut self, base: &Path) {
        let singles = [&mut self.kernel, &mut self.initrd, &mut self.hugetlbfs];
        let disks = self.disk.iter_mut().flat_map(|disk| [&mut disk.path, &mut disk.socket]);
        let nets = self.net.iter_mut().map(|net| &mut net.socket);
        let devices = self.device.iter_mut().map(|device| &mut device.socket);
        for path in self.credential_files.values_mut().filter(|path| !path.as_os_str().is_empty()) {
            *path = base.join(&path);
        }
        for path in singles.into_iter().chain(disks).chain(nets).chain(devices).flatten() {
            // An empty path stays empty, to be refused as such.
            if !path.as_os_str().is_empty() {
                *path = base.join(&path);
            }
        }
        for terminal in [&mut self.console, &mut self.serial].into_iter().flatten() {
            if let Some(path) = terminal.strip_prefix("file=")
                && !path.is_empty()
                && let Some(absolute) = base.join(path).to_str()
            {
                *terminal = format!("file={absolute}");
            }
        }
    }

    /// Lays `over` (the flags) over this file: a key given there wins; a disk, NIC or device given there
    /// replaces the one with the same `id`, or comes after the file's.
    pub fn overlay(&mut self, over: MachineFile) {
        fn win<T>(slot: &mut Option<T>, over: Option<T>) {
            if over.is_some() {
                *slot = over;
            }
        }
        fn add<T>(list: &mut Vec<T>, over: Vec<T>, id: impl Fn(&T) -> &Option<String>) {
            for entry in over {
                let same = list.iter_mut().find(|other| id(&entry).is_some() && id(other) == id(&entry));
                match same {
                    Some(slot) => *slot = entry,
                    None => list.push(entry),
                }
            }
        }
        win(&mut self.name, over.name);
        win(&mut self.kernel, over.kernel);
        win(&mut self.initrd, over.initrd);
        win(&mut self.cmdline, over.cmdline);
        // Two keys for one thing: whichever is laid over wins over both.
        if over.cpus.is_some() || over.vcpu.count.is_some() {
            (self.cpus, self.vcpu.count) = (over.cpus, over.vcpu.count);
        }
        win(&mut self.memory, over.memory);
        win(&mut self.console, over.console);
        win(&mut self.serial, over.serial);
        win(&mut self.no_reboot, over.no_reboot);
        win(&mut self.sandbox, over.sandbox);
        win(&mut self.stop_timeout, over.stop_timeout);
        win(&mut self.hugetlbfs, over.hugetlbfs);
        win(&mut self.prefault, over.prefault);
        win(&mut self.profile, over.profile);
        win(&mut self.vcpu.pin, over.vcpu.pin);
        win(&mut self.vcpu.nested, over.vcpu.nested);
        self.backend.overlay(over.backend);
        win(&mut self.vcpu.halt, over.vcpu.halt);
        win(&mut self.vcpu.sockets, over.vcpu.sockets);
        win(&mut self.vcpu.cores, over.vcpu.cores);
        win(&mut self.vcpu.threads, over.vcpu.threads);
        win(&mut self.ready, over.ready);
        win(&mut self.uuid, over.uuid);
        self.credentials.extend(over.credentials);
        self.credential_files.extend(over.credential_files);
        self.resources.overlay(over.resources);
        add(&mut self.disk, over.disk, |disk| &disk.id);
        add(&mut self.net, over.net, |net| &net.id);
        add(&mut self.device, over.device, |device| &device.id);
    }
}

/// The JSON Schema of the machine file, as docs/machine.schema.json holds it.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(MachineFile).to_value()
}
