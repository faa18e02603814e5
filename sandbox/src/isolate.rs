//! The first step: no root uid, namespaces of its own, and a parent that only watches.
//!
//! Called once by each program's `main`, after it has opened what it needs by path, before it makes anything that
//! cannot change process (threads, io_uring, a KVM virtual machine, timers).
//!
//! ```text
//!   launcher -- spawns --> this process --fork--> child: pid 1 of the new pid namespace; isolate returns in it
//!                             |                     ^  dies (SIGKILL) when the reaper dies
//!                             +-- becomes the reaper: signals in, exit status out, nothing else
//! ```
#![allow(unsafe_code)] // fork

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, fork, getpid, getppid, pipe2, read};

use crate::account::{Account, leave_root};
use crate::bind::Bind;
use crate::{Namespaces, Role, SandboxError, Spec, chroot, descriptors, limits, lock, reaper, sys, tmpfs};

/// Our ids inside the user namespace. Not 0, so nothing there takes itself for root, and not 65534, so that our own
/// is told from everybody else's (which all appear as 65534).
const INSIDE: u32 = 1;

/// A process that has left the host's namespaces and can still prepare; [`Isolated::lock`] ends that.
#[derive(Debug)]
#[must_use = "isolated is half way: call lock"]
pub struct Isolated {
    pub(crate) role: Role,
    pub(crate) account: Account,
    pub(crate) binds: Vec<Bind>,
    pub(crate) namespaces: Namespaces,
}

/// Leaves the host: its root user, its users, mounts, processes, network, IPC and names.
///
/// Returns in a child process; the calling process never comes back from it, it ends with the child's status (or its
/// signal). Working directory and open descriptors are as before; files can still be opened by path, with the rights
/// that are left.
///
/// # Errors
/// [`SandboxError`]; the process is then in an unknown state between outside and inside and must end.
///
/// In a chroot (as root) the working directory becomes `/`.
pub fn isolate(mut spec: Spec) -> Result<Isolated, SandboxError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(SandboxError::system("count threads: /proc must be mounted"))?
        .count();
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    if !spec.keep.is_empty() {
        descriptors::close_others(&spec.keep)?;
    }
    let mut binds = spec.binds.drain(..).map(Bind::new).collect::<Result<Vec<_>, _>>()?;
    if spec.namespaces == Namespaces::Given {
        given()?;
        return Ok(Isolated {
            role: spec.role,
            account: Account::current(),
            binds,
            namespaces: spec.namespaces,
        });
    }
    // Changing the user id clears the death signal, so one that the launcher set is put back.
    let tied = spec.die_with_parent
        || sys::parent_death_signal().map_err(SandboxError::system("read the parent death signal"))? != 0;
    let parent = getppid();
    limits::raise_as_root(spec.role);
    let was_root = nix::unistd::geteuid().is_root();
    if was_root {
        for bind in &mut binds {
            bind.copy_as_root(spec.account);
        }
    }
    let account = leave_root(spec.account)?;
    leave_namespaces(account)?;
    if tied {
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
            .map_err(SandboxError::system("die with the parent"))?;
        if getppid() != parent {
            // It died between; nobody wants this process any more.
            std::process::exit(1);
        }
    }
    split(spec.role, was_root)?;
    Ok(Isolated { role: spec.role, account, binds, namespaces: spec.namespaces })
}

/// What a service manager must have done before we rely on it. Which namespaces there are cannot be told from inside;
/// that is the unit's to say, and `systemd-analyze security` reads it.
fn given() -> Result<(), SandboxError> {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return Err(SandboxError::NotGiven("it runs as root: set User= or DynamicUser="));
    }
    if sys::prctl(libc::PR_GET_NO_NEW_PRIVS, 0).map_err(SandboxError::system("read no_new_privs"))? != 1 {
        return Err(SandboxError::NotGiven("it could gain privileges: set NoNewPrivileges=yes"));
    }
    Ok(())
}

/// New namespaces of every kind but time.
fn leave_namespaces(account: Account) -> Result<(), SandboxError> {
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let leave = || match unshare(flags | CloneFlags::CLONE_NEWCGROUP) {
        Err(Errno::EINVAL) => unshare(flags), // a kernel without cgroups
        left => left,
    };
    let left = match leave() {
        // In a chroot, if there are rights to do something about it.
        Err(Errno::EPERM) if chroot::leave().is_ok() => leave(),
        left => left,
    };
    left.map_err(|errno| SandboxError::NoUserNamespace { hint: forbidden_by(), source: errno.into() })?;
    // setgroups is denied first, or an unprivileged gid_map is refused (user_namespaces(7)).
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{INSIDE} {} 1", account.uid)),
        ("/proc/self/gid_map", format!("{INSIDE} {} 1", account.gid)),
    ];
    for (file, text) in maps {
        fs::write(file, text).map_err(SandboxError::system("map our user into the user namespace"))?;
    }
    // No user namespace within ours, in which capabilities would come back. A layer below the filter, so a read-only
    // /proc/sys (a container's) is no reason to stop.
    if let Err(error) = fs::write("/proc/sys/user/max_user_namespaces", "0") {
        tracing::debug!("nested user namespaces stay possible for who gets past the filter: {error}");
    }
    Ok(())
}

/// Which setting most likely forbids user namespaces.
fn forbidden_by() -> String {
    let settings = [
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns",
        ),
    ];
    for (file, forbids, name) in settings {
        if fs::read_to_string(file).is_ok_and(|value| value.trim() == forbids) {
            return format!("sysctl {name} is {forbids}");
        }
    }
    "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns \
     allow it, so a seccomp filter around us (a container's), an AppArmor profile, or a chroot in which this was not started as root does not"
        .to_owned()
}

/// Forks; returns in the child.
fn split(role: Role, was_root: bool) -> Result<(), SandboxError> {
    // Whatever comes for the reaper from now on waits until it looks.
    let before = reaper::prepare().map_err(SandboxError::errno("block signals"))?;
    let reaper = sys::pidfd_open(getpid().as_raw()).map_err(SandboxError::system("watch the reaper"))?;
    let (waits, confined) = pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::errno("wait for the reaper"))?;
    // SAFETY: this process has one thread (checked by `isolate`), so no lock is held by a thread the child lacks.
    match unsafe { fork() }.map_err(SandboxError::errno("fork"))? {
        ForkResult::Parent { child } => reaper::run(child, role, was_root, confined),
        ForkResult::Child => {
            drop(confined);
            sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
                .map_err(SandboxError::system("die with the reaper"))?;
            // Goes on when the reaper is confined or dead.
            while let Err(Errno::EINTR) = read(&waits, &mut [0]) {}
            // If it died before it was tied to us, no signal comes: its descriptor is readable once it is dead.
            let mut dead = [PollFd::new(reaper.as_fd(), PollFlags::POLLIN)];
            if poll(&mut dead, PollTimeout::ZERO).map_err(SandboxError::errno("watch the reaper"))? > 0 {
                std::process::exit(1);
            }
            reaper::default_actions_end().map_err(SandboxError::errno("handle signals"))?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)
                .map_err(SandboxError::errno("unblock signals"))
        }
    }
}

impl Isolated {
    /// Memory for the guest: [`tmpfs::private_tmpfs_huge`].
    ///
    /// # Errors
    /// As there.
    pub fn private_tmpfs_huge(&self, size: u64) -> io::Result<std::os::fd::OwnedFd> {
        tmpfs::private_tmpfs_huge(size)
    }

    /// Gives up the rest: see [`crate`]. What the calling thread may do afterwards is what its filter lists, and every
    /// thread it starts inherits that.
    ///
    /// # Errors
    /// [`SandboxError`]; the process must end.
    pub fn lock(self) -> Result<(), SandboxError> {
        lock::lock(self)
    }
}

/// For `--no-sandbox`: says so, loudly, once.
pub fn disabled(role: Role) {
    tracing::warn!(
        "{} runs WITHOUT its sandbox (--no-sandbox): a guest that breaks into it has all rights of uid {} on this host",
        role.program(),
        Account::current().uid
    );
}
