//! What goes over the wire, and what a machine must be able to answer.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// What a machine answers. The vmm implements it.
///
/// The calls come from the one thread that runs [`crate::serve`], one at a time: each returns at once or within
/// the few milliseconds a vCPU takes to leave the guest, and none may wait for the guest's consent.
pub trait Control: Send + Sync + 'static {
    /// What the machine is and how it does.
    fn status(&self) -> Status;
    /// Stops the vCPUs. Pausing a paused machine is fine.
    ///
    /// # Errors
    /// [`Refused`] while the machine boots or ends.
    fn pause(&self) -> Result<(), Refused>;
    /// Lets the vCPUs run. Resuming a running machine is fine.
    ///
    /// # Errors
    /// [`Refused`] while the machine boots or ends.
    fn resume(&self) -> Result<(), Refused>;
    /// Presses the ACPI power button; does not wait for the guest.
    ///
    /// # Errors
    /// [`Refused`] when there is no guest to press it for.
    fn power_off(&self) -> Result<(), Refused>;
    /// Resets the machine, as the guest itself could.
    ///
    /// # Errors
    /// [`Refused`] while the machine ends.
    fn reboot(&self) -> Result<(), Refused>;
    /// Ends the machine now; the reply goes out before the process ends if it can.
    ///
    /// # Errors
    /// [`Refused`], if ever.
    fn quit(&self) -> Result<(), Refused>;
    /// One end of a stream socket whose other end is attached to the console, beside whoever else is.
    ///
    /// # Errors
    /// [`Refused`] when the machine has no console or too many are attached.
    fn console(&self) -> Result<OwnedFd, Refused>;
    /// Takes a device away, step by step as `how` says. What becomes of a request is seen in the status: the device is
    /// `leaving`, then not there any more.
    ///
    /// # Errors
    /// [`Refused`] when there is no such device, it cannot go, or the guest cannot be asked now.
    fn unplug(&self, device: &str, how: Unplug) -> Result<(), Refused>;
    /// Takes a device into service whose backend listens in the machine's folder, and tells the guest. It is `waiting`
    /// until its backend has answered; if that cannot be used, it stays so, with `trouble`, until it is unplugged.
    ///
    /// # Errors
    /// [`Refused`] when its name is taken, no slot is free, or what is said of it makes no sense.
    fn plug(&self, device: &NewDevice) -> Result<(), Refused>;
    /// Counters since the start.
    fn statistics(&self) -> Statistics;
}

/// How a device is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unplug {
    /// The guest is asked to let go of it.
    Ask,
    /// The same, and its requests are answered with errors from now on.
    Fail,
    /// It is taken away without the guest's consent.
    Take,
    /// The guest may keep it after all.
    Keep,
}

/// A device to be taken into service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// Its id, by which its backend's socket is found in the machine's folder.
    pub device: String,
    /// `blk` or `net`.
    pub kind: String,
    /// Queues, or pairs of a NIC; null: what the backend has.
    #[serde(default)]
    pub queues: Option<u16>,
    /// A NIC's address.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Why a machine does not do what it was asked, for a person to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Refused {
    /// From what is in the way.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// What a machine is and how it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name.
    pub name: String,
    /// What it is doing.
    pub state: MachineState,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// What guest memory is made of, e.g. `tmpfs, huge pages` or `hugetlbfs, 2 MiB`.
    pub memory_backing: String,
    /// How often the guest rebooted.
    pub reboots: u64,
    /// The devices, in the machine file's order.
    pub devices: Vec<DeviceStatus>,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Not yet running a guest.
    Booting,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand.
    Paused,
    /// On the way out.
    Stopping,
}

impl MachineState {
    /// The state's word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}

/// A device as the vmm sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its id in the machine file.
    pub id: String,
    /// Its virtio type: `block`, `net`, `console`, ... or a number.
    pub kind: String,
    /// Whether its backend is there.
    pub state: DeviceState,
    /// Queues it offers to the guest.
    pub queues: u32,
    /// Why the backend that answers is not taken into service, for a person to read.
    #[serde(default)]
    pub trouble: Option<String>,
    /// For how long the ring that stands longest has held requests without one being answered; 0: none stands.
    #[serde(default)]
    pub stalled_milliseconds: u64,
    /// Which ring that is.
    #[serde(default)]
    pub stalled_queue: Option<u32>,
    /// Its slot on the PCI bus (00:SLOT.0 in the guest).
    #[serde(default)]
    pub slot: Option<u32>,
    /// The guest has been asked to let go of it.
    #[serde(default)]
    pub leaving: bool,
}

impl DeviceStatus {
    /// Of a device without anything to complain of.
    pub fn new(id: &str, kind: &str, state: DeviceState, queues: u32) -> Self {
        let (trouble, stalled_milliseconds, stalled_queue) = (None, 0, None);
        Self {
            id: id.to_owned(),
            kind: kind.to_owned(),
            state,
            queues,
            trouble,
            stalled_milliseconds,
            stalled_queue,
            slot: None,
            leaving: false,
        }
    }
}

/// Whether a device's backend is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// The backend serves.
    Connected,
    /// The backend went away; it is waited for and its requests with it.
    Lost,
    /// The backend has not answered yet.
    Waiting,
    /// The device needs no other process.
    Internal,
}

impl DeviceState {
    /// The state's word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Lost => "lost",
            Self::Waiting => "waiting",
            Self::Internal => "internal",
        }
    }
}

/// Counters by name, as KVM has them (`exits`, `io_exits`, `mmio_exits`, `halt_exits`, ...), and ours: `user_ports`,
/// `user_mmio` and `user_signals` of a vCPU, `reboots` of the machine. Names are stable.
pub type Counters = BTreeMap<String, u64>;

/// Counters since the machine's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Of the machine as a whole.
    pub vm: Counters,
    /// Of each vCPU.
    pub vcpus: Vec<VcpuStatistics>,
    /// Of each device.
    pub devices: Vec<DeviceStatistics>,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStatistics {
    /// Its number, from 0.
    pub index: u32,
    /// Its counters.
    pub counters: Counters,
}

/// Counters of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatistics {
    /// Its id in the machine file.
    pub id: String,
    /// Its counters.
    pub counters: Counters,
}
