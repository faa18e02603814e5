//! What is left behind, and what grows. Only what is this campaign's own is looked at: others may run the same
//! programs on this host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::machine::Machine;
use crate::place::Place;

/// The dead get so long to be gone.
const GRACE: Duration = Duration::from_secs(20);
/// A launcher and its load-vmm may grow by so much in a round.
const GROWTH: u64 = 48 << 10;

/// What was there before a round.
pub(crate) struct Before {
    mounts: BTreeSet<String>,
    descriptors: usize,
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

fn descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Whether a process is there and no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// All processes below one.
pub(crate) fn below(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found.split_off(1)
}

impl Before {
    pub(crate) fn now() -> Self {
        // Whoever loses its parent comes to us, so that nobody gets away unseen.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        Self { mounts: mounts(), descriptors: descriptors("self") }
    }

    /// Fails with what was not there before.
    pub(crate) fn compare(&self, place: &Place) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            while waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some())
            {
            }
            let left = self.left(place);
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() > GRACE {
                bail!("left behind: {}", left.join(", "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn left(&self, place: &Place) -> Vec<String> {
        let mut left: Vec<String> =
            below(std::process::id() as i32).iter().map(|pid| format!("process {pid}")).collect();
        let own = place.path("");
        let ours = |mount: &&String| Path::new(mount).starts_with(&own);
        left.extend(mounts().difference(&self.mounts).filter(ours).map(|mount| format!("mount {mount}")));
        for folder in ["run", "tmp"] {
            let entries = fs::read_dir(place.path(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        let now = descriptors("self");
        if now > self.descriptors {
            left.push(format!("{} descriptors of the campaign's proxies", now - self.descriptors));
        }
        left
    }
}

/// What the lasting processes of machines hold: the launchers and the load's.
#[derive(Debug)]
pub(crate) struct Held(Vec<(String, i32, usize, u64)>);

impl Held {
    pub(crate) fn of(machines: &[Machine]) -> Self {
        let lasting = |machine: &Machine| {
            let pids = [("strata", Some(machine.launcher_pid())), ("vmm", machine.pid_of("vmm", false))];
            let of = |(name, pid): (&str, Option<i32>)| {
                let (name, pid) = (format!("{} of {}", name, machine.name), pid?);
                // The least of several looks: control connections come and go.
                let looks = (0..5).map(|_| {
                    std::thread::sleep(Duration::from_millis(20));
                    descriptors(&pid.to_string())
                });
                Some((name, pid, looks.min().unwrap_or(0), kilobytes(pid)))
            };
            pids.into_iter().filter_map(of).collect::<Vec<_>>()
        };
        Self(machines.iter().flat_map(lasting).collect())
    }

    /// Fails if one of them that is still the same holds more than before.
    pub(crate) fn compare(&self, now: &Self) -> anyhow::Result<()> {
        for (name, pid, descriptors, memory) in &now.0 {
            let Some((_, _, before, little)) = self.0.iter().find(|(_, other, ..)| other == pid) else {
                continue;
            };
            ensure!(
                descriptors <= &(before + 1),
                "{name} holds {descriptors} descriptors, {before} at first"
            );
            ensure!(*memory <= little + GROWTH, "{name} has grown from {little} KiB to {memory} KiB");
        }
        Ok(())
    }
}

/// Memory of its own, not shared with anybody (a guest's is).
fn kilobytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
