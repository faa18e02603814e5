//! What a process may still do, read from `/proc` from outside.
//!
//! Called by: the sandbox cases and the demo. Deliberately not the sandbox crate's own view: this is the second
//! opinion on it.

use std::fs;
use std::path::Path;

use anyhow::Context;
use nix::unistd::Uid;

use crate::process;

/// Namespaces that a sandboxed process has for itself.
const NAMESPACES: &[&str] = &["user", "mnt", "pid", "net", "ipc", "uts"];

/// One process as `/proc` shows it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Process id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// The user it runs as, on this host.
    pub uid: u32,
    /// 2: a system call filter is in force.
    pub seccomp: u32,
    /// It cannot gain rights by running a program.
    pub no_new_privs: bool,
    /// All its capability sets are empty.
    pub no_capabilities: bool,
    /// Namespaces it shares with us, though it should not.
    pub shared_namespaces: Vec<&'static str>,
    /// What lies in its root folder.
    pub root: Vec<String>,
    /// Open descriptors.
    pub descriptors: usize,
}

impl Report {
    /// Looks at `pid`.
    ///
    /// # Errors
    /// If it is gone or out of our sight.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(proc.join("status")).with_context(|| format!("no process {pid}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.split_whitespace().next().unwrap_or_default()).unwrap_or_default()
        };
        let caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let shared = |name: &&'static str| {
            let link = |of: &Path| fs::read_link(of.join("ns").join(name)).ok();
            link(&proc) == link(Path::new("/proc/self"))
        };
        let root =
            fs::read_dir(proc.join("root")).with_context(|| format!("cannot see the root of {pid}"))?;
        let mut root: Vec<String> =
            root.flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        root.sort();
        Ok(Self {
            pid,
            name: field("Name").to_owned(),
            uid: field("Uid").parse().unwrap_or(0),
            seccomp: field("Seccomp").parse().unwrap_or(0),
            no_new_privs: field("NoNewPrivs") == "1",
            no_capabilities: caps.iter().all(|set| u64::from_str_radix(field(set), 16) == Ok(0)),
            shared_namespaces: NAMESPACES.iter().filter(|name| shared(name)).copied().collect(),
            root,
            descriptors: fs::read_dir(proc.join("fd")).map(Iterator::count).unwrap_or(0),
        })
    }

    /// What is wrong with it for a sandboxed process whose root may hold `allowed`; empty if nothing is.
    pub fn wrong(&self, allowed: &[&str]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        check(self.seccomp == 2, format!("Seccomp is {}, not 2", self.seccomp));
        check(self.no_new_privs, "NoNewPrivs is not set".into());
        check(self.no_capabilities, "it has capabilities".into());
        check(self.uid != 0, "it runs as root".into());
        check(
            self.shared_namespaces.is_empty(),
            format!("it shares namespaces {:?} with us", self.shared_namespaces),
        );
        let stray: Vec<_> = self.root.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        check(stray.is_empty(), format!("its root holds {stray:?}"));
        wrong
    }
}

/// The process that does the work under a pid that `strata` noted: the launcher starts a small process that stays
/// outside the pid namespace and waits for the one inside.
pub fn worker(pid: i32) -> i32 {
    let below = process::descendants(u32::try_from(pid).unwrap_or(0));
    below.last().copied().unwrap_or(pid)
}

/// True if we are root, and a root's processes must not be.
pub fn are_we_root() -> bool {
    Uid::effective().is_root()
}
