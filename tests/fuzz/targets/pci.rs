//! The PCI bus without KVM: any accesses of a guest to configuration space and BARs, in front of a console and of a
//! device with many queues. What the functions ask of the hypervisor must stay within the rules, and all of it must
//! be given back at the end.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::memory::Memory;
use strata_vmm::console::Console;
use strata_vmm::console::hub::{Hub, Terminal};
use strata_vmm::pci::wiring::{Recorder, Wiring};
use strata_vmm::pci::{Notifier, Pci, PciDevice, PciWindows, Shadow};

const ECAM: u64 = 0xe000_0000;
const BARS: u64 = 0xc000_0000;

/// Holds its caller to the order of a queue's life.
struct Strict {
    identity: Identity,
    running: Vec<bool>,
    settled: bool,
}

impl Device for Strict {
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn read_config(&mut self, _offset: u32, out: &mut [u8]) {
        out.fill(7);
    }
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        assert!(offset as usize + data.len() <= 60);
    }
    fn set_features(&mut self, features: u64) {
        assert_eq!(features & !self.identity.features, 0);
        self.settled = true;
    }
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        assert!(self.settled && setup.size.is_power_of_two() && setup.size <= 256);
        let running = &mut self.running[usize::from(setup.index)];
        assert!(!std::mem::replace(running, true));
        Ok(())
    }
    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        std::mem::take(&mut self.running[usize::from(index)]).then_some(QueueState { base: 0 })
    }
    fn reset(&mut self) {
        assert!(self.running.iter().all(|running| !running));
        self.settled = false;
    }
}

fn devices() -> Option<Vec<PciDevice>> {
    // Threads and pipes are dear: one hub serves all runs.
    static HUB: OnceLock<Arc<Hub>> = OnceLock::new();
    let hub = match HUB.get() {
        Some(hub) => hub,
        None => HUB.get_or_init(|| Arc::new(Hub::new(Terminal::default()).expect("a hub"))),
    };
    let (console, _) = Console::device("console".into(), Arc::clone(hub));
    let features = strata_fuzz::FEATURES;
    let identity = Identity { device_id: 2, features, queue_sizes: vec![256; 300], config_size: 60 };
    let strict = Strict { identity, running: vec![false; 300], settled: false };
    let disk =
        PciDevice { id: "disk0".into(), notifier: Notifier::new(), device: Box::new(strict), slot: None };
    Some(vec![console, disk])
}

fuzz_target!(|data: &[u8]| {
    static MEMORY: OnceLock<Option<Arc<Memory>>> = OnceLock::new();
    static SHADOW: OnceLock<Option<Arc<Shadow>>> = OnceLock::new();
    let (Some(Some(memory)), Some(Some(shadow)), Some(devices)) = (
        Some(MEMORY.get_or_init(|| strata_fuzz::memory(&[]))),
        Some(SHADOW.get_or_init(|| Shadow::anonymous().ok().map(Arc::new))),
        devices(),
    ) else {
        return;
    };
    let recorder = Arc::new(Recorder::default());
    let wiring = Arc::clone(&recorder) as Arc<dyn Wiring>;
    let windows = PciWindows { ecam_base: ECAM, mmio32: BARS..BARS + 0x10_0000 };
    let Ok(pci) = Pci::new(wiring, &windows, memory, Arc::clone(shadow), devices) else { return };
    // Memory decoding on, so that most accesses reach a register.
    for slot in [1_u64, 2] {
        pci.ecam_write(slot << 15 | 4, &[6, 0]);
        // Half the runs begin where a driver has settled its features (virtio 1.2 section 4.1.4.3: the status is at
        // 0x14, the driver's features at 0x08 and 0x0c), with messages on.
        if data.len().is_multiple_of(2) {
            let registers = ECAM + 0x10_0000 + (slot << 14);
            for (field, value) in [(0x14, 3), (0x08, 1), (0x0c, 1), (0x14, 0xb)] {
                pci.mmio_write(registers + field, &[value]);
            }
            pci.ecam_write(slot << 15 | 0x42, &[0, 0x80]);
        }
    }
    // Each access is 6 bytes: where (kind, device, 14 bits of offset), how wide, and what.
    for access in data.chunks_exact(6).take(256) {
        let [kind, high, low, width, value, more] = *access else { return };
        let slot = u64::from(kind >> 4 & 1) + 1;
        let offset = u64::from(u16::from_be_bytes([high, low])) & 0x3fff;
        let bytes = [value, more, value, more, 0, 0, value, more];
        let bytes = &bytes[..1 << (width & 3)];
        let home = slot << 14;
        match kind & 7 {
            0 => pci.ecam_write(slot << 15 | offset & 0xff, bytes),
            1..4 => pci.mmio_write(ECAM + 0x10_0000 + home + offset, bytes),
            4 => pci.mmio_write(BARS + home + offset, bytes),
            5 => pci.mmio_read(BARS + home + offset, &mut [0; 8][..bytes.len()]),
            6 => pci.mmio_read(ECAM + 0x10_0000 + home + offset, &mut [0; 8][..bytes.len()]),
            _ => pci.ecam_write(offset << 6, bytes),
        }
    }
    assert_eq!(pci.into_devices().len(), 2);
    let seen = recorder.seen();
    assert!(seen.breaches.is_empty(), "{:?}", seen.breaches);
    assert!(seen.gsis.is_empty() && seen.attached.is_empty() && seen.doorbells.is_empty());
});
