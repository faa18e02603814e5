//! The text of the drop-ins. Pure: a machine in, files out.

use std::path::{Path, PathBuf};

use anyhow::Context;
use strata_config::{
    Console, CredentialSource, DiskSource, Format, Machine, Name, NetSource, Ready, Resources,
};

use super::nic::{self, Place};
use super::systemd::Systemd;
use crate::profile;

/// Paths below the generator's folder, and what is in them.
pub(super) type Files = Vec<(PathBuf, String)>;

/// Where images are, unless a machine file has them elsewhere.
const IMAGES: &str = "/var/lib/strata";
/// How long a guest may take to say that it is up, in seconds.
const GUEST_START: u64 = 600;
/// Longer than the guest may take, so that it is the vmm that gives up on it, and says so.
const GRACE: u64 = 15;

/// Backends of a machine that are ours: the template's name, the device's id, the words after the program's own.
pub(super) struct Backend<'a> {
    pub(super) template: &'static str,
    pub(super) id: &'a str,
    pub(super) what: String,
    pub(super) words: Vec<String>,
    /// Directives its own file or device needs.
    pub(super) extra: Vec<String>,
    /// What has to be there before it, if that is made.
    pub(super) place: Option<Place>,
}

impl Backend<'_> {
    fn instance(&self, machine: &Name) -> String {
        format!("{}@{machine}-{}", self.template, self.id)
    }
}

/// The names of the backends' units, without suffix.
pub(super) fn instances(machine: &Machine) -> Vec<String> {
    backends(machine, Systemd::default())
        .unwrap_or_default()
        .iter()
        .map(|backend| backend.instance(&machine.name))
        .collect()
}

/// All files of a machine.
pub(super) fn of(machine: &Machine, systemd: Systemd) -> anyhow::Result<Files> {
    let name = &machine.name;
    let backends = backends(machine, systemd)?;
    let json = serde_json::to_string_pretty(machine).context("cannot write the machine as JSON")?;
    let mut files = vec![
        (PathBuf::from(format!("strata/{name}.json")), json + "\n"),
        (place(&format!("strata-vm@{name}.service")), vm(machine, &backends)?),
        (place(&slice(name)), share(machine)),
    ];
    for backend in &backends {
        let instance = backend.instance(name);
        files.push((place(&format!("{instance}.socket")), socket(name, backend)));
        files.push((place(&format!("{instance}.service")), service(machine, backend)?));
        if let Some(made) = &backend.place {
            files.push((place(&made.unit), made.text(name, backend)));
        }
    }
    Ok(files)
}

/// For a machine file that is wrong: there is no machine, and its unit says why.
pub(super) fn wrong(name: &Name, why: &str) -> Files {
    let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = format!("[Unit]\nDescription=Strata virtual machine {name} ({})\n", why.replace('%', "%%"));
    vec![(place(&format!("strata-vm@{name}.service")), text)]
}

fn place(unit: &str) -> PathBuf {
    PathBuf::from(format!("{unit}.d/50-machine.conf"))
}

fn backends(machine: &Machine, systemd: Systemd) -> anyhow::Result<Vec<Backend<'_>>> {
    let mut backends = Vec::new();
    for disk in &machine.disks {
        let DiskSource::File { path, readonly, format, .. } = &disk.source else { continue };
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let mut words = crate::disk::words(machine, disk).unwrap_or_default();
        let quoted = quote(text)?;
        // A block device is opened by who can ask whether it is mounted, a qcow2 image by who can read which are behind it.
        let is_raw_file = !path.starts_with("/dev") && *format != Some(Format::Qcow2);
        let mut extra = if is_raw_file && systemd.opens_files {
            // Behind the two sockets (sd_listen_fds(3)); the same file twice, since only one of the two is for direct I/O.
            words.extend(["--image-fd", "5", "--direct-fd", "6"].map(str::to_owned));
            opened(text, *readonly)
        } else if path.starts_with("/dev") {
            // The group of most block devices; a udev rule that gives them to strata-blk is better.
            let rights = if *readonly { "r" } else { "rw" };
            vec!["PrivateDevices=no".to_owned(), format!("DeviceAllow={} {rights}", bare(text)?)]
        } else if *readonly {
            Vec::new()
        } else {
            vec![format!("ReadWritePaths={quoted}")]
        };
        if matches!(&disk.source, DiskSource::File { serving, .. } if !serving.cpus.is_empty()) {
            // To pin its threads.
            extra.push("SystemCallFilter=sched_setaffinity".to_owned());
        }
        let what = format!("disk {} ({})", disk.id, text);
        backends.push(Backend {
            template: "vhost-blk",
            id: disk.id.as_str(),
            what,
            words,
            extra,
            place: None,
        });
    }
    for net in &machine.nets {
        let NetSource::Own(own) = &net.source else { continue };
        backends.push(nic::backend(machine, net, own)?);
    }
    for backend in &mut backends {
        // A guest on a host where exits are dear is served as the launcher would.
        backend.words.extend(profile::backend_words(profile::resolve(machine.profile), &backend.words));
    }
    Ok(backends)
}

/// What has systemd open a file twice and show the service no image at all, its own included.
fn opened(path: &str, readonly: bool) -> Vec<String> {
    // Read by systemd as bytes with escapes, parted by colons (systemd.service(5)).
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let escaped: String = path
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("\\x{byte:02x}") })
        .collect();
    let option = if readonly { ":read-only" } else { "" };
    vec![
        format!("OpenFile={escaped}:image{option}"),
        format!("OpenFile={escaped}:direct{option}"),
        format!("InaccessiblePaths=-{IMAGES}"),
    ]
}

fn vm(machine: &Machine, backends: &[Backend<'_>]) -> anyhow::Result<String> {
    let name = &machine.name;
    let mut unit = vec!["[Unit]".to_owned()];
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is not UTF-8");
    for backend in backends {
        let instance = backend.instance(name);
        unit.push(format!("Requires={instance}.socket"));
        // Not Requires=: a backend may be restarted under its guest.
        unit.push(format!("Wants={instance}.service"));
        unit.push(format!("After={instance}.socket {instance}.service"));
        unit.extend(backend.place.iter().flat_map(Place::of_machine));
    }
    let mut mounts = vec![machine.kernel.as_path()];
    mounts.extend(machine.initrd.as_deref());
    for path in mounts {
        unit.push(format!("RequiresMountsFor={}", quote(path.to_str().context("a path is not UTF-8")?)?));
    }
    let stop = machine.stop_timeout.as_secs() + GRACE;
    unit.extend(["[Service]".to_owned(), format!("TimeoutStopSec={stop}")]);
    unit.push(format!("Slice={}", slice(name)));
    unit.push(format!("LogExtraFields=STRATA_MACHINE={name}"));
    if machine.ready == Ready::Guest {
        unit.push(format!("TimeoutStartSec={GUEST_START}"));
    }
    // Credentials reach the vmm as files that only it can read; the machine file itself, which may hold some, too.
    unit.push(format!("LoadCredential=machine.json:{}", super::copy(name)));
    for (credential, source) in &machine.credentials {
        if let CredentialSource::File(path) = source {
            unit.push(format!("LoadCredential=guest.{credential}:{}", bare(&text(path)?)?));
        }
    }
    for terminal in [&machine.console, &machine.serial] {
        match terminal {
            Console::File(path) => {
                let folder = path.parent().and_then(Path::to_str).context("a path is not UTF-8")?;
                unit.push(format!("ReadWritePaths={}", quote(folder)?));
            }
            Console::Pty => unit.push("DeviceAllow=/dev/ptmx rw\nDeviceAllow=char-pts rw".to_owned()),
            Console::Off | Console::Stdio => {}
        }
    }
    if let Some(mount) = machine.memory.hugetlbfs.as_deref() {
        unit.push(format!("ReadWritePaths={}", quote(mount.to_str().context("a path is not UTF-8")?)?));
    }
    for device in sockets(machine) {
        // A backend of another make: its socket is shown although /run is not.
        unit.push(format!("BindReadOnlyPaths=-{}", bare(device.to_str().context("a path is not UTF-8")?)?));
    }
    Ok(unit.join("\n") + "\n")
}

/// Sockets of backends that are not ours.
fn sockets(machine: &Machine) -> impl Iterator<Item = &Path> {
    let disks = machine.disks.iter().filter_map(|disk| match &disk.source {
        DiskSource::Socket(path) => Some(path.as_path()),
        DiskSource::File { .. } => None,
    });
    let nets = machine.nets.iter().filter_map(|net| match &net.source {
        NetSource::Socket(path) => Some(path.as_path()),
        NetSource::Own(_) => None,
    });
    disks.chain(nets).chain(machine.devices.iter().map(|device| device.socket.as_path()))
}

/// The slice of a machine with its disks and NICs.
pub(crate) fn slice(machine: &Name) -> String {
    format!("machine-strata-{}.slice", machine.as_str().replace('-', "\\x2d"))
}

/// The machine's share of the host.
fn share(machine: &Machine) -> String {
    let Resources { cpu_weight, cpu_quota, memory_max, io_weight } = &machine.resources;
    let mut lines = vec![
        "[Unit]".to_owned(),
        format!("Description=Strata virtual machine {} with its devices", machine.name),
        "[Slice]".to_owned(),
    ];
    lines.extend(cpu_weight.map(|weight| format!("CPUWeight={weight}")));
    lines.extend(cpu_quota.map(|percent| format!("CPUQuota={percent}%")));
    lines.extend(memory_max.map(|bytes| format!("MemoryMax={bytes}")));
    lines.extend(io_weight.map(|weight| format!("IOWeight={weight}")));
    lines.join("\n") + "\n"
}

fn socket(machine: &Name, backend: &Backend<'_>) -> String {
    let (id, what) = (backend.id, backend.what.replace('%', "%%"));
    let machine_unit = format!("strata-vm@{machine}.service");
    format!(
        "[Unit]\nDescription=Strata {machine}, socket of {what}\nPartOf={machine_unit}\n\
         [Socket]\nListenStream=\nListenStream=/run/strata/{machine}/{id}.sock\n\
         ListenStream=/run/strata/{machine}/{id}.control\n"
    )
}

fn service(machine: &Machine, backend: &Backend<'_>) -> anyhow::Result<String> {
    let hung_after = machine.backend.hung_after.unwrap_or_default();
    let machine = &machine.name;
    let words = backend.words.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?.join(" ");
    let program = format!("/usr/libexec/strata/{}", backend.template);
    let mut lines = vec![
        "[Unit]".to_owned(),
        format!("Description=Strata {machine}, {}", backend.what.replace('%', "%%")),
        format!("PartOf=strata-vm@{machine}.service"),
    ];
    lines.extend(backend.place.iter().flat_map(Place::of_backend));
    lines.extend([
        "[Service]".to_owned(),
        "ExecStart=".to_owned(),
        // The sockets in their unit's order, from the first that systemd passes (sd_listen_fds(3)).
        format!("ExecStart={program} --namespaces given --fd 3 --control-fd 4 {}", words.replace('$', "$$")),
        format!("Slice={}", slice(machine)),
        format!("LogExtraFields=STRATA_MACHINE={machine} STRATA_DEVICE={}", backend.id),
        // 0: nobody watches.
        format!("WatchdogSec={}ms", hung_after.as_millis()),
    ]);
    lines.extend(backend.extra.iter().cloned());
    Ok(lines.join("\n") + "\n")
}

/// One word as systemd.syntax(7) reads it.
fn quote(word: &str) -> anyhow::Result<String> {
    let plain = bare(word)?;
    Ok(format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A value that systemd does not split but expands.
pub(super) fn bare(word: &str) -> anyhow::Result<String> {
    if word.chars().any(char::is_control) {
        anyhow::bail!("{word:?} has a control character in it; a unit cannot hold that");
    }
    Ok(word.replace('%', "%%"))
}
