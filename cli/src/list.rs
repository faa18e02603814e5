//! `strata ps` and `strata status`: what runs, for people and for programs.
//!
//! The JSON is a promise: keys are added, never renamed or taken away.

use std::time::Duration;

use serde::Serialize;
use strata_config::{Name, Size};
use strata_ipc::{Client, DeviceState, DeviceStatus, Statistics, Status};
use strata_sandbox::audit;

use crate::args::Output;
use crate::control;
use crate::run_dir::{Running, base};
use crate::say::print;
use crate::supervise::record::{self, Entry};

/// How long a machine may take to answer before it is listed as not answering.
const ANSWER: Duration = Duration::from_secs(2);

/// A machine as `ps --output json` lists it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// `booting`, `running`, `paused`, `stopping`, or `unresponsive` when its vmm does not answer.
    state: &'static str,
    /// The launcher.
    pid: u32,
    /// A device has no process that serves it.
    degraded: bool,
    /// Which, and why; for people.
    degraded_because: Vec<String>,
    /// Null when the vmm does not answer, like the next two.
    cpus: Option<u32>,
    memory_bytes: Option<u64>,
    memory_backing: Option<String>,
    /// `nested` or `bare`; null when its folder does not tell.
    profile: Option<&'static str>,
    devices: Vec<ListedDevice>,
    processes: Vec<Process>,
}

#[derive(Debug, Serialize)]
struct ListedDevice {
    id: String,
    kind: String,
    /// `connected`, `lost`, `waiting` or `internal`.
    state: &'static str,
    queues: u32,
    /// Null where the backend is not the launcher's.
    pid: Option<u32>,
    /// Why the backend that answers is refused.
    trouble: Option<String>,
    /// For how long its slowest ring has held requests without one being answered.
    stalled_milliseconds: u64,
    /// Where it is on the guest's PCI bus, 00:SLOT.0; null: not yet, or its vmm is of a version that does not tell.
    slot: Option<u32>,
    /// The guest has been asked to let go of it.
    leaving: bool,
    /// What its launcher knows; null where there is none.
    supervision: Option<Entry>,
}

#[derive(Debug, Serialize)]
struct Process {
    id: String,
    pid: u32,
    /// Null where the process has gone.
    sandbox: Option<Sandbox>,
}

/// What holds a process in, as the kernel says; under a service manager's sandbox some of it is the manager's.
#[derive(Debug, Serialize)]
struct Sandbox {
    /// Nothing is missing, as far as the caller may see.
    locked: bool,
    /// In words.
    found: String,
    /// What is missing, a line each.
    gaps: Vec<String>,
}

impl Process {
    fn look(id: String, pid: u32) -> Self {
        let report = i32::try_from(pid).ok().and_then(|pid| audit(pid).ok());
        let sandbox = report.map(|report| Sandbox {
            locked: report.is_locked(),
            found: report.to_string(),
            gaps: report.gaps(),
        });
        Self { id, pid, sandbox }
    }
}

async fn listed(running: &Running) -> Listed {
    let status = async { Client::connect(&running.control(), ANSWER).await?.status().await };
    let status: Option<Status> = status.await.ok();
    let processes = running.processes().into_iter().map(|(id, pid)| Process::look(id, pid)).collect();
    let (name, pid) = (running.name(), running.pid);
    let profile = crate::profile::of_running(running);
    let Some(status) = status else {
        let devices = Vec::new();
        let (cpus, memory_bytes, memory_backing) = (None, None, None);
        return Listed {
            name,
            state: "unresponsive",
            pid,
            degraded: false,
            degraded_because: Vec::new(),
            cpus,
            memory_bytes,
            memory_backing,
            profile,
            devices,
            processes,
        };
    };
    let mut record = record::read(&running.path);
    let degraded_because: Vec<String> =
        status.devices.iter().filter_map(|it| why_degraded(it, record.get(&it.id))).collect();
    let mut device = |device: strata_ipc::DeviceStatus| ListedDevice {
        pid: running.pid_of(&device.id),
        state: device.state.as_str(),
        trouble: device.trouble,
        stalled_milliseconds: device.stalled_milliseconds,
        slot: device.slot,
        leaving: device.leaving,
        supervision: record.remove(&device.id),
        id: device.id,
        kind: device.kind,
        queues: device.queues,
    };
    let devices = status.devices.into_iter().map(&mut device).collect();
    Listed {
        name,
        state: status.state.as_str(),
        pid,
        degraded: !degraded_because.is_empty(),
        degraded_because,
        cpus: Some(status.cpus),
        memory_bytes: Some(status.memory_bytes),
        memory_backing: Some(status.memory_backing),
        profile,
        devices,
        processes,
    }
}

/// Why a machine with this device is not whole, if it is not.
fn why_degraded(device: &DeviceStatus, known: Option<&Entry>) -> Option<String> {
    if device.state != DeviceState::Lost {
        return None;
    }
    let id = &device.id;
    if let Some(trouble) = &device.trouble {
        return Some(format!("{id}: its backend is refused: {trouble}"));
    }
    let death = known
        .and_then(|known| known.last_death.as_deref())
        .map(|how| format!(" ({how})"))
        .unwrap_or_default();
    let wait = known.and_then(|known| known.waits_milliseconds).filter(|wait| *wait > 0);
    let wait = wait.map(|wait| format!(", started again after {wait} ms")).unwrap_or_default();
    Some(format!("{id}: its backend is gone{death}{wait}"))
}

pub(crate) async fn ps(output: Output) -> anyhow::Result<()> {
    let mut machines = Vec::new();
    for running in Running::all(&base())? {
        machines.push(listed(&running).await);
    }
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&machines)?))?,
        Output::Text => {
            let header =
                ["NAME", "STATE", "CPUS", "MEMORY", "BACKING", "PROFILE", "SANDBOX", "DEVICES", "PIDS"];
            let header = header.map(str::to_owned);
            let rows: Vec<_> = std::iter::once(header).chain(machines.iter().map(row)).collect();
            print(&table(&rows))?;
        }
    }
    Ok(())
}

fn row(machine: &Listed) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let devices: Vec<String> = machine
        .devices
        .iter()
        .map(|device| match device.state {
            "connected" | "internal" => device.id.clone(),
            state => format!("{}({state})", device.id),
        })
        .collect();
    let pids: Vec<String> =
        machine.processes.iter().map(|process| format!("{}={}", process.id, process.pid)).collect();
    [
        machine.name.clone(),
        format!("{}{}", machine.state, if machine.degraded { " (degraded)" } else { "" }),
        or_dash(machine.cpus.map(|cpus| cpus.to_string())),
        or_dash(machine.memory_bytes.map(|bytes| Size(bytes).to_string())),
        or_dash(machine.memory_backing.clone()),
        or_dash(machine.profile.map(str::to_owned)),
        sandboxes(&machine.processes),
        if devices.is_empty() { "-".to_owned() } else { devices.join(",") },
        format!("strata={} {}", machine.pid, pids.join(" ")).trim_end().to_owned(),
    ]
}

/// `locked` if all processes are, else those that are not.
fn sandboxes(processes: &[Process]) -> String {
    let known: Vec<_> =
        processes.iter().filter_map(|process| Some((&process.id, process.sandbox.as_ref()?))).collect();
    let open: Vec<_> =
        known.iter().filter(|(_, sandbox)| !sandbox.locked).map(|(id, _)| id.as_str()).collect();
    match (known.is_empty(), open.is_empty()) {
        (true, _) => "-".to_owned(),
        (_, true) => "locked".to_owned(),
        _ => format!("OPEN({})", open.join(",")),
    }
}

/// Columns as wide as their widest cell, two spaces between, no spaces at the end of a line.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A machine as `status --output json` shows it.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    machine: Listed,
    reboots: u64,
    statistics: Statistics,
}

pub(crate) async fn status(name: &Name, output: Output) -> anyhow::Result<()> {
    let running = control::find(name)?;
    let mut client = control::connect(&running).await?;
    let reboots = client.status().await?.reboots;
    let shown = Shown { reboots, statistics: client.statistics().await?, machine: listed(&running).await };
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&shown)?))?,
        Output::Text => print(&text(&shown))?,
    }
    Ok(())
}

fn text(shown: &Shown) -> String {
    let machine = &shown.machine;
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut add = |key: &str, value: String| rows.push([key.to_owned(), value]);
    add("name", machine.name.clone());
    add("state", machine.state.to_owned());
    for why in &machine.degraded_because {
        add("degraded", why.clone());
    }
    add("cpus", machine.cpus.map(|cpus| cpus.to_string()).unwrap_or_default());
    add("memory", machine.memory_bytes.map(|bytes| Size(bytes).to_string()).unwrap_or_default());
    add("backing", machine.memory_backing.clone().unwrap_or_default());
    add("profile", machine.profile.unwrap_or_default().to_owned());
    add("reboots", shown.reboots.to_string());
    add("launcher", format!("pid {}", machine.pid));
    for process in &machine.processes {
        add(&process.id, format!("pid {}", process.pid));
        if let Some(sandbox) = &process.sandbox {
            add(&format!("{}.sandbox", process.id), sandbox.found.clone());
        }
    }
    for device in &machine.devices {
        let slot = device.slot.map(|slot| format!(", slot {slot}")).unwrap_or_default();
        let leaving = if device.leaving { ", leaving" } else { "" };
        let what = format!("{}, {}, {} queues{slot}{leaving}", device.kind, device.state, device.queues);
        add(&device.id, what);
        if device.stalled_milliseconds > 0 {
            let seconds = device.stalled_milliseconds as f64 / 1e3;
            add(&format!("{}.stalled", device.id), format!("{seconds:.1} s without an answer to requests"));
        }
        if let Some(Entry { restarts, hangs, upgrades, .. }) = &device.supervision {
            add(
                &format!("{}.process", device.id),
                format!("{restarts} restarts, {hangs} hangs, {upgrades} upgrades"),
            );
        }
    }
    for (key, count) in &shown.statistics.vm {
        add(key, count.to_string());
    }
    for vcpu in &shown.statistics.vcpus {
        for (key, count) in &vcpu.counters {
            add(&format!("vcpu{}.{key}", vcpu.index), count.to_string());
        }
    }
    for device in &shown.statistics.devices {
        for (key, count) in &device.counters {
            add(&format!("{}.{key}", device.id), count.to_string());
        }
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["NAME", "STATE"], ["a-long-name", "running"], ["ü", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "NAME         STATE\na-long-name  running\nü\n");
    }

    #[test]
    fn a_machine_that_does_not_answer_is_still_listed() {
        let machine = Listed {
            name: "web".into(),
            state: "unresponsive",
            pid: 7,
            degraded: false,
            degraded_because: vec![],
            cpus: None,
            memory_bytes: None,
            memory_backing: None,
            profile: None,
            devices: vec![],
            processes: vec![Process { id: "vmm".into(), pid: 8, sandbox: None }],
        };
        assert_eq!(row(&machine), ["web", "unresponsive", "-", "-", "-", "-", "-", "-", "strata=7 vmm=8"]);
    }

    #[test]
    fn a_process_that_is_not_locked_is_named() {
        let process = |id: &str, locked| {
            let sandbox = Sandbox { locked, found: String::new(), gaps: vec![] };
            Process { id: id.into(), pid: 1, sandbox: Some(sandbox) }
        };
        assert_eq!(sandboxes(&[process("vmm", true), process("disk0", true)]), "locked");
        assert_eq!(sandboxes(&[process("vmm", false), process("disk0", true)]), "OPEN(vmm)");
        // This test's own process has no filter.
        let sandbox = Process::look("me".into(), std::process::id()).sandbox.expect("it runs");
        assert!(!sandbox.locked && sandbox.gaps.contains(&"no system call filter".to_owned()), "{sandbox:?}");
    }
}
