//! A device and a bus for the tests of this module.

use std::sync::{Arc, Mutex};

use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_EVENT_IDX, F_VERSION_1};

use super::wiring::{Recorder, Wiring};
use super::{Notifier, Pci, PciDevice, PciWindows, Shadow};

/// What the device was asked to do, seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) features: Option<u64>,
    pub(crate) running: Vec<Option<QueueSetup>>,
    pub(crate) starts: u32,
    pub(crate) resets: u32,
    pub(crate) config: Vec<u8>,
    pub(crate) refuse_start: bool,
}

pub(crate) struct Mock {
    identity: Identity,
    seen: Arc<Mutex<Seen>>,
}

impl Mock {
    pub(crate) fn new(device_id: u16, queues: usize, config: usize) -> (Self, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen {
            running: (0..queues).map(|_| None).collect(),
            config: (0..config).map(|at| at as u8).collect(),
            ..Seen::default()
        }));
        let identity = Identity {
            device_id,
            features: F_VERSION_1 | F_EVENT_IDX | 0x5,
            queue_sizes: vec![256; queues],
            config_size: config as u32,
        };
        (Self { identity, seen: Arc::clone(&seen) }, seen)
    }
}

impl Device for Mock {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        super::bytes::extract(&self.seen.lock().unwrap().config, offset as usize, out);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        super::bytes::overlay(&mut self.seen.lock().unwrap().config, offset as usize, data);
    }

    fn set_features(&mut self, features: u64) {
        assert_eq!(features & !self.identity.features, 0, "features that are not the device's");
        self.seen.lock().unwrap().features = Some(features);
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let mut seen = self.seen.lock().unwrap();
        let index = setup.index;
        assert!(setup.size.is_power_of_two() && setup.size <= 256);
        assert!(seen.features.is_some(), "a queue before the features");
        if seen.refuse_start {
            let source = std::io::ErrorKind::Other.into();
            return Err(StartError::Resource { index, what: "luck", source });
        }
        let slot = &mut seen.running[usize::from(index)];
        assert!(slot.replace(setup).is_none(), "started twice");
        seen.starts += 1;
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let stopped = self.seen.lock().unwrap().running[usize::from(index)].take();
        stopped.map(|setup| QueueState { base: setup.base })
    }

    fn reset(&mut self) {
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.running.iter().all(Option::is_none), "reset with a running queue");
        seen.features = None;
        seen.resets += 1;
    }
}

pub(crate) const ECAM: u64 = 0xe000_0000;
pub(crate) const MMIO: u64 = 0xc000_0000;

pub(crate) fn windows() -> PciWindows {
    PciWindows { ecam_base: ECAM, mmio32: MMIO..MMIO + 0x10_0000 }
}

/// A bus with one mock of `queues` queues per entry, and what each saw.
pub(crate) struct Rig {
    pub(crate) pci: Pci,
    pub(crate) seen: Vec<Arc<Mutex<Seen>>>,
    pub(crate) notifiers: Vec<Notifier>,
}

impl Rig {
    pub(crate) fn new(wiring: Arc<dyn Wiring>, queues: &[usize]) -> Self {
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        let mut seen = Vec::new();
        let mut notifiers = Vec::new();
        let devices = queues
            .iter()
            .enumerate()
            .map(|(index, queues)| {
                let (mock, saw) = Mock::new(2, *queues, 60);
                let notifier = Notifier::new();
                seen.push(saw);
                notifiers.push(notifier.clone());
                PciDevice { id: format!("disk{index}"), notifier, device: Box::new(mock), slot: None }
            })
            .collect();
        let shadow = Arc::new(Shadow::anonymous().unwrap());
        let pci = Pci::new(wiring, &windows(), &memory, shadow, devices).unwrap();
        Self { pci, seen, notifiers }
    }

    pub(crate) fn recorded(queues: &[usize]) -> (Self, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Self::new(Arc::clone(&recorder) as Arc<dyn Wiring>, queues), recorder)
    }

    /// A read as the guest does it: of the shadow where the read-only slot is, an exit elsewhere.
    pub(crate) fn read(&self, address: u64, len: usize) -> u64 {
        let mut data = vec![0; len];
        if (ECAM..ECAM + 0x20_0000).contains(&address) {
            self.pci.shadow().read((address - ECAM) as usize, &mut data);
        } else {
            self.pci.mmio_read(address, &mut data);
        }
        super::bytes::le64(&data, 0)
    }

    pub(crate) fn write(&self, address: u64, value: u64, len: usize) {
        let data = &value.to_le_bytes()[..len];
        if (ECAM..ECAM + 0x10_0000).contains(&address) {
            self.pci.ecam_write(address - ECAM, data);
        } else {
            self.pci.mmio_write(address, data);
        }
    }

    pub(crate) fn config(device: u64, register: u64) -> u64 {
        ECAM + (device << 15) + register
    }

    /// Turns memory decoding on and gives back the two BARs.
    pub(crate) fn open(&self, device: u64) -> (u64, u64) {
        self.write(Self::config(device, 4), 6, 2);
        (self.read(Self::config(device, 0x10), 4), self.read(Self::config(device, 0x14), 4))
    }
}
