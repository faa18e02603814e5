//! What others may see of the machine at any time: the control socket's view. Written by the owner, read under short
//! locks; nothing here is needed to run a guest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strata_config::Ready;
use strata_ipc::MachineState;
use strata_sandbox::Notify;

use super::Said;
use super::roster::Roster;
use crate::kvm::run::Exits;
use crate::kvm::stats::Stats;

/// The counters of one life of the board.
#[derive(Debug, Default)]
pub struct Meters {
    /// KVM's of the VM.
    pub vm: Option<Stats>,
    /// KVM's and ours of each vCPU.
    pub vcpus: Vec<(Option<Stats>, Arc<Exits>)>,
}

/// One per machine.
#[derive(Debug)]
pub struct Shared {
    notify: Notify,
    ready: Ready,
    told_ready: AtomicBool,
    state: Mutex<MachineState>,
    meters: Mutex<Meters>,
    reboots: AtomicU64,
    /// What other processes serve.
    pub devices: Roster,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Notify::default(), Ready::default())
    }
}

impl Shared {
    /// `notify`: the service manager, told of every state; `ready`: what it takes as readiness.
    pub(super) fn new(notify: Notify, ready: Ready) -> Self {
        Self {
            notify,
            ready,
            told_ready: AtomicBool::new(false),
            state: Mutex::new(MachineState::Booting),
            meters: Mutex::default(),
            reboots: AtomicU64::new(0),
            devices: Roster::default(),
        }
    }
}

impl Shared {
    /// What the machine is doing.
    #[must_use]
    pub fn state(&self) -> MachineState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_state(&self, state: MachineState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        let status = format!("the guest is {}", state.as_str());
        if state == MachineState::Running && self.ready == Ready::Vmm {
            self.tell_ready(&status);
        } else {
            self.notify.status(&status);
        }
    }

    /// The guest has said something of itself.
    pub(super) fn hear(&self, said: &Said) {
        match said {
            Said::Ready => self.tell_ready("the guest is up"),
            Said::Status(status) => self.notify.status(&format!("the guest: {status}")),
        }
    }

    /// Ready once: a guest that reboots does not start the service again.
    fn tell_ready(&self, status: &str) {
        if self.told_ready.swap(true, Ordering::Relaxed) {
            self.notify.status(status);
        } else {
            self.notify.ready(status);
        }
    }

    /// How often the service manager has to be told that the owner is alive, if it watches.
    pub(super) fn watched(&self) -> Option<Duration> {
        self.notify.watched()
    }

    /// The owner is alive.
    pub(super) fn tell_alive(&self) {
        self.notify.alive();
    }

    /// The machine ends, for good.
    pub(super) fn say_goodbye(&self, why: &str) {
        self.notify.stopping(why);
    }

    /// How often the guest rebooted.
    #[must_use]
    pub fn reboots(&self) -> u64 {
        self.reboots.load(Ordering::Relaxed)
    }

    pub(super) fn count_reboot(&self) {
        self.reboots.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of the current life.
    pub fn meters(&self) -> MutexGuard<'_, Meters> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
