//! Snapshots of machines made up, as numbers, as text and as JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use strata_ipc::{DeviceState, DeviceStatus};

use super::sample::{Machine, Process, Sample};
use super::snapshot::compare;
use super::view::lines;
use crate::exits::window_test::reading;
use crate::meter::Reading;
use crate::threads::Memory;

fn machine(at: Instant, cpu: u64, times: (u32, u64, u64), reading: Option<Reading>) -> Machine {
    let hidden =
        Memory { private_bytes: None, own_bytes: None, guest_bytes: None, anonymous_bytes: Some(3 << 20) };
    let seen = Memory {
        own_bytes: Some(5 << 20),
        guest_bytes: Some(64 << 20),
        private_bytes: Some(4 << 20),
        ..hidden
    };
    Machine {
        name: "web".into(),
        pid: 10,
        at,
        times: BTreeMap::from([(0, times)]),
        processes: vec![
            Process { id: "strata".into(), pid: 10, cpu: Some(0), memory: seen },
            Process { id: "vmm".into(), pid: 11, cpu: Some(cpu), memory: hidden },
        ],
        reading,
    }
}

fn sample(at: Instant, stolen: (u64, u64), machines: Vec<Machine>) -> Sample {
    Sample { at, cpus: 2, stolen: Some(stolen), machines }
}

fn with_disk(mut reading: Reading) -> Option<Reading> {
    let disk = DeviceStatus::new("disk0", "block", DeviceState::Connected, 1);
    reading.status.devices.push(disk);
    Some(reading)
}

fn pair() -> (Sample, Sample) {
    let start = Instant::now();
    let end = start + Duration::from_secs(2);
    let polls = |hits, all| [("halt_successful_poll", hits), ("halt_attempted_poll", all)];
    let [a, b] = polls(0, 0);
    let then = reading(
        start,
        &[&[("exits", 100), ("user_mmio", 1), a, b]],
        &[("disk0", &[("reads", 10), ("latency_nanoseconds", 0), ("poll_hits", 0), ("poll_misses", 5)])],
    );
    let [a, b] = polls(3, 4);
    let now = reading(
        end,
        &[&[("exits", 1100), ("user_mmio", 5), a, b]],
        &[(
            "disk0",
            &[("reads", 110), ("latency_nanoseconds", 5_000_000), ("poll_hits", 5), ("poll_misses", 10)],
        )],
    );
    let half = 1_000_000_000;
    (
        sample(start, (0, 0), vec![machine(start, 0, (70, 0, 0), with_disk(then))]),
        sample(end, (400, 40), vec![machine(end, 500, (70, half, half / 10), with_disk(now))]),
    )
}

#[test]
fn rates_shares_and_means_are_right() {
    let (before, after) = pair();
    let snapshot = compare(&before, &after);
    assert_eq!(snapshot.host.steal_percent, Some(10.0));
    let machine = &snapshot.machines[0];
    let load = &machine.vcpus[0].load;
    assert_eq!((load.exits, load.user_exits, load.io_exits), (Some(500.0), Some(2.0), None));
    assert_eq!((load.run_percent, load.steal_percent), (Some(50.0), Some(5.0)));
    assert_eq!(load.halt_poll_percent, Some(75.0));
    assert_eq!(machine.vcpus_together.halt_poll_percent, Some(75.0));
    assert_eq!(machine.pages.large, Some(30));
    assert_eq!(machine.processes[1].cpu_percent, Some(25.0));
    let disk = &machine.devices[0];
    assert_eq!(
        (disk.requests, disk.latency_microseconds, disk.poll_percent),
        (Some(50.0), Some(50.0), Some(50.0))
    );
    assert_eq!((disk.packets, disk.kicks), (None, None));
}

#[test]
fn the_text_has_a_dash_for_what_cannot_be_measured() {
    let (before, after) = pair();
    let lines: Vec<String> = lines(&compare(&before, &after)).into_iter().map(|(line, _)| line).collect();
    let words = |start: &str| -> Vec<&str> {
        let line = lines
            .iter()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {lines:#?}"));
        line.split_whitespace().collect()
    };
    assert_eq!(lines[0], "1 machines, 2 CPUs, 10.0 % stolen below, over 2.0 s");
    assert_eq!(
        words("web      running"),
        ["web", "running", "500", "-", "-", "-", "2", "50.0", "5.0", "75.0", "30", "12"]
    );
    assert_eq!(
        words("web      disk0"),
        ["web", "disk0", "block", "connected", "50", "-", "-", "50.0", "50.0", "-"]
    );
    assert_eq!(words("web      vmm"), ["web", "vmm", "11", "25.0", "3.0", "-", "-"]);
}

#[test]
fn a_machine_that_does_not_answer_or_is_new_has_no_rates() {
    let (mut before, mut after) = pair();
    after.machines[0].reading = None;
    let snapshot = compare(&before, &after);
    assert_eq!(snapshot.machines[0].state, "unresponsive");
    assert!(snapshot.machines[0].vcpus_together.exits.is_none());
    let (_, after) = pair();
    before.machines[0].pid = 99;
    let snapshot = compare(&before, &after);
    assert!(snapshot.machines[0].vcpus.is_empty() && snapshot.machines[0].processes[1].cpu_percent.is_none());
    assert_eq!(snapshot.machines[0].processes.len(), 2);
}

#[test]
fn a_rebooted_guests_new_threads_have_no_share_yet() {
    let (before, mut after) = pair();
    after.machines[0].times.insert(0, (71, 5, 5));
    let load = &compare(&before, &after).machines[0].vcpus[0].load;
    assert_eq!((load.run_percent, load.steal_percent), (None, None));
    assert_eq!(load.exits, Some(500.0));
}

#[test]
fn the_json_has_its_keys() {
    let (before, after) = pair();
    let json = serde_json::to_value(compare(&before, &after)).unwrap();
    assert_eq!(json["machines"][0]["vcpus"][0]["exits"], 500.0);
    assert_eq!(json["machines"][0]["processes"][0]["own_bytes"], 5 << 20);
    assert_eq!(json["machines"][0]["devices"][0]["counters"]["reads"], 50.0);
    assert!(json["machines"][0]["processes"][1]["guest_bytes"].is_null());
}
