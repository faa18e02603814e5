//! From the checked machine back to the file, with every default written out: what the launcher hands the vmm.

use std::collections::BTreeMap;
use std::path::Path;

use crate::entry::{DeviceEntry, DiskEntry};
use crate::file::MachineFile;
use crate::kind::device_name_of;
use crate::machine::{Console, Disk, DiskSource, GenericDevice, Machine};
use crate::net::NetEntry;
use crate::service::CredentialSource;
use crate::size::{NumberOrText, Size, write_duration};

impl From<Machine> for MachineFile {
    fn from(machine: Machine) -> Self {
        let (mut texts, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (name, source) in machine.credentials {
            match source {
                CredentialSource::Text(text) => drop(texts.insert(name, text)),
                CredentialSource::File(path) => drop(files.insert(name, path)),
            }
        }
        Self {
            name: Some(machine.name.to_string()),
            kernel: Some(machine.kernel),
            initrd: machine.initrd,
            cmdline: Some(machine.cmdline),
            cpus: Some(machine.cpus.into()),
            memory: Some(NumberOrText::Text(Size(machine.memory.size).to_string())),
            disk: machine.disks.into_iter().map(DiskEntry::from).collect(),
            net: machine.nets.into_iter().map(NetEntry::from).collect(),
            device: machine.devices.into_iter().map(DeviceEntry::from).collect(),
            console: Some(machine.console.to_text()),
            serial: Some(machine.serial.to_text()),
            no_reboot: Some(machine.no_reboot),
            sandbox: Some(machine.sandbox),
            stop_timeout: Some(write_duration(machine.stop_timeout)),
            hugetlbfs: machine.memory.hugetlbfs,
            prefault: Some(machine.memory.prefault),
            backend: machine.backend.into(),
            profile: Some(machine.profile.as_str().to_owned()),
            vcpu: machine.vcpu.into(),
            ready: Some(machine.ready.as_str().to_owned()),
            uuid: machine.uuid.map(|uuid| uuid.to_string()),
            credentials: texts,
            credential_files: files,
            resources: machine.resources.into(),
        }
    }
}

impl From<Disk> for DiskEntry {
    fn from(disk: Disk) -> Self {
        let mut entry =
            Self { id: Some(disk.id.to_string()), queues: disk.queues.map(i64::from), ..Self::default() };
        match disk.source {
            DiskSource::Socket(path) => entry.socket = Some(path),
            DiskSource::File { path, format, readonly, serial, serving } => {
                entry.path = Some(path);
                entry.format = format.map(|format| format.as_str().to_owned());
                entry.readonly = Some(readonly);
                entry.serial = serial;
                serving.write(&mut entry);
            }
        }
        entry
    }
}

impl From<GenericDevice> for DeviceEntry {
    fn from(device: GenericDevice) -> Self {
        let kind = device_name_of(device.device_id)
            .map_or_else(|| NumberOrText::Number(device.device_id.into()), NumberOrText::from);
        Self {
            socket: Some(device.socket),
            kind: Some(kind),
            queues: device.queues.map(i64::from),
            id: Some(device.id.to_string()),
        }
    }
}

impl Console {
    /// The file's text for it: `stdio`, `off`, `pty` or `file=PATH`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdio => "stdio".to_owned(),
            Self::Pty => "pty".to_owned(),
            Self::File(path) => format!("file={}", Path::display(path)),
        }
    }
}
