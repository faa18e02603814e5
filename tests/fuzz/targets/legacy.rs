//! What a guest reaches beside PCI: the I/O APIC, the serial port, the event device's registers and the buses they are on,
//! by any access of any width. A guest gives back no more than it was asked for.
#![no_main]

use std::sync::{Arc, Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use strata_vmm::bus::Bus;
use strata_vmm::legacy::ged::{PORTS, Reasons};
use strata_vmm::legacy::ioapic::{Interrupts, Messages};
use strata_vmm::legacy::panic::Panic;
use strata_vmm::legacy::uart::Line;
use strata_vmm::machine::Event;
use strata_vmm::pci::Shadow;

struct Bounded;

impl Messages for Bounded {
    fn send(&self, address: u32, _data: u32) -> std::io::Result<()> {
        assert_eq!(address >> 20, 0xfee, "an interrupt that is a write to memory");
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    static SHADOW: OnceLock<Option<Arc<Shadow>>> = OnceLock::new();
    // Half the runs with the page that guests read instead of the registers.
    let shadow = SHADOW.get_or_init(|| Shadow::anonymous().ok().map(Arc::new)).clone();
    let page = shadow.filter(|_| data.len().is_multiple_of(2)).map(|shadow| (shadow, 0));
    let interrupts = Interrupts::new(Box::new(Bounded), 2, page);
    let (events, inbox) = std::sync::mpsc::channel();
    let (reasons, mut asked) = (Reasons::default(), 0);
    let output: Arc<Mutex<Vec<u8>>> = Arc::default();
    let line = Line::new(output.clone());
    line.reset(interrupts.clone());
    let mut bus = Bus::new();
    let parts = [
        bus.attach(0x1000, 0x1000, interrupts.device()),
        bus.attach(0x3f8, 8, line.device()),
        bus.attach(0x610, PORTS, reasons.device(events.clone())),
        bus.attach(0x505, 1, Box::new(Panic::new(events))),
    ];
    assert!(parts.iter().all(Result::is_ok));
    for access in data.chunks_exact(5) {
        let [kind, where_, width, value, more] = *access else { return };
        let bases = [0x1000_u64, 0x1010, 0x3f8, 0x505, 0x610];
        let base = bases[usize::from((kind & 3) + (width >> 7))] + u64::from(where_ & 31);
        let bytes = [value, more, value, more, 0, 0, value, more];
        let bytes = &bytes[..1 << (width & 3)];
        match kind >> 2 & 3 {
            0 | 1 => drop(bus.write(base, bytes)),
            2 => bus.read(base, &mut [0; 8][..bytes.len()]),
            // What a terminal types waits for the guest to read, so it is not for one thread to feed.
            _ => {
                line.reset(interrupts.clone());
                reasons.ask(where_);
                asked += 1;
            }
        }
        interrupts.raise(u32::from(kind >> 4));
    }
    let given = inbox.try_iter().filter(|event| matches!(event, Event::LetGo(_))).count();
    assert!(given <= asked, "{given} answers to {asked} requests");
});
