//! All machines between two moments, as numbers: pure arithmetic over readings. The JSON is a promise: keys are added,
//! never renamed or taken away; null is "cannot be measured here".

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::{Machine, Sample};
use crate::exits::window::{rate, round};
use crate::meter::{Reading, all_since, packets, requests, since, sum};
use crate::threads::Memory;

/// Everything `top` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) seconds: f64,
    pub(crate) host: Host,
    pub(crate) machines: Vec<Shown>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Host {
    pub(crate) cpus: usize,
    /// Of all CPUs' time, what the hypervisor below gave to others.
    pub(crate) steal_percent: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) name: String,
    /// As in `ps`.
    pub(crate) state: &'static str,
    /// Of all vCPUs together.
    pub(crate) vcpus_together: Load,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Guest memory mapped for the guest by page size.
    pub(crate) pages: Pages,
    pub(crate) processes: Vec<Process>,
    pub(crate) devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Vcpu {
    pub(crate) index: u32,
    #[serde(flatten)]
    pub(crate) load: Load,
}

/// Rates per second and shares of time.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Load {
    pub(crate) exits: Option<f64>,
    pub(crate) io_exits: Option<f64>,
    pub(crate) mmio_exits: Option<f64>,
    pub(crate) halt_exits: Option<f64>,
    /// Exits that reached the vmm.
    pub(crate) user_exits: Option<f64>,
    /// Of its time, what the vCPU ran.
    pub(crate) run_percent: Option<f64>,
    /// Of its time, what it waited for a CPU of this host.
    pub(crate) steal_percent: Option<f64>,
    /// Of the polls before a halted vCPU sleeps, how many paid.
    pub(crate) halt_poll_percent: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Pages {
    pub(crate) small: Option<u64>,
    pub(crate) large: Option<u64>,
    pub(crate) huge: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) cpu_percent: Option<f64>,
    #[serde(flatten)]
    pub(crate) memory: Memory,
}

#[derive(Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) state: &'static str,
    pub(crate) requests: Option<f64>,
    pub(crate) packets: Option<f64>,
    pub(crate) bytes: Option<f64>,
    /// Mean time of a request.
    pub(crate) latency_microseconds: Option<f64>,
    /// Of the backend's polls, how many found work.
    pub(crate) poll_percent: Option<f64>,
    /// Doorbells of the guest.
    pub(crate) kicks: Option<f64>,
    /// Every counter's rate, by name.
    pub(crate) counters: BTreeMap<String, f64>,
}

/// Compares two samples.
pub(crate) fn compare(before: &Sample, after: &Sample) -> Snapshot {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    let steal = before
        .stolen
        .zip(after.stolen)
        .map(|(then, now)| (now.0 - then.0.min(now.0), now.1 - then.1.min(now.1)));
    let steal_percent = steal.filter(|(all, _)| *all > 0).map(|(all, stolen)| percent(stolen, all));
    let machine = |now: &Machine| {
        // Not the one of that name that ran before.
        shown(before.machines.iter().find(|then| then.name == now.name && then.pid == now.pid), now, seconds)
    };
    Snapshot {
        seconds: round(seconds, 1000.0),
        host: Host { cpus: after.cpus, steal_percent },
        machines: after.machines.iter().map(machine).collect(),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    round(part as f64 * 100.0 / whole as f64, 10.0)
}

fn shown(then: Option<&Machine>, now: &Machine, seconds: f64) -> Shown {
    let readings = then.and_then(|then| then.reading.as_ref()).zip(now.reading.as_ref());
    let process = |process: &super::sample::Process| {
        let earlier = then.and_then(|then| then.processes.iter().find(|it| it.pid == process.pid));
        let ran = earlier.and_then(|earlier| Some(since(Some(earlier.cpu?), process.cpu?)));
        Process {
            id: process.id.clone(),
            pid: process.pid,
            cpu_percent: ran.filter(|_| seconds > 0.0).map(|ms| round(ms as f64 / 10.0 / seconds, 10.0)),
            memory: process.memory,
        }
    };
    let mut vcpus = Vec::new();
    if let Some((before, after)) = readings {
        vcpus = after
            .statistics
            .vcpus
            .iter()
            .map(|vcpu| self::vcpu(before, after, vcpu.index, then, now))
            .collect();
    }
    let pages = now.reading.as_ref().map_or_else(Pages::default, |reading| {
        let page = |name| reading.statistics.vm.get(name).copied();
        Pages { small: page("pages_4k"), large: page("pages_2m"), huge: page("pages_1g") }
    });
    Shown {
        name: now.name.clone(),
        state: now.reading.as_ref().map_or("unresponsive", |reading| reading.status.state.as_str()),
        vcpus_together: together(&vcpus, readings),
        vcpus,
        pages,
        processes: now.processes.iter().map(process).collect(),
        devices: readings.map(|(before, after)| devices(before, after)).unwrap_or_default(),
    }
}

fn vcpu(before: &Reading, after: &Reading, index: u32, then: Option<&Machine>, now: &Machine) -> Vcpu {
    let counters = |reading: &Reading| {
        reading.statistics.vcpus.iter().find(|vcpu| vcpu.index == index).map(|vcpu| vcpu.counters.clone())
    };
    let came = all_since(counters(before).as_ref(), &counters(after).unwrap_or_default());
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    let per_second = |names: &[&str]| sum(&came, names).map(|count| rate(count, seconds));
    // The clock of the thread times is read at another moment than that of the counters.
    let clock = then.map(|then| now.at.saturating_duration_since(then.at).as_secs_f64());
    let times = then.and_then(|then| {
        let (earlier, later) = (then.times.get(&index)?, now.times.get(&index)?);
        // A rebooted guest has new threads.
        (earlier.0 == later.0).then(|| (since(Some(earlier.1), later.1), since(Some(earlier.2), later.2)))
    });
    let share = |nanoseconds: u64| {
        clock
            .filter(|clock| *clock > 0.0)
            .map(|clock| round(nanoseconds as f64 / clock / 1e7, 10.0).min(100.0))
    };
    Vcpu {
        index,
        load: Load {
            exits: per_second(&["exits"]),
            io_exits: per_second(&["io_exits"]),
            mmio_exits: per_second(&["mmio_exits"]),
            halt_exits: per_second(&["halt_exits"]),
            user_exits: per_second(&["user_ports", "user_mmio", "user_signals"]),
            run_percent: times.and_then(|times| share(times.0)),
            steal_percent: times.and_then(|times| share(times.1)),
            halt_poll_percent: hits(
                sum(&came, &["halt_successful_poll"]),
                sum(&came, &["halt_attempted_poll"]),
            ),
        },
    }
}

fn hits(part: Option<u64>, whole: Option<u64>) -> Option<f64> {
    part.zip(whole).filter(|(_, whole)| *whole > 0).map(|(part, whole)| percent(part, whole))
}

fn together(vcpus: &[Vcpu], readings: Option<(&Reading, &Reading)>) -> Load {
    let add = |value: fn(&Load) -> Option<f64>| {
        let sum = vcpus.iter().filter_map(|vcpu| value(&vcpu.load)).reduce(|a, b| a + b);
        sum.map(|sum| round(sum, 10.0))
    };
    let poll = readings.and_then(|(before, after)| {
        let came = |name| Some(since(before.vcpus(name), after.vcpus(name)?));
        hits(came("halt_successful_poll"), came("halt_attempted_poll"))
    });
    Load {
        exits: add(|load| load.exits),
        io_exits: add(|load| load.io_exits),
        mmio_exits: add(|load| load.mmio_exits),
        halt_exits: add(|load| load.halt_exits),
        user_exits: add(|load| load.user_exits),
        run_percent: add(|load| load.run_percent),
        steal_percent: add(|load| load.steal_percent),
        halt_poll_percent: poll,
    }
}

fn devices(before: &Reading, after: &Reading) -> Vec<Device> {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    let device = |device: &strata_ipc::DeviceStatus| {
        let now = after.devices.get(&device.id).cloned().unwrap_or_default();
        let came = all_since(before.devices.get(&device.id), &now);
        let per_second = |names: &[&str]| sum(&came, names).map(|count| rate(count, seconds));
        let (done, time) = (requests(&came), sum(&came, &["latency_nanoseconds"]));
        let polls = sum(&came, &["poll_hits", "poll_misses"]);
        Device {
            id: device.id.clone(),
            kind: device.kind.clone(),
            state: device.state.as_str(),
            requests: done.map(|count| rate(count, seconds)),
            packets: packets(&came).map(|count| rate(count, seconds)),
            bytes: per_second(&["read_bytes", "written_bytes", "rx_bytes", "tx_bytes"]),
            latency_microseconds: done
                .zip(time)
                .filter(|(requests, _)| *requests > 0)
                .map(|(requests, time)| round(time as f64 / requests as f64 / 1000.0, 10.0)),
            poll_percent: hits(sum(&came, &["poll_hits"]), polls),
            kicks: per_second(&["kicks", "tx_kicks", "rx_kicks"]),
            counters: came.iter().map(|(name, count)| (name.clone(), rate(*count, seconds))).collect(),
        }
    };
    after.status.devices.iter().map(device).collect()
}
