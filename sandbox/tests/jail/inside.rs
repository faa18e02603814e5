//! What an inmate can and cannot do.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use strata_sandbox::Role;

use crate::Case;
use crate::start::{Ended, ROLES, Stage, User, command, is_mapped, is_root, run, users};

pub(crate) const CASES: &[Case] = &[
    ("inside::forbidden_calls_kill", forbidden_calls_kill),
    ("inside::calls_that_libraries_make_unasked_fail", calls_that_libraries_make_unasked_fail),
    ("inside::each_role_has_its_own_devices", each_role_has_its_own_devices),
    ("inside::ordinary_work_goes_on", ordinary_work_goes_on),
    ("inside::without_the_filter_the_other_layers_hold", without_the_filter_the_other_layers_hold),
    ("inside::landlock_holds_even_the_empty_root", landlock_holds_even_the_empty_root),
    ("inside::debug_modes_name_the_call_and_warn", debug_modes_name_the_call_and_warn),
    ("inside::memory_is_in_huge_pages", memory_is_in_huge_pages),
    ("inside::memory_of_its_own_is_bounded", memory_of_its_own_is_bounded),
];

/// Calls for which every role is killed.
const KILLED: &[&str] = &[
    "open",
    "stat",
    "create",
    "openat2",
    "unlink",
    "chmod",
    "execve",
    "socket-inet",
    "socket-netlink",
    "bind",
    "kill",
    "tgkill-other",
    "ptrace",
    "process-vm",
    "pidfd-open",
    "mount",
    "unshare-user",
    "setns",
    "setuid",
    "sethostname",
    "bpf",
    "perf",
    "keyctl",
    "userfaultfd",
    "io-uring-setup",
    "io-uring-register",
    "fork",
    "mmap-exec",
    "mprotect-exec",
    "dumpable",
    "seccomp",
    "x32",
    "i386",
    "ioctl-tap-new",
    "ioctl-tty-input",
];

fn probe(user: User, role: Role, stage: Stage, name: &str) -> Command {
    let mut command = command(user, role, stage, &["probe", name]);
    command.env("JAIL_OUTSIDE", std::process::id().to_string());
    command
}

/// What a call returned and its errno.
fn answer(ended: &Ended) -> (i64, i32) {
    let parsed = ended
        .said
        .trim()
        .split_once(' ')
        .and_then(|(returned, errno)| Some((returned.parse().ok()?, errno.parse().ok()?)));
    parsed.unwrap_or_else(|| panic!("no answer: {}", ended.describe()))
}

fn forbidden_calls_kill() {
    for name in KILLED {
        for role in ROLES {
            let ended = run(probe(User::Same, role, Stage::Locked, name));
            assert!(ended.refused(), "{role:?} {name}: {}", ended.describe());
            assert!(ended.error.contains("killed by its own system call filter"), "{}", ended.describe());
            assert!(ended.error.contains(role.program()), "{}", ended.describe());
        }
        // A machine without 32-bit calls faults; with them, or with any other call, it goes on.
        let control = run(probe(User::Same, ROLES[0], Stage::Open, name));
        assert!(
            !control.refused() && (*name == "i386" || control.status.success()),
            "{}",
            control.describe()
        );
    }
    for user in users() {
        assert!(run(probe(user, Role::Blk, Stage::Locked, "open")).refused());
    }
}

fn calls_that_libraries_make_unasked_fail() {
    for role in ROLES {
        let (returned, errno) = answer(&run(probe(User::Same, role, Stage::Locked, "openat")));
        assert_eq!((returned, errno), (-1, libc::EACCES));
        let (returned, errno) = answer(&run(probe(User::Same, role, Stage::Locked, "clone3")));
        assert_eq!((returned, errno), (-1, libc::ENOSYS));
    }
    assert!(answer(&run(probe(User::Same, ROLES[0], Stage::Open, "openat"))).0 >= 0);
    assert_ne!(answer(&run(probe(User::Same, ROLES[0], Stage::Open, "clone3"))).1, libc::ENOSYS);
}

fn each_role_has_its_own_devices() {
    let requests = [("ioctl-kvm", Role::Vmm), ("ioctl-tap", Role::Net), ("ioctl-disk", Role::Blk)];
    for (name, owner) in requests {
        for role in ROLES {
            let ended = run(probe(User::Same, role, Stage::Locked, name));
            if role == owner {
                assert_eq!(answer(&ended), (-1, libc::EBADF), "{role:?} {name}");
            } else {
                assert!(ended.refused(), "{role:?} {name}: {}", ended.describe());
            }
        }
    }
    for role in ROLES {
        let ended = run(probe(User::Same, role, Stage::Locked, "socket-unix"));
        assert_eq!(ended.refused(), role != Role::Vmm, "{role:?}: {}", ended.describe());
    }
}

fn ordinary_work_goes_on() {
    for user in users() {
        for role in ROLES {
            let ended = run(command(user, role, Stage::Locked, &["ordinary"]));
            assert!(
                ended.status.success() && ended.said.starts_with("ready\n"),
                "{role:?}: {}",
                ended.describe()
            );
            for line in ended.said.lines().skip(1) {
                assert!(["kvm true", "tap 0"].contains(&line), "{role:?}: {line}");
            }
        }
    }
}

/// With the filter letting all pass (`STRATA_SECCOMP=log`), what is tried must still come to nothing.
fn without_the_filter_the_other_layers_hold() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("strata-jail-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    let tries: &[(&str, &[i32])] = &[
        ("open", &[libc::ENOENT, libc::EACCES]),
        ("stat", &[libc::ENOENT]),
        ("create", &[libc::ENOENT, libc::EACCES]),
        ("create-in-root", &[libc::EROFS, libc::EACCES]),
        ("mount", &[libc::EPERM]),
        ("unshare-user", &[libc::ENOSPC]),
        ("sethostname", &[libc::EPERM]),
        ("setuid", &[libc::EPERM, libc::EINVAL]),
        ("kill", &[libc::ESRCH, libc::EPERM]),
        ("pidfd-open", &[libc::ESRCH]),
        ("process-vm", &[libc::ESRCH]),
        ("connect-inet", &[libc::ENETUNREACH, libc::EACCES]),
        ("connect-abstract", &[libc::ECONNREFUSED, libc::EPERM]),
    ];
    for (name_of_try, errnos) in tries {
        let prepare = |user, stage| {
            let mut command = probe(user, Role::Vmm, stage, name_of_try);
            command.env("STRATA_SECCOMP", "log").env("JAIL_PORT", &port).env("JAIL_ABSTRACT", &name);
            command
        };
        for user in users() {
            let ended = run(prepare(user, Stage::Locked));
            let (returned, errno) = answer(&ended);
            assert!(returned < 0 && errnos.contains(&errno), "{user:?} {name_of_try}: {}", ended.describe());
        }
        // Its control: outside it works, or fails for another reason. One would leave something behind.
        if *name_of_try != "create-in-root" && is_root() && is_mapped(65534) {
            let ended = run(prepare(User::Same, Stage::Open));
            let (returned, errno) = answer(&ended);
            assert!(
                returned >= 0 || !errnos.contains(&errno),
                "control of {name_of_try}: {}",
                ended.describe()
            );
        }
    }
    let mut dumpable = probe(User::Same, Role::Vmm, Stage::Locked, "get-dumpable");
    assert_eq!(
        answer(&run({
            dumpable.env("STRATA_SECCOMP", "log");
            dumpable
        })),
        (0, 0)
    );
}

/// The root directory is empty and may be listed by anybody, so only Landlock refuses to open it.
fn landlock_holds_even_the_empty_root() {
    let mut command = probe(User::Same, Role::Vmm, Stage::Locked, "open-root");
    let (returned, errno) = answer(&run({
        command.env("STRATA_SECCOMP", "log");
        command
    }));
    if landlock_version() > 0 {
        assert_eq!((returned, errno), (-1, libc::EACCES));
    } else {
        assert!(returned >= 0);
    }
    assert!(answer(&run(probe(User::Same, Role::Vmm, Stage::Open, "open-root"))).0 >= 0);
}

#[allow(unsafe_code)] // no crate asks only for the version
fn landlock_version() -> i64 {
    let flag_version = 1;
    // SAFETY: with this flag the call takes no attributes and returns a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, flag_version) }
}

fn debug_modes_name_the_call_and_warn() {
    let mut command = probe(User::Same, Role::Blk, Stage::Locked, "socket-inet");
    let ended = run({
        command.env("STRATA_SECCOMP", "trap");
        command
    });
    assert!(ended.error.contains(&format!("system call {} ", libc::SYS_socket)), "{}", ended.describe());
    assert_eq!(ended.status.code(), Some(128 + libc::SIGSYS), "{}", ended.describe());
}

fn memory_of_its_own_is_bounded() {
    for user in users() {
        for role in ROLES {
            let limit = if role == Role::Vmm { 4096 } else { 1024 };
            let (mebibytes, _) = answer(&run(probe(user, role, Stage::Locked, "allocate")));
            assert!((limit / 2..=limit).contains(&mebibytes), "{role:?} got {mebibytes} MiB");
        }
    }
    // The probe itself would go on.
    assert_eq!(answer(&run(probe(User::Same, ROLES[0], Stage::Open, "allocate"))).0, 8192);
}

fn memory_is_in_huge_pages() {
    for user in users() {
        let ended = run(command(user, Role::Vmm, Stage::Isolated, &["tmpfs"]));
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists() {
            assert!(ended.said.starts_with("Unsupported"), "{}", ended.describe());
            continue;
        }
        let huge: u64 = ended.said.trim().strip_prefix("huge ").unwrap_or("0").parse().unwrap();
        // All 64 MiB, unless the host is short of unbroken memory.
        assert!(huge >= 32 << 10, "{user:?}: {}", ended.describe());
    }
}
