//! The sandbox every Strata process that guest bytes reach lives in.
//!
//! Owns: everything a process gives up before it serves a guest. Called by `vmm`, `vhost-blk` and `vhost-net`,
//! each at the same two points of its `main`; `strata` calls [`audit()`] to show what is in force.
//!
//! ```text
//!   close_inherited          open files, taps, sockets, /dev/kvm       create memory, rings, VM       serve
//!         |                              |                                      |                     |
//!   main -+------------------------------+--- isolate ---------------------------+--- lock ------------+--->
//!                                              | no root uid, own user, mount, pid,    | empty read-only root, no
//!                                              | net, ipc, uts and cgroup namespaces;  | capabilities, no_new_privs,
//!                                              | the child goes on, the parent becomes | Landlock, limits, not
//!                                              | a reaper: signals in, status out      | dumpable, system call filter
//! ```
//!
//! Both steps need a process with one thread; what belongs to one process only (a KVM virtual machine, an io_uring,
//! timers, threads, a tokio runtime) is made after [`isolate()`], because the process that goes on is its child.
//! Descriptors, blocked signals and open-file-description locks survive it.
//!
//! Refuses: to run half. Every step that fails is an error that says which and what to do about it; only Landlock,
//! which older kernels lack, is taken as far as it goes. There is no way to take a lock back.

mod account;
mod audit;
mod bind;
mod capabilities;
mod chroot;
mod descriptors;
mod error;
mod filter;
mod idmap;
mod isolate;
mod landlocked;
mod limits;
mod lock;
mod reaper;
mod remove;
mod root;
mod service;
mod sys;
mod tmpfs;

pub use account::Account;
pub use audit::{Capabilities, Namespace, Report, Root, Seccomp, Visibility, audit, inner};
pub use descriptors::close_inherited;
pub use error::SandboxError;
pub use isolate::{Isolated, disabled, isolate};
pub use remove::remove_at_end;
pub use service::{Notify, ServiceError, listeners, stored};
pub use tmpfs::{private_tmpfs_huge, tmpfs_in};

use std::os::fd::RawFd;
use std::path::PathBuf;

/// Which of the three programs is locked in; decides its filter and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The virtual machine monitor: KVM, guest memory, control socket, vhost-user frontends.
    Vmm,
    /// A disk backend.
    Blk,
    /// A network backend.
    Net,
}

impl Role {
    /// The program's name, as it appears in messages.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Role::Vmm => "vmm",
            Role::Blk => "vhost-blk",
            Role::Net => "vhost-net",
        }
    }
}

impl std::str::FromStr for Namespaces {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "own" => Ok(Self::Own),
            "given" => Ok(Self::Given),
            _ => Err("neither `own` nor `given`"),
        }
    }
}

/// What [`isolate()`] is asked for.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program.
    pub role: Role,
    /// Directories or unix sockets, as absolute paths without symlinks or `..`, that stay visible at the same path,
    /// read-only. Only sockets in them can be used (connected to): nothing can be opened any more. If the process
    /// was started as root, what belongs to root in them is shown as belonging to [`Spec::account`], so a socket of
    /// mode 0600 in a directory of mode 0700 can still be reached.
    pub binds: Vec<PathBuf>,
    /// If not empty, every descriptor but these and 0, 1, 2 is closed. Empty: all stay as they are, which is right
    /// after [`close_inherited`].
    pub keep: Vec<RawFd>,
    /// Whom a process started as root becomes. A process that is not root stays who it is.
    pub account: Account,
    /// Whether all of it is to die when the process that started it dies.
    pub die_with_parent: bool,
    /// Who makes the namespaces and the account.
    pub namespaces: Namespaces,
}

/// Who makes the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Namespaces {
    /// [`isolate()`] does, and the process becomes its child.
    #[default]
    Own,
    /// Whoever started the process did, as a service manager does from a unit's directives: an unprivileged user,
    /// no_new_privs, and mounts, network and users of its own as the unit says. [`isolate()`] then only checks the
    /// first two and stays in this process; [`Isolated::lock`] keeps Landlock, limits, capabilities and the filter.
    Given,
}

impl Spec {
    /// Nothing visible, all descriptors kept, uid and gid 65534 instead of root, independent of its parent.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            role,
            binds: Vec::new(),
            keep: Vec::new(),
            account: Account::NOBODY,
            die_with_parent: false,
            namespaces: Namespaces::Own,
        }
    }
}
