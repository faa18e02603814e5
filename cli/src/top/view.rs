//! A snapshot as lines of text, the same on a screen and in a pipe.

use super::snapshot::{Device, Load, Process, Shown, Snapshot};
use crate::list::table;

/// A line, and whether it heads a table.
pub(crate) type Lines = Vec<(String, bool)>;

/// All of it.
pub(crate) fn lines(snapshot: &Snapshot) -> Lines {
    let host = &snapshot.host;
    let machines = snapshot.machines.len();
    let steal = host
        .steal_percent
        .map_or_else(|| "steal unknown".to_owned(), |steal| format!("{steal:.1} % stolen below"));
    let mut lines = vec![(
        format!("{machines} machines, {} CPUs, {steal}, over {:.1} s", host.cpus, snapshot.seconds),
        false,
    )];
    if snapshot.machines.is_empty() {
        return lines;
    }
    let mut add = |text: String| {
        lines.push((String::new(), false));
        lines.extend(text.lines().enumerate().map(|(at, line)| (line.to_owned(), at == 0)));
    };
    add(machines_table(snapshot));
    if snapshot.machines.iter().any(|machine| machine.vcpus.len() > 1) {
        add(vcpus_table(snapshot));
    }
    add(devices_table(snapshot));
    add(processes_table(snapshot));
    lines
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

fn tenth(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// MiB to a tenth.
fn mib(bytes: Option<u64>) -> String {
    tenth(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)))
}

fn load(load: &Load) -> [String; 8] {
    [
        number(load.exits),
        number(load.io_exits),
        number(load.mmio_exits),
        number(load.halt_exits),
        number(load.user_exits),
        tenth(load.run_percent),
        tenth(load.steal_percent),
        tenth(load.halt_poll_percent),
    ]
}

fn machines_table(snapshot: &Snapshot) -> String {
    let header = [
        "MACHINE", "STATE", "EXITS/S", "IO/S", "MMIO/S", "HALTS/S", "USER/S", "RUN%", "STEAL%", "POLL%",
        "2M PAGES", "4K PAGES",
    ];
    let row = |machine: &Shown| {
        let [exits, io, mmio, halts, user, run, steal, poll] = load(&machine.vcpus_together);
        let (name, state) = (machine.name.clone(), machine.state.to_owned());
        let (large, small) = (count(machine.pages.large), count(machine.pages.small));
        [name, state, exits, io, mmio, halts, user, run, steal, poll, large, small]
    };
    let rows: Vec<_> =
        std::iter::once(header.map(str::to_owned)).chain(snapshot.machines.iter().map(row)).collect();
    table(&rows)
}

fn vcpus_table(snapshot: &Snapshot) -> String {
    let header =
        ["MACHINE", "VCPU", "EXITS/S", "IO/S", "MMIO/S", "HALTS/S", "USER/S", "RUN%", "STEAL%", "POLL%"];
    let rows = snapshot.machines.iter().flat_map(|machine| {
        machine.vcpus.iter().map(|vcpu| {
            let [exits, io, mmio, halts, user, run, steal, poll] = load(&vcpu.load);
            [machine.name.clone(), vcpu.index.to_string(), exits, io, mmio, halts, user, run, steal, poll]
        })
    });
    table(&std::iter::once(header.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn devices_table(snapshot: &Snapshot) -> String {
    let header = [
        "MACHINE",
        "DEVICE",
        "KIND",
        "STATE",
        "REQUESTS/S",
        "PACKETS/S",
        "KIB/S",
        "LATENCY US",
        "POLL%",
        "KICKS/S",
    ];
    let row = |machine: &Shown, device: &Device| {
        [
            machine.name.clone(),
            device.id.clone(),
            device.kind.clone(),
            device.state.to_owned(),
            number(device.requests),
            number(device.packets),
            number(device.bytes.map(|bytes| bytes / 1024.0)),
            tenth(device.latency_microseconds),
            tenth(device.poll_percent),
            number(device.kicks),
        ]
    };
    let rows = snapshot
        .machines
        .iter()
        .flat_map(|machine| machine.devices.iter().map(move |device| row(machine, device)));
    table(&std::iter::once(header.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn processes_table(snapshot: &Snapshot) -> String {
    let header = ["MACHINE", "PROCESS", "PID", "CPU%", "OWN MIB", "GUEST MIB", "PRIVATE MIB"];
    let row = |machine: &Shown, process: &Process| {
        // Everybody may see anonymous memory, which is most of what is a process's own.
        let own = process.memory.own_bytes.or(process.memory.anonymous_bytes);
        [
            machine.name.clone(),
            process.id.clone(),
            process.pid.to_string(),
            tenth(process.cpu_percent),
            mib(own),
            mib(process.memory.guest_bytes),
            mib(process.memory.private_bytes),
        ]
    };
    let rows = snapshot
        .machines
        .iter()
        .flat_map(|machine| machine.processes.iter().map(move |process| row(machine, process)));
    table(&std::iter::once(header.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}
