//! What the control socket answers: [`strata_ipc::Control`] over the machine's owner.
//!
//! Runs on a thread of its own with a tokio runtime; slow clients hurt only each other. Questions about state are
//! answered from [`Shared`] and the devices' handles; requests become events for the owner, whose answer is
//! waited for. Refuses what the owner refuses, and everything once the owner is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use strata_ipc::{
    Control, Counters, DeviceState, DeviceStatistics, DeviceStatus, NewDevice, Refused, Statistics, Status,
    Unplug, VcpuStatistics,
};

use crate::console::hub::Hub;
use crate::frontend::State;
use crate::kvm::stats::Stats;
use crate::machine::{Backend, Change, Command, Event, Member, Shared};

/// How long the owner may take: longer than it waits for a vCPU to leave a device.
const PATIENCE: Duration = Duration::from_secs(15);

/// What does not change while the machine lives.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The machine's name.
    pub name: String,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// What it is made of.
    pub backing: String,
}

/// The machine as the control socket sees it.
pub struct Remote {
    facts: Facts,
    shared: Arc<Shared>,
    // One request at a time; `Sender` is not to be shared between threads otherwise.
    owner: Mutex<Sender<Event>>,
    console: Option<Arc<Hub>>,
}

impl Remote {
    /// Of these parts.
    #[must_use]
    pub fn new(facts: Facts, shared: Arc<Shared>, owner: Sender<Event>, console: Option<Arc<Hub>>) -> Self {
        Self { facts, shared, owner: Mutex::new(owner), console }
    }

    fn ask(&self, command: Command) -> Result<(), Refused> {
        self.send(|reply| Event::Command(command, reply))
    }

    fn change(&self, change: Change) -> Result<(), Refused> {
        self.send(|reply| Event::Change(change, reply))
    }

    fn send(&self, event: impl FnOnce(SyncSender<Result<(), Refused>>) -> Event) -> Result<(), Refused> {
        let (reply, answer) = sync_channel(1);
        let gone = || Refused::new("the machine is ending");
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        owner.send(event(reply)).map_err(|_| gone())?;
        answer.recv_timeout(PATIENCE).map_err(|_| gone())?
    }
}

impl Control for Remote {
    fn status(&self) -> Status {
        // The console is the first on the bus.
        let internal = self.console.iter().map(|_| DeviceStatus {
            slot: Some(1),
            ..DeviceStatus::new("console", "console", DeviceState::Internal, 2)
        });
        let members = self.shared.devices.all();
        let backends = members.iter().map(seen);
        Status {
            name: self.facts.name.clone(),
            state: self.shared.state(),
            cpus: self.facts.cpus,
            memory_bytes: self.facts.memory,
            memory_backing: self.facts.backing.clone(),
            reboots: self.shared.reboots(),
            devices: internal.chain(backends).collect(),
        }
    }

    fn pause(&self) -> Result<(), Refused> {
        self.ask(Command::Pause)
    }

    fn resume(&self) -> Result<(), Refused> {
        self.ask(Command::Resume)
    }

    fn power_off(&self) -> Result<(), Refused> {
        self.ask(Command::PowerOff)
    }

    fn reboot(&self) -> Result<(), Refused> {
        self.ask(Command::Reboot)
    }

    fn quit(&self) -> Result<(), Refused> {
        self.ask(Command::Quit)
    }

    fn unplug(&self, device: &str, how: Unplug) -> Result<(), Refused> {
        self.change(Change::Unplug(device.to_owned(), how))
    }

    fn plug(&self, device: &NewDevice) -> Result<(), Refused> {
        self.change(Change::Plug(device.clone()))
    }

    fn console(&self) -> Result<OwnedFd, Refused> {
        let hub = self.console.as_ref().ok_or_else(|| Refused::new("this machine has no console"))?;
        hub.attach().map_err(|error| Refused::new(error.to_string()))
    }

    fn statistics(&self) -> Statistics {
        let meters = self.shared.meters();
        let mut vm = counters(meters.vm.as_ref());
        vm.insert("reboots".to_owned(), self.shared.reboots());
        let vcpus = (0..).zip(&meters.vcpus).map(|(index, (stats, exits))| {
            let mut counters = counters(stats.as_ref());
            let ours =
                [("user_ports", &exits.ports), ("user_mmio", &exits.mmio), ("user_signals", &exits.signals)];
            counters.extend(ours.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed))));
            VcpuStatistics { index, counters }
        });
        let vcpus = vcpus.collect();
        drop(meters);
        let lost = self.console.iter().map(|hub| ("console", vec![("bytes_lost", hub.lost())]));
        let members = self.shared.devices.all();
        let backends = members.iter().filter_map(Member::handle).map(|device| {
            let (outage, longest) = device.outages();
            let counters = vec![
                ("backend_losses", device.losses()),
                ("backend_outage_microseconds", outage),
                ("backend_longest_outage_microseconds", longest),
            ];
            (device.id(), counters)
        });
        let devices = lost.chain(backends).map(|(id, counters)| DeviceStatistics {
            id: id.to_owned(),
            counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        });
        Statistics { vm, vcpus, devices: devices.collect() }
    }
}

/// A device as its status shows it.
fn seen(member: &Member) -> DeviceStatus {
    let Member { id, slot, leaving, backend } = member;
    let status = match backend {
        Backend::Coming { kind, trouble, .. } => DeviceStatus {
            trouble: trouble.clone(),
            ..DeviceStatus::new(id, kind.name(), DeviceState::Waiting, 0)
        },
        Backend::There(device) => {
            let state = match device.state() {
                State::Connected => DeviceState::Connected,
                State::Lost => DeviceState::Lost,
            };
            let stall = device.stall();
            DeviceStatus {
                trouble: device.trouble(),
                stalled_milliseconds: stall
                    .map_or(0, |stall| u64::try_from(stall.time.as_millis()).unwrap_or(u64::MAX)),
                stalled_queue: stall.map(|stall| stall.queue.into()),
                ..DeviceStatus::new(id, device.kind(), state, device.queues().into())
            }
        }
    };
    DeviceStatus { slot: slot.map(u32::from), leaving: *leaving, ..status }
}

fn counters(stats: Option<&Stats>) -> Counters {
    let read = stats.and_then(|stats| stats.read().ok()).unwrap_or_default();
    read.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Serves `remote` to whoever connects to `listener`, on a thread of its own, until the process ends.
///
/// # Errors
/// No thread or no event loop is to be had.
pub fn serve(listener: UnixListener, remote: Remote) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let remote: Arc<dyn Control> = Arc::new(remote);
    let serve = move || {
        if let Err(error) = runtime.block_on(strata_ipc::serve(listener, remote)) {
            tracing::error!(%error, "the control socket is closed");
        }
    };
    thread::Builder::new().name("control".into()).spawn(serve).map(drop)
}

#[cfg(test)]
#[path = "control_test.rs"]
mod control_test;
