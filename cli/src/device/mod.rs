//! `strata device`: disks and NICs that come and go while their guest runs.
//!
//! The command asks the machine's launcher ([`crate::launcher`]); there a [`task`] takes one step after the other, with the
//! vmm and with the supervisor, which ends and starts the processes. Refuses what the machine file would refuse, devices
//! that somebody else serves (to be plugged in: the sandbox of a running vmm shows it no other socket than it had), and
//! machines without a launcher. Nothing here is written to the machine file.

mod command;
pub(crate) mod task;

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_config::{DiskEntry, NetEntry};

pub(crate) use command::{DeviceCommand, run};

/// What is asked of the launcher.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) what: What,
    pub(crate) answer: SyncSender<Result<Report, String>>,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A device is to go.
    Unplug {
        device: String,
        /// Also without the guest's consent.
        force: bool,
        /// How long the guest may take.
        timeout: Option<Duration>,
    },
    /// A disk is to come.
    Disk(Box<DiskEntry>),
    /// A NIC is to come.
    Net(Box<NetEntry>),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) device: String,
    /// Where it is, or was, on the guest's PCI bus; null: nowhere.
    pub(crate) slot: Option<u32>,
    /// It was taken away without the guest's consent.
    pub(crate) forced: bool,
}

impl Request {
    pub(crate) fn answer(self, answer: Result<Report, String>) {
        // Whoever asked may have gone.
        let _ = self.answer.send(answer);
    }
}
