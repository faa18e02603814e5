//! One queue of a function as its registers show it, and its eventfds while it runs.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use strata_virtio::device::{Device, QueueSetup, StartError};
use strata_virtio::memory::Memory;
use vmm_sys_util::eventfd::EventFd;

use super::msix::{Line, NO_VECTOR};
use super::wiring::Wiring;

/// A queue that the device serves.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) kick: EventFd,
    pub(super) call: Line,
    /// Where KVM turns the guest's writes into kicks.
    doorbell: Option<u64>,
}

/// The registers behind one value of `queue_select`.
#[derive(Debug)]
pub(super) struct QueueRegs {
    pub(super) max: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) running: Option<Running>,
}

impl QueueRegs {
    pub(super) fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            vector: NO_VECTOR,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
            running: None,
        }
    }

    /// Hands the queue to the device, from index `base` of its avail ring.
    pub(super) fn start(
        &mut self,
        index: u16,
        features: u64,
        device: &mut dyn Device,
        memory: &Arc<Memory>,
    ) -> Result<(), StartError> {
        let failed = |source| StartError::Resource { index, what: "an eventfd", source };
        let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed)?;
        let call = Line::new(self.vector).map_err(failed)?;
        device.start_queue(QueueSetup {
            index,
            size: self.size,
            desc: self.desc,
            avail: self.driver,
            used: self.device,
            features,
            base: 0,
            kick: Some(share(&kick).map_err(failed)?),
            call: Some(share(&call.event).map_err(failed)?),
            err: None,
            memory: Arc::clone(memory),
            inflight: None,
            inherited: false,
        })?;
        // A vhost-user backend starts a ring at its first kick, and buffers may be waiting already.
        let _ = kick.write(1);
        self.running = Some(Running { kick, call, doorbell: None });
        Ok(())
    }

    /// Takes the queue back from the device, which completes what it has taken.
    pub(super) fn stop(&mut self, index: u16, device: &mut dyn Device, wiring: &dyn Wiring) {
        let Some(mut running) = self.running.take() else { return };
        // First silence the doorbell, so that nothing rings a queue that is no more. The call line stays
        // until the device is done: its last answers are to be heard.
        running.place(None, wiring);
        device.stop_queue(index);
        running.call.cut(wiring);
    }

    /// Back to the state after a reset. The queue does not run.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max);
    }
}

impl Running {
    /// Moves the doorbell to `address`, or takes it away.
    pub(super) fn place(&mut self, address: Option<u64>, wiring: &dyn Wiring) {
        if self.doorbell == address {
            return;
        }
        if let Some(old) = self.doorbell.take() {
            wiring.unring(old, &self.kick);
        }
        if let Some(new) = address {
            match wiring.ring(new, &self.kick) {
                Ok(()) => self.doorbell = Some(new),
                // The guest's writes exit to us then, and kick all the same.
                Err(error) => tracing::debug!(address = new, %error, "a doorbell is answered by hand"),
            }
        }
    }
}

/// Another descriptor for the same eventfd.
#[allow(unsafe_code)] // the eventfd type has no safe way to borrow its descriptor
fn share(event: &EventFd) -> std::io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for as long as `event` is.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }.try_clone_to_owned()
}
