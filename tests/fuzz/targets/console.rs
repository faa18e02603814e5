//! The virtio console in front of rings and buffers that are all the guest's: its threads must stop when told to.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use strata_virtio::device::QueueSetup;
use strata_vmm::console::Console;
use strata_vmm::console::hub::{Hub, Terminal};
use strata_vmm::pci::PciDevice;

fuzz_target!(|data: &[u8]| {
    // Threads and pipes are dear: one hub serves all runs.
    static HUB: OnceLock<Arc<Hub>> = OnceLock::new();
    let hub = HUB.get_or_init(|| Arc::new(Hub::new(Terminal::default()).expect("a hub")));
    let Some(memory) = strata_fuzz::memory(data) else { return };
    let (PciDevice { mut device, .. }, size) = Console::device("console".into(), Arc::clone(hub));
    device.set_features(strata_fuzz::FEATURES);
    size.set(80, 25);
    // Both rings at the same place, or the second one behind the first.
    for index in 0..2_u16 {
        let at = u64::from(index) * if data.len().is_multiple_of(2) { 0 } else { 0x400 };
        let setup = QueueSetup {
            index,
            size: 16,
            desc: at,
            avail: at + 0x100,
            used: at + 0x200,
            features: strata_fuzz::FEATURES,
            base: 0,
            kick: None,
            call: None,
            err: None,
            memory: Arc::clone(&memory),
            inflight: None,
            inherited: false,
        };
        let _ = device.start_queue(setup);
    }
    let mut config = [0; 12];
    device.read_config(u32::from(data.first().copied().unwrap_or(0)), &mut config);
    device.write_config(4, &config);
    for index in 0..2 {
        let _ = device.stop_queue(index);
    }
    device.reset();
});
