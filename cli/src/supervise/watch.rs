//! Looks at all backends at intervals, and says which hang (`pulse.rs` judges).
//!
//! A task beside the supervisor. It asks the vmm whom somebody waits for, each backend's control socket for the
//! queue's counters, and the kernel for the threads; it changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use strata_ipc::{Client, DeviceState, DeviceStatus, Status};

use super::pulse::{LOOKS, Look, Pulse, Sign, sign};
use super::vitals;
use super::{Event, Supervisor};
use crate::backend;
use crate::meter;
use crate::run_dir;

/// The longest time between two looks, and what anyone may take to answer in one.
const INTERVAL: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(1);

/// The processes to watch: device and pid.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Arc<Mutex<BTreeMap<String, u32>>>);

impl Roster {
    pub(super) fn set(&self, id: &str, pid: Option<u32>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => drop(all.insert(id.to_owned(), pid)),
            None => drop(all.remove(id)),
        }
    }

    fn all(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One process under watch.
struct Patient {
    pid: u32,
    last: Look,
    at: Instant,
    pulse: Pulse,
    /// For how long the vmm has waited for its connection.
    missed: Duration,
}

impl Supervisor<'_> {
    /// Watches for backends that hang, from the first one on.
    pub(super) fn watch(&mut self) {
        let Some(limit) = self.machine.backend.hung_after else { return };
        if !self.watching && !self.backends.is_empty() {
            self.watching = true;
            let sender = self.sender.clone();
            let hung = move |id, pid, sign| drop(sender.send(Event::Hung(id, pid, sign)));
            tokio::spawn(run(self.run_dir.path().to_owned(), self.roster.clone(), limit, hung));
        }
    }
}

/// Watches for ever; `hung` is told of each process that hangs, once.
pub(super) async fn run(folder: PathBuf, roster: Roster, limit: Duration, hung: impl Fn(String, u32, Sign)) {
    let interval = INTERVAL.min(limit / LOOKS);
    let patience = ANSWER.min(interval / 2);
    let mut patients: BTreeMap<String, Patient> = BTreeMap::new();
    let mut clock = tokio::time::interval(interval);
    // What has taken long is not made up for: looks close to each other say nothing.
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let status = async { Client::connect(&run_dir::control(&folder), patience).await?.status().await };
        let status = status.await.ok();
        let all = roster.all();
        patients.retain(|id, patient| all.get(id) == Some(&patient.pid));
        for (id, pid) in all {
            let device =
                status.as_ref().and_then(|status: &Status| status.devices.iter().find(|it| it.id == id));
            let missed = patients.get(&id).map_or(Duration::ZERO, |patient| patient.missed + interval);
            let (waited, missed) = match device {
                Some(device) => waited(device, missed),
                None => (Duration::ZERO, Duration::ZERO),
            };
            let answer = match device {
                Some(device) => counters(&folder, device, patience).await,
                None => None,
            };
            let (look, at) = (Look { threads: vitals::of(pid), answer, waited }, Instant::now());
            let Some(patient) = patients.get_mut(&id) else {
                patients.insert(id, Patient { pid, last: look, at, pulse: Pulse::default(), missed });
                continue;
            };
            let sign = sign(&patient.last, &look, interval.max(at - patient.at));
            if patient.pulse.take(sign, interval, limit) {
                hung(id, pid, sign);
                patient.pulse = Pulse::default();
            }
            (patient.last, patient.at, patient.missed) = (look, at, missed);
        }
    }
}

/// For how long somebody has waited for this device: its ring, or the vmm for a connection that was `missed` so long.
fn waited(device: &DeviceStatus, missed: Duration) -> (Duration, Duration) {
    match device.state {
        DeviceState::Connected => (Duration::from_millis(device.stalled_milliseconds), Duration::ZERO),
        // One that is refused has done what it could.
        DeviceState::Lost | DeviceState::Waiting if device.trouble.is_none() => (missed, missed),
        _ => (Duration::ZERO, Duration::ZERO),
    }
}

/// The sum of the counters of the queue that stands, or of all: it changes whenever the queue's thread turns.
async fn counters(folder: &Path, device: &DeviceStatus, patience: Duration) -> Option<u64> {
    let method = format!("{}.GetStatistics", meter::interface(&device.kind)?);
    let socket = backend::control_socket(folder, &device.id);
    let queue = device.stalled_queue;
    // On a thread of the runtime's: a backend that hangs takes all the patience there is.
    let asked = tokio::task::spawn_blocking(move || backend::call(&socket, &method, Value::Null, patience));
    match asked.await {
        // An error is an answer, too: somebody there is awake, but nothing is known of the queue.
        Ok(Ok(answer)) => Some(turns(&answer, queue)),
        _ => None,
    }
}

fn turns(answer: &Value, queue: Option<u32>) -> u64 {
    let of = |list: &str, name: &str, wanted: Option<u64>| -> u64 {
        let all = answer.get(list).and_then(Value::as_array).into_iter().flatten();
        let all =
            all.filter(|it| wanted.is_none_or(|wanted| it.get(name).and_then(Value::as_u64) == Some(wanted)));
        let counts = all.filter_map(Value::as_object).flat_map(|it| it.values().filter_map(Value::as_u64));
        counts.fold(0, u64::wrapping_add)
    };
    let queue = queue.map(u64::from);
    // A card's pair serves two rings; its control queue, an even ring, is counted by nobody.
    let pair = queue.filter(|queue| queue % 2 == 1).map(|queue| queue / 2);
    of("queues", "queue", queue).wrapping_add(of("pairs", "pair", pair))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_queue_that_stands_is_the_one_that_counts() {
        let disk =
            json!({"queues": [{"queue": 0, "sleeps": 5}, {"queue": 1, "sleeps": 7, "latency_buckets": [9]}]});
        assert_eq!(turns(&disk, Some(1)), 8);
        assert_eq!(turns(&disk, None), 13);
        let card = json!({"pairs": [{"pair": 0, "sleeps": 5}, {"pair": 1, "sleeps": 7}]});
        assert_eq!(turns(&card, Some(3)), 8);
        assert_eq!(turns(&card, Some(4)), 13);
        assert_eq!(turns(&json!({}), Some(0)), 0);
    }

    #[test]
    fn whom_somebody_waits_for() {
        let mut device = DeviceStatus::new("disk0", "blk", DeviceState::Connected, 1);
        let seconds = Duration::from_secs;
        assert_eq!(waited(&device, seconds(9)), (seconds(0), seconds(0)));
        device.stalled_milliseconds = 3000;
        assert_eq!(waited(&device, seconds(9)), (seconds(3), seconds(0)));
        device.state = DeviceState::Lost;
        assert_eq!(waited(&device, seconds(9)), (seconds(9), seconds(9)));
        device.trouble = Some("smaller".into());
        assert_eq!(waited(&device, seconds(9)), (seconds(0), seconds(0)));
    }
}
