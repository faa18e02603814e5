//! The guest's console: a virtio-console (virtio 1.2 section 5.3) with one port, in this process.
//!
//! The one device the vmm serves itself: it is needed before anything else works, and it moves few bytes. The
//! PCI transport calls it; its bytes meet people in the [`hub::Hub`], which the UART shares. No exit per byte:
//! a write of the guest is one kick at most, a batch is one call.

pub mod hub;
mod port;
mod reader;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::poller::PollLimit;
use strata_virtio::spec::RING_FEATURES;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Options, Worker};

use crate::pci::{Notifier, PciDevice};
use hub::Hub;
use port::{Receive, Transmit};

/// Device ID (virtio 1.2 section 5.3.1).
const CONSOLE: u16 = 3;
/// VIRTIO_CONSOLE_F_SIZE: the configuration holds the terminal's size.
const F_SIZE: u64 = 1;
const QUEUE_SIZE: u16 = 128;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// How long the transmit thread looks for more before it sleeps: a kernel prints a line as a run of short
/// writes, and waits for each.
const LOOK: Duration = Duration::from_micros(100);

/// Columns and rows.
#[derive(Debug, Clone, Default)]
pub struct Size {
    cells: Arc<Mutex<(u16, u16)>>,
    notifier: Notifier,
}

impl Size {
    /// Tells the guest that the terminal has changed its size.
    pub fn set(&self, columns: u16, rows: u16) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if *cells != (columns, rows) {
            *cells = (columns, rows);
            drop(cells);
            self.notifier.config_changed();
        }
    }
}

/// The device.
pub struct Console {
    identity: Identity,
    hub: Arc<Hub>,
    size: Size,
    receive: Option<Worker<Receive>>,
    transmit: Option<Worker<Transmit>>,
}

impl Console {
    /// A console on `hub`, ready for the bus, and what sets its size.
    #[must_use]
    pub fn device(id: String, hub: Arc<Hub>) -> (PciDevice, Size) {
        let notifier = Notifier::new();
        let size = Size { cells: Arc::default(), notifier: notifier.clone() };
        let identity = Identity {
            device_id: CONSOLE,
            features: RING_FEATURES | F_SIZE,
            queue_sizes: vec![QUEUE_SIZE; 2],
            // Columns and rows; what follows belongs to features that are not offered.
            config_size: 4,
        };
        let console = Self { identity, hub, size: size.clone(), receive: None, transmit: None };
        (PciDevice { id, notifier, device: Box::new(console), slot: None }, size)
    }
}

impl Device for Console {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        let (columns, rows) = *self.size.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let config = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
        out.fill(0);
        for (slot, byte) in out.iter_mut().zip(config.iter().skip(offset as usize)) {
            *slot = *byte;
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn set_features(&mut self, _features: u64) {}

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let index = setup.index;
        let failed = |source| StartError::Resource { index, what: "a console thread", source };
        let mut vring = Vring::new(setup)?;
        if index == RECEIVE {
            // Now, not when its thread runs: a driver fills the ring at once, and no kick is wanted for that.
            vring.queue_mut().suppress_first_kick();
        }
        let hub = Arc::clone(&self.hub);
        let options =
            |name: &str, look| Options { name: name.into(), poll: PollLimit(look), ..Options::default() };
        match index {
            RECEIVE => {
                let options = options("console-rx", Duration::ZERO);
                self.receive = Some(Worker::spawn(Receive::new(vring, hub), options).map_err(failed)?);
            }
            TRANSMIT => {
                let options = options("console-tx", LOOK);
                self.transmit = Some(Worker::spawn(Transmit::new(vring, hub), options).map_err(failed)?);
            }
            _ => return Err(failed(std::io::ErrorKind::InvalidInput.into())),
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        match index {
            RECEIVE => self.receive.take()?.stop().map(|service| service.vring().state()),
            TRANSMIT => self.transmit.take()?.stop().map(|service| service.vring().state()),
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.receive = None;
        self.transmit = None;
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod console_test;
