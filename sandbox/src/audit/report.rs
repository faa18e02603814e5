//! The findings of an audit, and how they are shown.

use std::fmt;
use std::path::PathBuf;

/// What holds a process, as far as the caller may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The process looked at: the one inside the sandbox, not its reaper.
    pub pid: i32,
    /// Its user, as the caller's user namespace sees it.
    pub uid: u32,
    /// Its group, likewise.
    pub gid: u32,
    /// Whether that user is, as far as the caller can tell, root of the host and not of a user namespace only.
    pub is_root: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// The five capability sets.
    pub capabilities: Capabilities,
    /// Whether no program it starts could gain rights.
    pub no_new_privs: bool,
    /// Whether each kind of namespace is its own: user, mnt, pid, net, ipc, uts, cgroup, in this order.
    pub namespaces: [Namespace; 7],
    /// Its root directory.
    pub root: Root,
}

/// Mode of the system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Off,
    /// The four calls of strict mode.
    Strict,
    /// So many filter programs.
    Filter(u32),
}

/// The capability sets as masks; all 0 means none can be had, ever again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// In force.
    pub effective: u64,
    /// Could be put in force.
    pub permitted: u64,
    /// Could survive the start of a program.
    pub inheritable: u64,
    /// Could be gained by the start of a program.
    pub bounding: u64,
    /// Would survive it.
    pub ambient: u64,
}

/// One kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// As /proc/PID/ns names it.
    pub kind: &'static str,
    /// Whose it is.
    pub visibility: Visibility,
}

/// Whether something is the process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Its own.
    Private,
    /// The caller's.
    Shared,
    /// The caller may not know.
    Unknown,
}

/// The root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A sandbox's: empty and read-only, but for the read-only mounts listed.
    Empty {
        /// What is visible, by path inside.
        binds: Vec<PathBuf>,
    },
    /// Anything else, with why it does not count.
    Open(String),
    /// The caller may not know.
    Unknown,
}

impl Capabilities {
    /// Whether all sets are empty.
    #[must_use]
    pub fn none(&self) -> bool {
        self.effective | self.permitted | self.inheritable | self.bounding | self.ambient == 0
    }
}

impl Report {
    /// What is missing, one line each; empty if the process is locked in as far as the caller can see.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if !matches!(self.seccomp, Seccomp::Filter(_)) {
            gaps.push("no system call filter".to_owned());
        }
        if !self.capabilities.none() {
            gaps.push(format!("has capabilities: {:x?}", self.capabilities));
        }
        if !self.no_new_privs {
            gaps.push("can gain rights by starting a program".to_owned());
        }
        if self.is_root {
            gaps.push(format!("is root (uid {}, gid {})", self.uid, self.gid));
        }
        for namespace in self.namespaces.iter().filter(|namespace| namespace.visibility == Visibility::Shared)
        {
            gaps.push(format!("shares the {} namespace", namespace.kind));
        }
        if let Root::Open(why) = &self.root {
            gaps.push(format!("its root is not empty: {why}"));
        }
        gaps
    }

    /// Whether nothing was found missing.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.gaps().is_empty()
    }

    fn kinds(&self, visibility: Visibility) -> String {
        let kinds: Vec<&str> = self
            .namespaces
            .iter()
            .filter(|namespace| namespace.visibility == visibility)
            .map(|namespace| namespace.kind)
            .collect();
        if kinds.is_empty() { "none".to_owned() } else { kinds.join(" ") }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seccomp {
            Seccomp::Off => f.write_str("seccomp OFF")?,
            Seccomp::Strict => f.write_str("seccomp strict")?,
            Seccomp::Filter(_) => f.write_str("seccomp filter")?,
        }
        f.write_str(if self.capabilities.none() { ", no capabilities" } else { ", HAS CAPABILITIES" })?;
        f.write_str(if self.no_new_privs { ", no_new_privs" } else { ", NO no_new_privs" })?;
        write!(f, ", uid {}", self.uid)?;
        write!(f, ", own namespaces: {}", self.kinds(Visibility::Private))?;
        if self.namespaces.iter().any(|namespace| namespace.visibility == Visibility::Shared) {
            write!(f, ", SHARED: {}", self.kinds(Visibility::Shared))?;
        }
        if self.namespaces.iter().any(|namespace| namespace.visibility == Visibility::Unknown) {
            write!(f, ", unknown: {}", self.kinds(Visibility::Unknown))?;
        }
        match &self.root {
            Root::Empty { binds } if binds.is_empty() => f.write_str(", root empty"),
            Root::Empty { binds } => {
                f.write_str(", root empty but for")?;
                binds.iter().try_for_each(|bind| write!(f, " {}", bind.display()))
            }
            Root::Open(_) => f.write_str(", root OPEN"),
            Root::Unknown => f.write_str(", root unknown"),
        }
    }
}
