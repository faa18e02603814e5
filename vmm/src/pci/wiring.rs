//! What a PCI function needs from the hypervisor: message interrupts and doorbells, as eventfds.
//!
//! Implemented by [`crate::kvm::irq::MsiRoutes`] for a real VM, and by [`Recorder`] for tests and fuzzers that
//! drive the bus without one. Called by PCI functions under their own lock, from vCPU threads, when a guest
//! reprograms vectors or moves a BAR; never per I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// What an MSI writes, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// Address, which names the target APIC.
    pub address: u64,
    /// Data, which names the vector.
    pub data: u32,
}

/// Why the hypervisor did not wire something.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// All interrupt numbers are taken.
    #[error("no interrupt number is left; {0} are in use")]
    Exhausted(usize),
    /// The hypervisor refused.
    #[error("{what} was refused")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Interrupts and doorbells of a VM.
pub trait Wiring: Send + Sync {
    /// Takes a free interrupt number (GSI). It has no route yet.
    ///
    /// # Errors
    /// None is left.
    fn allocate(&self) -> Result<u32, WiringError>;

    /// Gives a number back; no eventfd is attached to it any more. Its route goes with the next change.
    fn release(&self, gsi: u32);

    /// Sets what each number sends, in one step.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    fn route(&self, routes: &[(u32, Message)]) -> Result<(), WiringError>;

    /// From now on, signalling `event` sends the message of `gsi`. If it is already signalled, the message is
    /// sent at once: what came while a vector was masked is not lost.
    ///
    /// # Errors
    /// Refused.
    fn attach(&self, gsi: u32, event: &EventFd) -> Result<(), WiringError>;

    /// The opposite of [`Wiring::attach`]. Afterwards signals stay in the eventfd.
    fn detach(&self, gsi: u32, event: &EventFd);

    /// From now on a guest's write of any width to exactly `address` signals `event` without an exit to us.
    ///
    /// # Errors
    /// Refused.
    fn ring(&self, address: u64, event: &EventFd) -> Result<(), WiringError>;

    /// The opposite of [`Wiring::ring`].
    fn unring(&self, address: u64, event: &EventFd);
}

/// A [`Wiring`] that only remembers, and holds its caller to the rules: what it is asked to undo must have been
/// done. Breaches are kept as text.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Recorded>);

/// What a [`Recorder`] has seen.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Numbers in use.
    pub gsis: BTreeSet<u32>,
    /// What each sends.
    pub routes: BTreeMap<u32, Message>,
    /// Descriptor to number.
    pub attached: BTreeMap<i32, u32>,
    /// Address to descriptor.
    pub doorbells: BTreeMap<u64, i32>,
    /// Rules broken by the caller.
    pub breaches: Vec<String>,
}

impl Recorder {
    /// What has been seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(what: &'static str) -> WiringError {
    WiringError::Refused { what, source: std::io::ErrorKind::AlreadyExists.into() }
}

impl Wiring for Recorder {
    fn allocate(&self) -> Result<u32, WiringError> {
        let mut seen = self.seen();
        let gsi = (24..).find(|gsi| !seen.gsis.contains(gsi)).ok_or(WiringError::Exhausted(0))?;
        seen.gsis.insert(gsi);
        Ok(gsi)
    }

    fn release(&self, gsi: u32) {
        let mut seen = self.seen();
        if !seen.gsis.remove(&gsi) || seen.attached.values().any(|used| *used == gsi) {
            seen.breaches.push(format!("released {gsi}, which was free or attached"));
        }
        seen.routes.remove(&gsi);
    }

    fn route(&self, routes: &[(u32, Message)]) -> Result<(), WiringError> {
        let mut seen = self.seen();
        // As KVM does with 32-bit APIC IDs (x2APIC): the low byte of the upper address half must be zero.
        if routes.iter().any(|(_, message)| message.address >> 32 & 0xff != 0) {
            return Err(refused("a message address"));
        }
        for (gsi, message) in routes {
            if !seen.gsis.contains(gsi) {
                seen.breaches.push(format!("routed {gsi}, which was free"));
            }
            seen.routes.insert(*gsi, *message);
        }
        Ok(())
    }

    fn attach(&self, gsi: u32, event: &EventFd) -> Result<(), WiringError> {
        let mut seen = self.seen();
        if !seen.routes.contains_key(&gsi) {
            seen.breaches.push(format!("attached to {gsi}, which has no route"));
        }
        if seen.attached.insert(event.as_raw_fd(), gsi).is_some() {
            seen.breaches.push(format!("attached {} twice", event.as_raw_fd()));
            return Err(refused("an eventfd"));
        }
        Ok(())
    }

    fn detach(&self, gsi: u32, event: &EventFd) {
        let mut seen = self.seen();
        if seen.attached.remove(&event.as_raw_fd()) != Some(gsi) {
            seen.breaches.push(format!("detached {} from {gsi}, where it was not", event.as_raw_fd()));
        }
    }

    fn ring(&self, address: u64, event: &EventFd) -> Result<(), WiringError> {
        let mut seen = self.seen();
        if seen.doorbells.contains_key(&address) {
            // A guest can put two BARs at one place; KVM says EEXIST then.
            return Err(refused("a doorbell"));
        }
        seen.doorbells.insert(address, event.as_raw_fd());
        Ok(())
    }

    fn unring(&self, address: u64, event: &EventFd) {
        let mut seen = self.seen();
        if seen.doorbells.remove(&address) != Some(event.as_raw_fd()) {
            seen.breaches.push(format!("removed a doorbell at {address:#x} that was not there"));
        }
    }
}
