//! A machine's counters at one moment, from everywhere they are: the vmm, its backends' control sockets, its taps.
//!
//! Used by `strata top` and `strata exits`, which compare two of them. What does not answer is absent, never zero.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_ipc::{Client, Counters, Statistics, Status};

use crate::backend::{CallError, call, control_socket};
use crate::run_dir::Running;

/// How long a backend may take: it answers from atomics.
const PATIENCE: Duration = Duration::from_millis(500);

/// One machine at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) at: Instant,
    pub(crate) status: Status,
    pub(crate) statistics: Statistics,
    /// Counters by device: the vmm's own, its backend's, its tap's.
    pub(crate) devices: BTreeMap<String, Counters>,
}

impl Reading {
    /// Asks the machine, waiting at most `limit` for each answer.
    pub(crate) async fn take(running: &Running, limit: Duration) -> Result<Self, strata_ipc::ClientError> {
        let mut client = Client::connect(&running.control(), limit).await?;
        let status = client.status().await?;
        let at = Instant::now();
        let statistics = client.statistics().await?;
        let mut devices: BTreeMap<String, Counters> = BTreeMap::new();
        for device in &statistics.devices {
            devices.entry(device.id.clone()).or_default().extend(device.counters.clone());
        }
        for device in &status.devices {
            let Some(interface) = interface(&device.kind) else { continue };
            if let Ok(counters) = backend(&control_socket(&running.path, &device.id), interface) {
                devices.entry(device.id.clone()).or_default().extend(counters);
            }
        }
        for (id, tap) in taps(&running.path) {
            devices.entry(id).or_default().extend(packets_of(Path::new("/sys/class/net"), &tap));
        }
        Ok(Self { at, status, statistics, devices })
    }

    /// A counter over all vCPUs; `None` if none has it.
    pub(crate) fn vcpus(&self, name: &str) -> Option<u64> {
        let values = self.statistics.vcpus.iter().filter_map(|vcpu| vcpu.counters.get(name));
        values.copied().reduce(u64::wrapping_add)
    }
}

/// What a backend of this kind of device speaks.
pub(crate) fn interface(kind: &str) -> Option<&'static str> {
    match kind {
        "block" | "blk" => Some("io.strata.Disk"),
        "net" => Some("io.strata.Net"),
        _ => None,
    }
}

/// A backend's counters, all its queues together.
fn backend(socket: &Path, interface: &str) -> Result<Counters, CallError> {
    call(socket, &format!("{interface}.GetStatistics"), Value::Null, PATIENCE).map(|answer| summed(&answer))
}

/// The sums over all queues of every plain number.
pub(crate) fn summed(answer: &Value) -> Counters {
    let mut sums = Counters::new();
    let lists = ["/queues", "/pairs"];
    let queues = lists.iter().filter_map(|list| answer.pointer(list)?.as_array()).flatten();
    for queue in queues.filter_map(Value::as_object) {
        for (name, value) in queue.iter().filter(|(name, _)| !["queue", "pair"].contains(&name.as_str())) {
            if let Some(value) = value.as_u64() {
                let sum = sums.entry(name.clone()).or_default();
                *sum = sum.wrapping_add(value);
            }
        }
    }
    sums
}

/// NICs and their interfaces, as their launcher noted them.
fn taps(folder: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let tap = |path: PathBuf| {
        let id = path.file_name()?.to_str()?.strip_suffix(".interface")?.to_owned();
        Some((id, fs::read_to_string(&path).ok()?))
    };
    entries.filter_map(|entry| tap(entry.path())).collect()
}

/// A tap's frames as the guest sees them: what the host receives from it, the guest has sent.
pub(crate) fn packets_of(interfaces: &Path, tap: &str) -> Counters {
    let names = [
        ("rx_packets", "tx_packets"),
        ("rx_bytes", "tx_bytes"),
        ("tx_packets", "rx_packets"),
        ("tx_bytes", "rx_bytes"),
        ("tx_dropped", "rx_dropped"),
    ];
    let statistics = interfaces.join(tap).join("statistics");
    let read = |(host, guest): (&str, &str)| {
        let value = fs::read_to_string(statistics.join(host)).ok()?.trim().parse().ok()?;
        Some((guest.to_owned(), value))
    };
    names.into_iter().filter_map(read).collect()
}

/// How far a counter came. One that is smaller than before began again from zero: the guest rebooted or a backend
/// was started again.
pub(crate) fn since(before: Option<u64>, now: u64) -> u64 {
    now.checked_sub(before.unwrap_or(0)).unwrap_or(now)
}

/// How far each counter came.
pub(crate) fn all_since(before: Option<&Counters>, now: &Counters) -> Counters {
    let none = Counters::new();
    let before = before.unwrap_or(&none);
    now.iter().map(|(name, value)| (name.clone(), since(before.get(name).copied(), *value))).collect()
}

/// The sum of those of these counters that are there.
pub(crate) fn sum(counters: &Counters, names: &[&str]) -> Option<u64> {
    names.iter().filter_map(|name| counters.get(*name)).copied().reduce(u64::wrapping_add)
}

/// Requests a disk was done with, if it counts.
pub(crate) fn requests(counters: &Counters) -> Option<u64> {
    sum(counters, &["reads", "writes", "flushes", "discards", "write_zeroes"])
}

/// Frames of a NIC both ways, as its backend counts them, else as its tap does. One may be as large as the guest's
/// segmentation offload makes it.
pub(crate) fn packets(counters: &Counters) -> Option<u64> {
    sum(counters, &["rx_frames", "tx_frames"]).or_else(|| sum(counters, &["rx_packets", "tx_packets"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queues_are_summed_and_lists_left_out() {
        let answer = json!({"queues": [
            {"queue": 0, "reads": 2, "latency_buckets": [1, 2]},
            {"queue": 1, "reads": 3, "writes": 1, "latency_buckets": []},
        ]});
        assert_eq!(summed(&answer), Counters::from([("reads".to_owned(), 5), ("writes".to_owned(), 1)]));
        let pairs = json!({"pairs": [{"pair": 1, "tx_frames": 4, "rx_frames": 1}]});
        assert_eq!(packets(&summed(&pairs)), Some(5));
        assert_eq!(summed(&json!({})), Counters::new());
    }

    #[test]
    fn a_taps_frames_are_told_from_the_guests_side() {
        let interfaces = tempfile::tempdir().unwrap();
        let statistics = interfaces.path().join("tap0/statistics");
        fs::create_dir_all(&statistics).unwrap();
        fs::write(statistics.join("rx_packets"), "5\n").unwrap();
        fs::write(statistics.join("tx_packets"), "9\n").unwrap();
        let counters = packets_of(interfaces.path(), "tap0");
        assert_eq!(counters, Counters::from([("tx_packets".to_owned(), 5), ("rx_packets".to_owned(), 9)]));
        assert_eq!((packets(&counters), requests(&counters)), (Some(14), None));
    }

    #[test]
    fn counters_that_began_again_count_from_zero() {
        assert_eq!(since(Some(3), 10), 7);
        assert_eq!(since(None, 10), 10);
        assert_eq!(since(Some(30), 10), 10);
    }
}
