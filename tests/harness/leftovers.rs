//! What a case left behind: processes, mounts, files. There must be nothing.
//!
//! Called by: the runner, around each case. Another run on the same machine is none of its affair: it looks at processes
//! below this one, and has those come to it whose parents die ([`adopt`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::case::Context;
use crate::process;

/// A case's own processes get this long to be reaped after it.
const GRACE: Duration = Duration::from_secs(10);
/// Programs that a case starts.
const OURS: &[&str] = &["strata", "vmm", "vhost-blk", "vhost-net", "qemu-", "vhost-device"];

/// Makes this process the one that descendants without a parent go to.
///
/// # Errors
/// If the kernel cannot do it.
pub fn adopt() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphans")
}

/// What was there before the case.
pub struct Before {
    processes: BTreeSet<i32>,
    mounts: BTreeSet<String>,
}

impl Before {
    /// Looks.
    pub fn now() -> Self {
        Self { processes: ours(), mounts: mounts() }
    }

    /// What is there now and was not, in words; empty if all is well.
    pub fn left(&self, context: &Context) -> Vec<String> {
        let until = Instant::now() + GRACE;
        loop {
            let left = self.look(context);
            if left.is_empty() || Instant::now() > until {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn look(&self, context: &Context) -> Vec<String> {
        let mut left = Vec::new();
        for pid in ours().difference(&self.processes) {
            left.push(format!("process {pid} ({})", process::name_of(*pid).unwrap_or_default()));
        }
        for mount in mounts().difference(&self.mounts) {
            left.push(format!("mount {mount}"));
        }
        for dir in [context.run_dir(), context.temporary()] {
            left.extend(entries(&dir).map(|name| format!("file {}", dir.join(name).display())));
        }
        left
    }
}

fn ours() -> BTreeSet<i32> {
    let named =
        |pid: &i32| process::name_of(*pid).is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)));
    process::descendants(std::process::id()).into_iter().filter(named).collect()
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
#[path = "leftovers_test.rs"]
mod leftovers_test;
