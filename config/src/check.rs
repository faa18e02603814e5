//! From the file as written to the checked machine. Every rule on a value is here, once; the way back is
//! [`crate::write`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::entry::{DeviceEntry, DiskEntry};
use crate::error::{ConfigError, nearest};
use crate::file::MachineFile;
use crate::identity::Uuid;
use crate::kind::{device_id_of, known_device_types};
use crate::machine::{Console, Disk, DiskSource, Format, GenericDevice, Machine, Memory};
use crate::name::{DeviceId, Name};
use crate::net::net;
use crate::service::{self, Ready};
use crate::serving::Serving;
use crate::size::{DURATION_FORM, NumberOrText, Size, read_duration};
use crate::vcpu::Profile;

pub(crate) type Checked<T> = Result<T, ConfigError>;

const MIB: u64 = 1 << 20;
const SMALLEST_MEMORY: u64 = 32 * MIB;
const LARGEST_MEMORY: u64 = 16 << 40;
/// COMMAND_LINE_SIZE of Linux on x86 is 2048, with the NUL.
const LONGEST_CMDLINE: usize = 2047;
/// sockaddr_un holds 108 bytes with the NUL.
const LONGEST_SOCKET: usize = 107;
const MOST_DEVICES: usize = 30;

impl TryFrom<MachineFile> for Machine {
    type Error = ConfigError;

    fn try_from(file: MachineFile) -> Checked<Self> {
        let name: Name = match &file.name {
            Some(text) => text.parse().map_err(|allowed| ConfigError::text("name", text, allowed))?,
            None => "machine".parse().map_err(|allowed| ConfigError::text("name", "machine", allowed))?,
        };
        let kernel = file.kernel.ok_or_else(|| ConfigError::Missing {
            key: "kernel".to_owned(),
            what: "give a bzImage or vmlinux with --kernel FILE or kernel = \"FILE\"".to_owned(),
        })?;
        let (console, serial) = terminals(file.console.as_deref(), file.serial.as_deref())?;
        let cmdline = file.cmdline.unwrap_or_else(|| default_cmdline(&console, &serial).to_owned());
        check_cmdline(&cmdline)?;

        let cpus = file.vcpu.cpus(file.cpus)?;

        let mut ids = HashSet::new();
        let mut disks = Vec::new();
        for (index, entry) in file.disk.into_iter().enumerate() {
            let disk =
                disk(entry, index, &mut ids).map_err(|error| error.inside(&format!("disk[{index}]")))?;
            disks.push(disk);
        }
        let mut nets = Vec::new();
        for (index, entry) in file.net.into_iter().enumerate() {
            let net =
                net(entry, &name, index, &mut ids).map_err(|error| error.inside(&format!("net[{index}]")))?;
            nets.push(net);
        }
        let mut devices = Vec::new();
        for (index, entry) in file.device.into_iter().enumerate() {
            let device =
                device(entry, index, &mut ids).map_err(|error| error.inside(&format!("device[{index}]")))?;
            devices.push(device);
        }
        if ids.len() > MOST_DEVICES {
            return Err(ConfigError::Conflict {
                path: "disk, net, device".to_owned(),
                reason: format!("{} devices; a machine has room for {MOST_DEVICES}", ids.len()),
            });
        }
        let memory = memory_size(&file.memory.unwrap_or_else(|| "512M".into()))?;
        Ok(Self {
            kernel: non_empty("kernel", kernel)?,
            initrd: file.initrd.map(|path| non_empty("initrd", path)).transpose()?,
            cmdline,
            cpus,
            memory: Memory {
                size: memory,
                hugetlbfs: file.hugetlbfs.map(|path| non_empty("hugetlbfs", path)).transpose()?,
                prefault: file.prefault.unwrap_or(false),
            },
            disks,
            nets,
            devices,
            console,
            serial,
            no_reboot: file.no_reboot.unwrap_or(false),
            sandbox: file.sandbox.unwrap_or(true),
            stop_timeout: stop_timeout(file.stop_timeout.as_ref())?,
            backend: file.backend.check().map_err(|error| error.inside("backend"))?,
            vcpu: file.vcpu.check(cpus).map_err(|error| error.inside("vcpu"))?,
            profile: Profile::check(file.profile.as_deref())?,
            ready: Ready::check(file.ready.as_deref())?,
            uuid: file.uuid.map(|text| uuid(&text)).transpose()?,
            credentials: service::credentials(file.credentials, file.credential_files)?,
            resources: file.resources.check(memory).map_err(|error| error.inside("resources"))?,
            name,
        })
    }
}

fn uuid(text: &str) -> Checked<Uuid> {
    text.parse().map_err(|allowed| ConfigError::text("uuid", text, allowed))
}

fn memory_size(raw: &NumberOrText) -> Checked<u64> {
    let Size(size) =
        Size::read(raw).map_err(|form| ConfigError::value("memory", raw, format!("must be {form}")))?;
    if !(SMALLEST_MEMORY..=LARGEST_MEMORY).contains(&size) || !size.is_multiple_of(2 * MIB) {
        return Err(ConfigError::value("memory", raw, "must be 32M to 16T and a multiple of 2M"));
    }
    Ok(size)
}

fn stop_timeout(raw: Option<&NumberOrText>) -> Checked<Duration> {
    let Some(raw) = raw else { return Ok(Duration::from_secs(30)) };
    let duration = read_duration(raw)
        .map_err(|form| ConfigError::value("stop_timeout", raw, format!("must be {form}")))?;
    if duration > Duration::from_secs(3600) {
        return Err(ConfigError::value("stop_timeout", raw, format!("must be at most 60m: {DURATION_FORM}")));
    }
    Ok(duration)
}

fn check_cmdline(cmdline: &str) -> Checked<()> {
    if cmdline.contains(['\0', '\n']) {
        return Err(ConfigError::text("cmdline", cmdline, "must be one line without NUL"));
    }
    if cmdline.len() > LONGEST_CMDLINE {
        let length = format_args!("{} bytes", cmdline.len());
        return Err(ConfigError::value("cmdline", length, "Linux takes at most 2047"));
    }
    Ok(())
}

fn default_cmdline(console: &Console, serial: &Console) -> &'static str {
    match (console, serial) {
        (Console::Off, Console::Off) => "",
        (Console::Off, _) => "console=ttyS0",
        _ => "console=hvc0",
    }
}

fn terminals(console: Option<&str>, serial: Option<&str>) -> Checked<(Console, Console)> {
    let serial = serial.map_or(Ok(Console::Off), |text| terminal("serial", text))?;
    let console = match console {
        Some(text) => terminal("console", text)?,
        None if serial == Console::Stdio => Console::Off,
        None => Console::Stdio,
    };
    if console == Console::Stdio && serial == Console::Stdio {
        return Err(ConfigError::text("serial", "stdio", "the console has stdio; set console to off or pty"));
    }
    Ok((console, serial))
}

fn terminal(key: &str, text: &str) -> Checked<Console> {
    match text {
        "off" => Ok(Console::Off),
        "stdio" => Ok(Console::Stdio),
        "pty" => Ok(Console::Pty),
        _ => match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => Ok(Console::File(path.into())),
            _ => Err(ConfigError::text(key, text, "must be stdio, off, pty or file=PATH")),
        },
    }
}

fn disk(entry: DiskEntry, index: usize, ids: &mut HashSet<DeviceId>) -> Checked<Disk> {
    let id = device_id(entry.id.as_deref(), "disk", index, ids)?;
    let queues = entry.queues.map(|queues| in_range("queues", queues, 1, 64)).transpose()?;
    let serving = Serving::check(&entry)?;
    let serving_keys = Serving::keys(&entry);
    let source = match (entry.path, entry.socket) {
        (Some(path), None) => DiskSource::File {
            path: non_empty("path", path)?,
            format: entry.format.as_deref().map(format).transpose()?,
            readonly: entry.readonly.unwrap_or(false),
            serial: entry.serial.map(serial_number).transpose()?,
            serving,
        },
        (None, Some(path)) => {
            let backend_keys = [
                ("format", entry.format.is_some()),
                ("readonly", entry.readonly.is_some()),
                ("serial", entry.serial.is_some()),
            ];
            belongs_to_backend(&backend_keys)?;
            belongs_to_backend(&serving_keys)?;
            DiskSource::Socket(socket(path)?)
        }
        (path, _) => return Err(one_of("path", "socket", path.is_some())),
    };
    Ok(Disk { id, source, queues })
}

fn device(entry: DeviceEntry, index: usize, ids: &mut HashSet<DeviceId>) -> Checked<GenericDevice> {
    let id = device_id(entry.id.as_deref(), "dev", index, ids)?;
    let missing = |key: &str, what: &str| ConfigError::Missing { key: key.to_owned(), what: what.to_owned() };
    let path = entry.socket.ok_or_else(|| missing("socket", "the socket of a running vhost-user backend"))?;
    let kind =
        entry.kind.ok_or_else(|| missing("type", "the virtio device type, such as rng, fs, vsock or 4"))?;
    Ok(GenericDevice {
        id,
        socket: socket(path)?,
        device_id: device_id_of(&kind.plain()).ok_or_else(|| unknown_type(&kind))?,
        queues: entry.queues.map(|queues| in_range("queues", queues, 1, 64)).transpose()?,
    })
}

fn unknown_type(kind: &NumberOrText) -> ConfigError {
    let names: Vec<&str> = known_device_types().collect();
    let hint =
        nearest(&kind.plain(), &names).map_or_else(String::new, |name| format!(" (did you mean {name}?)"));
    ConfigError::value("type", kind, format!("must be 1 to 63 or one of {}{hint}", names.join(", ")))
}

pub(crate) fn device_id(
    given: Option<&str>,
    prefix: &'static str,
    index: usize,
    ids: &mut HashSet<DeviceId>,
) -> Checked<DeviceId> {
    let id = match given {
        Some(text) => text.parse().map_err(|allowed| ConfigError::text("id", text, allowed))?,
        None => DeviceId::numbered(prefix, index),
    };
    if !ids.insert(id.clone()) {
        return Err(ConfigError::text("id", id.as_str(), "another device has it; ids must differ"));
    }
    Ok(id)
}

fn format(text: &str) -> Checked<Format> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err(ConfigError::text("format", text, "must be raw or qcow2")),
    }
}

fn serial_number(text: String) -> Checked<String> {
    // virtio 1.2, 5.2.6.1: VIRTIO_BLK_T_GET_ID returns 20 bytes.
    if (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Ok(text);
    }
    Err(ConfigError::text("serial", &text, "must be 1 to 20 printable ASCII characters"))
}

pub(crate) fn socket(path: PathBuf) -> Checked<PathBuf> {
    let path = non_empty("socket", path)?;
    if path.as_os_str().len() > LONGEST_SOCKET {
        return Err(ConfigError::value("socket", path.display(), "a socket's path has at most 107 bytes"));
    }
    Ok(path)
}

fn non_empty(key: &str, path: PathBuf) -> Checked<PathBuf> {
    if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(ConfigError::value(key, format_args!("{path:?}"), "must be a path"));
    }
    Ok(path)
}

pub(crate) fn in_range<T: TryFrom<i64>>(key: &str, value: i64, low: i64, high: i64) -> Checked<T> {
    let refused = || ConfigError::value(key, value, format!("must be {low} to {high}"));
    if !(low..=high).contains(&value) {
        return Err(refused());
    }
    T::try_from(value).map_err(|_| refused())
}

pub(crate) fn name_of(key: &str, text: &str) -> ConfigError {
    ConfigError::text(key, text, text.parse::<Name>().err().unwrap_or("cannot be used"))
}

fn one_of(first: &str, second: &str, both: bool) -> ConfigError {
    let reason = if both {
        format!("`{first}` and `{second}` exclude one another; keep one")
    } else {
        format!("needs `{first}` or `{second}`")
    };
    ConfigError::Conflict { path: String::new(), reason }
}

pub(crate) fn belongs_to_backend(keys: &[(&str, bool)]) -> Checked<()> {
    match keys.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(ConfigError::Conflict {
            path: String::new(),
            reason: format!("`{key}` does not go with `socket`: set it where that backend is started"),
        }),
    }
}
