//! Windows over readings made up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use strata_ipc::{Counters, MachineState, Statistics, Status, VcpuStatistics};

use super::reason::Isa;
use super::trace::Counts;
use super::window::{compare, text};
use crate::meter::Reading;

/// A machine whose vCPUs have these counters, at so many seconds.
pub(crate) fn reading(at: Instant, vcpus: &[&[(&str, u64)]], devices: &[(&str, &[(&str, u64)])]) -> Reading {
    let counters = |list: &[(&str, u64)]| -> Counters {
        list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    };
    let statistics = Statistics {
        vm: counters(&[("pages_2m", 30), ("pages_4k", 12)]),
        vcpus: (0..)
            .zip(vcpus)
            .map(|(index, list)| VcpuStatistics { index, counters: counters(list) })
            .collect(),
        devices: vec![],
    };
    Reading {
        at,
        status: Status {
            name: "web".into(),
            state: MachineState::Running,
            cpus: 2,
            memory_bytes: 1 << 30,
            memory_backing: "private tmpfs, huge pages".into(),
            reboots: 0,
            devices: vec![],
        },
        statistics,
        devices: devices.iter().map(|(id, list)| ((*id).to_owned(), counters(list))).collect(),
    }
}

fn pair() -> (Reading, Reading) {
    let start = Instant::now();
    let before = reading(
        start,
        &[&[("exits", 100), ("io_exits", 7)], &[("exits", 10)]],
        &[("disk0", &[("reads", 5), ("flushes", 1)])],
    );
    let after = reading(
        start + Duration::from_secs(2),
        &[&[("exits", 300), ("io_exits", 7), ("halt_exits", 50)], &[("exits", 60)]],
        &[("disk0", &[("reads", 100), ("flushes", 6)]), ("net0", &[("tx_packets", 0), ("rx_packets", 0)])],
    );
    (before, after)
}

#[test]
fn exits_are_divided_by_time_and_by_what_was_done() {
    let (before, after) = pair();
    let window = compare(&before, &after, Err("root only".into()), &BTreeMap::new());
    assert_eq!((window.exits, window.exits_per_second), (Some(250), Some(125.0)));
    let io = window.io.as_ref().unwrap();
    assert_eq!((io.count, io.per_second, io.exits_each), (100, 50.0, Some(2.5)));
    assert_eq!(window.packets.as_ref().unwrap().exits_each, None);
    assert_eq!(window.kinds.len(), 1, "zero counts are left out: {:?}", window.kinds);
    assert_eq!(window.vcpus[1].counters["exits"], 50);
    let text = text(&window);
    assert!(text.starts_with("web over 2.0 s: 250 exits, 125.0 per second\n"), "{text}");
    for line in [
        "by reason: not available: root only\n",
        "halt: nothing to do  50     25.0        halt_exits\n",
        "by vCPU: vcpu0 200, vcpu1 50\n",
        "per I/O: 2.500 exits (100 requests, 50.0 per second)\n",
        "per packet: none was done (0 packets, 0.0 per second)\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn reasons_are_those_of_this_machines_threads() {
    let (before, after) = pair();
    let counts = Counts::from([
        ((Isa::Svm, 0x78, 501), 50),
        ((Isa::Svm, 0x400, 501), 100),
        ((Isa::Svm, 0x400, 502), 50),
        ((Isa::Svm, 0x400, 999), 7000),
    ]);
    let window = compare(&before, &after, Ok((counts, 2.0)), &BTreeMap::from([(501, 0), (502, 1)]));
    let reasons = window.reasons.as_ref().unwrap();
    let found: Vec<_> = reasons.iter().map(|reason| (reason.name.as_str(), reason.count)).collect();
    assert_eq!(found, [("NPF", 150), ("HLT", 50)]);
    assert_eq!(reasons[0].vcpus, BTreeMap::from([(0, 100), (1, 50)]));
    assert_eq!(reasons[1].per_second, 25.0);
    assert!(text(&window).contains("\nBY REASON, 2.0 S "));
    assert!(text(&window).contains("svm NPF 0x400\n"));
}

#[test]
fn what_is_not_counted_is_said_and_null() {
    let start = Instant::now();
    let before = reading(start, &[&[]], &[]);
    let after = reading(start + Duration::from_secs(1), &[&[]], &[]);
    let window = compare(&before, &after, Ok((Counts::new(), 1.0)), &BTreeMap::new());
    let json = serde_json::to_value(&window).unwrap();
    for key in ["exits", "exits_per_second", "io", "packets"] {
        assert!(json[key].is_null(), "{key}: {json}");
    }
    let text = text(&window);
    assert!(
        text.contains("does not count exits")
            && text.contains("per I/O: not available: no disk's backend counts")
    );
}

#[test]
fn a_reboot_within_the_window_is_told() {
    let (before, mut after) = pair();
    after.status.reboots = 1;
    after.statistics.vcpus.truncate(1);
    after.statistics.vcpus[0].counters.insert("exits".into(), 40);
    let window = compare(&before, &after, Err(String::new()), &BTreeMap::new());
    assert!(window.rebooted);
    assert_eq!(window.exits, Some(40));
}
