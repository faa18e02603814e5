//! Judges what the processes need from the kernel besides KVM: the sandbox, io_uring, tap devices, limits.

use super::facts::{Cgroup, Device, Facts, Sandbox};
use super::line::Line;

/// Descriptors a vmm with a hundred queues opens, and then some.
const NOFILE: u64 = 4096;
/// What io_uring counts against the limit before Linux 5.12, for the largest ring of a disk.
const MEMLOCK: u64 = 8 << 20;

pub(super) fn sandbox(facts: &Facts) -> Line {
    const TOPIC: &str = "sandbox";
    match &facts.sandbox {
        Sandbox::Works { .. } => {
            Line::ready(TOPIC, "tried: namespaces, empty root, no capabilities, system call filter")
        }
        Sandbox::Untried(why) => Line::warning(TOPIC, format!("could not be tried: {why}")),
        Sandbox::Refused(why) => {
            let line = Line::not_ready(TOPIC, format!("does not work here: {why}"));
            match user_namespaces_denied(facts) {
                Some((change, command)) => line.change(change).command(command),
                None => line,
            }
        }
    }
}

/// What keeps this user from user namespaces, and the command against it.
fn user_namespaces_denied(facts: &Facts) -> Option<(String, String)> {
    let users = &facts.users;
    if users.most == Some(0) {
        let change = "allow user namespaces (user.max_user_namespaces is 0)".to_owned();
        return Some((change, "sysctl -w user.max_user_namespaces=10000".to_owned()));
    }
    if facts.user.root {
        return None;
    }
    if users.clone == Some(0) {
        let change = "allow user namespaces to users, or run as root".to_owned();
        return Some((change, "sysctl -w kernel.unprivileged_userns_clone=1".to_owned()));
    }
    if users.apparmor.is_some_and(|value| value != 0) {
        let change = "let AppArmor allow user namespaces to users, or run as root".to_owned();
        return Some((change, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".to_owned()));
    }
    None
}

pub(super) fn user_namespaces(facts: &Facts) -> Line {
    const TOPIC: &str = "user namespaces";
    if let Some((change, command)) = user_namespaces_denied(facts) {
        let found = format!("{} may not make them", facts.user.name);
        return match facts.sandbox {
            // Whatever the settings say, it was tried: an AppArmor profile may allow it to us.
            Sandbox::Works { .. } => Line::ready(TOPIC, "allowed to Strata, although restricted for others"),
            _ => Line::not_ready(TOPIC, found).change(change).command(command),
        };
    }
    match facts.users.most {
        Some(most) => Line::ready(TOPIC, format!("allowed, up to {most}")),
        None => Line::warning(TOPIC, "this kernel has none: the sandbox needs them")
            .change("boot a kernel with CONFIG_USER_NS"),
    }
}

pub(super) fn io_uring(facts: &Facts) -> Line {
    const TOPIC: &str = "io_uring";
    let Some(error) = &facts.io_uring.error else { return Line::ready(TOPIC, "allowed") };
    let consequence = "disks do one request after the other";
    match facts.io_uring.disabled {
        Some(2) => {
            Line::warning(TOPIC, format!("switched off (kernel.io_uring_disabled = 2): {consequence}"))
                .change("switch it on")
                .command("sysctl -w kernel.io_uring_disabled=0")
        }
        Some(1) => Line::warning(
            TOPIC,
            format!(
                "only for a group (kernel.io_uring_disabled = 1), which {} is not in: {consequence}",
                facts.user.name
            ),
        )
        .change("join the group of kernel.io_uring_group, or allow it to everybody")
        .command("sysctl -w kernel.io_uring_disabled=0"),
        _ => Line::warning(
            TOPIC,
            format!("refused ({error}), perhaps by a container's system call filter: {consequence}"),
        ),
    }
}

pub(super) fn landlock(facts: &Facts) -> Line {
    const TOPIC: &str = "landlock";
    match facts.landlock {
        Some(abi) => Line::ready(TOPIC, format!("ABI {abi}")),
        None => Line::warning(
            TOPIC,
            "not in force: one of the sandbox's walls less (empty root and filter remain)",
        )
        .change("boot with landlock among the kernel's `lsm=` list (CONFIG_SECURITY_LANDLOCK, Linux 5.13)"),
    }
}

pub(super) fn tun(facts: &Facts) -> Line {
    const TOPIC: &str = "tun";
    let wanted = facts.machines.iter().any(|machine| machine.taps);
    let line = match facts.tun {
        Device::Opens => return Line::ready(TOPIC, "/dev/net/tun opens"),
        Device::Absent => ("there is no /dev/net/tun: no NICs on taps", "load the module", "modprobe tun"),
        Device::Forbidden => (
            "/dev/net/tun may not be opened: no NICs on taps",
            "let everybody open it, as udev does",
            "chmod 0666 /dev/net/tun",
        ),
    };
    let (found, change, command) = line;
    let make = if wanted { Line::not_ready } else { Line::warning };
    make(TOPIC, found.to_owned()).change(change).command(command)
}

pub(super) fn cgroup(facts: &Facts) -> Line {
    const TOPIC: &str = "cgroups";
    let command = "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX systemd.unified_cgroup_hierarchy=1\"' >> /etc/default/grub && update-grub";
    match facts.cgroup {
        Cgroup::V2 { controllers: true } => Line::ready(TOPIC, "version 2 with cpu, memory and io"),
        Cgroup::V2 { controllers: false } => Line::warning(
            TOPIC,
            "version 2, but not all of cpu, memory and io: limits of units are not all kept",
        )
        .change("delegate them to this group")
        .command("echo +cpu +memory +io > /sys/fs/cgroup/cgroup.subtree_control"),
        Cgroup::V1 => Line::warning(TOPIC, "version 1: units' limits on memory and I/O are not all kept")
            .change("boot with version 2 (systemd.unified_cgroup_hierarchy=1)")
            .command(command),
        Cgroup::None => {
            Line::warning(TOPIC, "none are mounted at /sys/fs/cgroup: nothing limits a machine's processes")
                .change("mount version 2")
                .command("mount -t cgroup2 none /sys/fs/cgroup")
        }
    }
}

pub(super) fn nofile(facts: &Facts) -> Line {
    const TOPIC: &str = "open files";
    let limit = facts.limits.nofile;
    if limit >= NOFILE {
        return Line::ready(TOPIC, format!("up to {} per process", unlimited(limit, 1, "")));
    }
    Line::warning(
        TOPIC,
        format!("at most {limit} per process: machines with many queues need up to {NOFILE}"),
    )
    .change("raise it, then log in again")
    .command("printf '* hard nofile 65536\\nroot hard nofile 65536\\n' > /etc/security/limits.d/strata.conf")
}

pub(super) fn memlock(facts: &Facts) -> Line {
    const TOPIC: &str = "locked memory";
    let (limit, old) = (facts.limits.memlock, facts.kernel.version < (5, 12));
    let shown = unlimited(limit, 1 << 20, " MiB");
    if facts.user.root || !old {
        return Line::ready(TOPIC, format!("limit {shown}; nothing of Strata counts against it here"));
    }
    if limit >= MEMLOCK {
        return Line::ready(TOPIC, format!("up to {shown}"));
    }
    Line::warning(
        TOPIC,
        format!("at most {} KiB: before Linux 5.12 io_uring's rings count against it", limit >> 10),
    )
    .change("raise it, then log in again")
    .command("printf '* hard memlock 65536\\n* soft memlock 65536\\n' > /etc/security/limits.d/strata.conf")
}

fn unlimited(limit: u64, unit: u64, name: &str) -> String {
    if limit == u64::MAX { "any number".to_owned() } else { format!("{}{name}", limit / unit) }
}
