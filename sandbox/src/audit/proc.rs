//! Where an audit gets its findings: /proc/PID/{status,ns,mountinfo,root}.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::report::{Capabilities, Namespace, Report, Root, Seccomp, Visibility};
use crate::idmap;
use crate::root::SOURCE;

const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// Looks at the sandbox of a process of ours. `pid` may be the one that was started, which has become the reaper: then
/// the one it watches is looked at.
///
/// # Errors
/// There is no such process, or /proc cannot be read.
pub fn audit(pid: i32) -> io::Result<Report> {
    let pid = inner(pid).unwrap_or(pid);
    let status = Status::read(pid)?;
    // A locked process is not dumpable, so only root sees its links; its reaper, in the same namespaces but for the
    // pid one that it made for its children, may be looked at by the user who started it.
    let reaper =
        status.number("PPid").ok().and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| watches(pid));
    let namespaces = KINDS.map(|kind| Namespace { kind, visibility: visibility(pid, reaper, kind) });
    let (uid, gid) = (status.id("Uid")?, status.id("Gid")?);
    Ok(Report {
        pid,
        uid,
        gid,
        is_root: idmap::outside("uid_map", uid) == Some(0) || idmap::outside("gid_map", gid) == Some(0),
        seccomp: match status.number("Seccomp")? {
            0 => Seccomp::Off,
            1 => Seccomp::Strict,
            _ => Seccomp::Filter(
                u32::try_from(status.number("Seccomp_filters").unwrap_or(1)).unwrap_or(u32::MAX),
            ),
        },
        capabilities: Capabilities {
            effective: status.mask("CapEff")?,
            permitted: status.mask("CapPrm")?,
            inheritable: status.mask("CapInh")?,
            bounding: status.mask("CapBnd")?,
            ambient: status.mask("CapAmb")?,
        },
        no_new_privs: status.number("NoNewPrivs")? == 1,
        namespaces,
        root: root(pid),
    })
}

/// The sandboxed process that `pid` watches, itself or through another; `None` if `pid` watches none.
#[must_use]
pub fn inner(pid: i32) -> Option<i32> {
    if !watches(pid) {
        return None;
    }
    let child = child(pid)?;
    inner(child).or(Some(child))
}

fn child(pid: i32) -> Option<i32> {
    match fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        Ok(children) => children.split_ascii_whitespace().next()?.parse().ok(),
        // A kernel without that file: look for it.
        Err(_) => fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find(|&other| {
                Status::read(other)
                    .is_ok_and(|status| status.number("PPid").is_ok_and(|it| it == i64::from(pid)))
            }),
    }
}

/// Whether it is a process of ours that only watches another, by its name (`reaper`, `remove`).
fn watches(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| ["-reaper", "-socket"].iter().any(|end| name.trim_end().ends_with(end)))
}

fn visibility(pid: i32, reaper: Option<i32>, kind: &str) -> Visibility {
    let link = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let theirs = link(&pid.to_string(), kind).or_else(|| {
        let of_children = if kind == "pid" { "pid_for_children" } else { kind };
        reaper.and_then(|reaper| link(&reaper.to_string(), of_children))
    });
    match (theirs, link("self", kind)) {
        (Some(theirs), Some(ours)) if theirs == ours => Visibility::Shared,
        (Some(_), Some(_)) => Visibility::Private,
        _ => Visibility::Unknown,
    }
}

/// Judges by the mounts, which everybody may read, and by what lies in the root, which root may.
fn root(pid: i32) -> Root {
    let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { return Root::Unknown };
    let found = judge(&mounts);
    let Root::Empty { binds } = &found else { return found };
    match fs::read_dir(format!("/proc/{pid}/root")) {
        Ok(entries) => {
            let stray = entries
                .filter_map(|entry| entry.ok().map(|entry| Path::new("/").join(entry.file_name())))
                .find(|path| !binds.iter().any(|bind| bind.starts_with(path)));
            match stray {
                Some(path) => Root::Open(format!("{} is in it", path.display())),
                None => found,
            }
        }
        Err(_) => found,
    }
}

/// Judges by the lines of mountinfo (proc_pid_mountinfo(5)): `id parent dev root mountpoint options ... - type source
/// superoptions`.
pub(super) fn judge(mounts: &str) -> Root {
    let mut binds = Vec::new();
    let mut own_root = false;
    for line in mounts.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ').skip(4);
        let (Some(at), Some(options)) = (mount.next(), mount.next()) else { continue };
        let mut file_system = file_system.split(' ');
        let (kind, source) = (file_system.next(), file_system.next());
        if !options.split(',').any(|option| option == "ro") {
            return Root::Open(format!("{at} is writable"));
        }
        if at == "/" {
            if kind != Some("tmpfs") || source != Some(SOURCE) {
                return Root::Open(format!("/ is {} {}", kind.unwrap_or("?"), source.unwrap_or("?")));
            }
            own_root = true;
        } else {
            binds.push(PathBuf::from(at));
        }
    }
    if own_root { Root::Empty { binds } } else { Root::Unknown }
}

/// /proc/PID/status.
struct Status(String);

impl Status {
    fn read(pid: i32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    fn field(&self, name: &str) -> io::Result<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).ok_or_else(
            || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/status has no {name}")),
        )
    }

    fn number(&self, name: &str) -> io::Result<i64> {
        self.field(name)?.parse().map_err(io::Error::other)
    }

    /// Effective id: the second of real, effective, saved and file system id.
    fn id(&self, name: &str) -> io::Result<u32> {
        self.field(name)?
            .split_ascii_whitespace()
            .nth(1)
            .unwrap_or_default()
            .parse()
            .map_err(io::Error::other)
    }

    fn mask(&self, name: &str) -> io::Result<u64> {
        u64::from_str_radix(self.field(name)?, 16).map_err(io::Error::other)
    }
}
