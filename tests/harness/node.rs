//! A node: a real systemd as process 1 of its own namespaces, over a small Debian, with the package to install.
//!
//! Owns: the namespaces' first process, its cgroup and the folder its root is mounted on; all end when this is dropped.
//! Called by: the cases of `systemd`. In the rig `/dev/kvm` and the cgroup controllers are real, so guests run in it;
//! on a host without them, all but guests does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail};
use strata_rig::debian::Release;
use strata_rig::tool;

use crate::case::Context;
use crate::process::{self, Process};

const START: &str = include_str!("node.sh");
/// The node's folder of machine files.
const MACHINES: &str = "etc/strata/machines";

/// A running node.
pub struct Node {
    outer: Process,
    /// The process that is systemd, as seen from here.
    pid: i32,
    cgroup: PathBuf,
    release: Release,
}

impl Node {
    /// Boots it and waits until systemd says it is up.
    ///
    /// # Errors
    /// If there is no root file system for it, or systemd does not come up.
    pub fn start(context: &Context, release: Release) -> anyhow::Result<Self> {
        let tree = release.root(&context.place);
        if !tree.join("lib/systemd/systemd").exists() {
            bail!("{} is no root file system: cargo xtask setup", tree.display());
        }
        let cgroup = cgroup()?;
        let folder = context.file("node");
        fs::create_dir(&folder)?;
        let script = context.file("node.sh");
        fs::write(&script, START)?;
        let mut command = Command::new("sh");
        command.arg(&script).arg(&folder).arg(&tree).arg(&cgroup);
        let outer = process::start("the node", &mut command)?;
        let mut node = Self { outer, pid: 0, cgroup, release };
        let up = process::until("systemd to come up", || {
            if let Some(status) = node.outer.ended()? {
                bail!("the node ended: {status}");
            }
            let Some(&pid) = process::descendants(node.outer.pid()).first() else { return Ok(false) };
            if process::name_of(pid).as_deref() != Some("systemd") {
                return Ok(false);
            }
            node.pid = pid;
            let state = node.try_run(&["systemctl", "is-system-running"])?;
            Ok(["running\n", "degraded\n"].iter().any(|up| state.stdout == up.as_bytes()))
        });
        up.with_context(|| node.outer.tails())?;
        Ok(node)
    }

    /// Boots it and installs the package.
    ///
    /// # Errors
    /// As [`Node::start`], or what dpkg says.
    pub fn with_package(context: &Context, release: Release) -> anyhow::Result<Self> {
        let node = Self::start(context, release)?;
        node.install(&context.place.package())?;
        // udev's rule, which came before the group did.
        if node.path("/dev/kvm").exists() {
            node.run(&["chgrp", "kvm", "/dev/kvm"])?;
        }
        Ok(node)
    }

    /// Installs the package in `folder`, or upgrades to it.
    ///
    /// # Errors
    /// There is none, or what dpkg says.
    pub fn install(&self, folder: &Path) -> anyhow::Result<()> {
        const INSIDE: &str = "/tmp/strata.deb";
        let package = package(folder)?;
        fs::copy(&package, self.path(INSIDE))
            .with_context(|| format!("cannot copy {}", package.display()))?;
        self.run(&["dpkg", "-i", INSIDE]).map(drop)
    }

    /// Which Debian it is.
    pub fn release(&self) -> Release {
        self.release
    }

    /// A path of the node, as seen from here.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid)).join(inside.trim_start_matches('/'))
    }

    /// Its network namespace, as a file.
    pub fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// Runs a command in the node.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn try_run(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = tool::command("nsenter");
        command.args(["-t", &self.pid.to_string(), "-a", "--", "env", "-i", "SYSTEMD_PAGER=cat"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_COLORS=0", "COLUMNS=200"]).args(words);
        command.output().with_context(|| format!("cannot run {words:?} in the node"))
    }

    /// Runs a command in the node that has to succeed; gives what it prints.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.try_run(words)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("in the node, {words:?} ended with {}: {said}{errors}", output.status);
        }
        Ok(said)
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// If systemd does not answer.
    pub fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        Ok(self.run(&["systemctl", "show", "-P", name, unit])?.trim().to_owned())
    }

    /// Whether a unit is active.
    ///
    /// # Errors
    /// If systemd does not answer.
    pub fn is_active(&self, unit: &str) -> anyhow::Result<bool> {
        Ok(self.property(unit, "ActiveState")? == "active")
    }

    /// The main process of a service, as the node numbers it; 0 without one.
    ///
    /// # Errors
    /// If systemd does not answer.
    pub fn main_pid(&self, unit: &str) -> anyhow::Result<u32> {
        let text = self.property(unit, "MainPID")?;
        text.parse().with_context(|| format!("MainPID of {unit} is {text:?}"))
    }

    /// The number here of a process that the node numbers `inside`.
    ///
    /// # Errors
    /// If there is none.
    pub fn pid_outside(&self, inside: u32) -> anyhow::Result<i32> {
        let ends_in = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let last = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
            last == Some(inside)
        };
        let mut below = process::descendants(self.outer.pid()).into_iter();
        below.find(ends_in).with_context(|| format!("the node has no process {inside}"))
    }

    /// What the journal holds, by any of journalctl's filters.
    ///
    /// # Errors
    /// If journalctl fails.
    pub fn journal(&self, filters: &[&str]) -> anyhow::Result<String> {
        self.run(&[&["journalctl", "-q", "--no-pager", "-o", "cat"], filters].concat())
    }

    fn journal_tail(&self) -> String {
        let output = self.try_run(&["journalctl", "-q", "--no-pager", "-o", "short-monotonic", "-n", "70"]);
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        format!("the node's journal:\n{text}")
    }

    /// Has `test` do its work; where it fails, the end of the journal says more.
    ///
    /// # Errors
    /// Those of `test`.
    pub fn explain(&self, test: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        test(self).map_err(|error| anyhow::anyhow!("{error:#}\n{}", self.journal_tail()))
    }

    /// Writes a machine file and has systemd read it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn machine(&self, name: &str, toml: &str) -> anyhow::Result<()> {
        fs::write(self.path(MACHINES).join(format!("{name}.toml")), toml)
            .context("cannot write a machine file")?;
        self.run(&["systemctl", "daemon-reload"]).map(drop)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.pid != 0 {
            let _ = process::kill(self.pid);
        }
        let _ = self.outer.wait();
        remove_cgroups(&self.cgroup);
    }
}

/// The package that was built into `folder` for the tests.
fn package(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut files = fs::read_dir(folder)
        .with_context(|| format!("no package in {}: cargo xtask test builds it", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "deb"));
    files.next().with_context(|| format!("no package in {}", folder.display()))
}

/// An empty cgroup with every controller there is.
fn cgroup() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let mount = mount.context("no cgroup v2 is mounted")?;
    let controllers = fs::read_to_string(mount.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        // One that cannot be had below is one that the node does without.
        let _ = fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let cgroup = mount.join(format!("strata-node-{}", std::process::id()));
    fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
    Ok(cgroup)
}

/// Children first; the kernel takes a moment to empty those of killed processes.
fn remove_cgroups(cgroup: &Path) {
    let _ = process::until("empty cgroups", || {
        let children = fs::read_dir(cgroup).into_iter().flatten().flatten();
        children.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(|path| remove_tree(&path));
        Ok(fs::remove_dir(cgroup).is_ok() || !cgroup.exists())
    });
}

fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
