//! pvpanic: a guest kernel that panics says so with one byte (QEMU docs/specs/pvpanic).

use std::sync::mpsc::Sender;

use crate::bus::BusDevice;
use crate::machine::Event;

const PANICKED: u8 = 1;
const CRASH_KERNEL_LOADED: u8 = 2;

/// The port's device. Reports the first of each kind; a guest that writes on is not heard.
pub struct Panic {
    events: Sender<Event>,
    reported: u8,
}

impl Panic {
    /// Tells `events`.
    #[must_use]
    pub fn new(events: Sender<Event>) -> Self {
        Self { events, reported: 0 }
    }
}

impl BusDevice for Panic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // What we understand.
        data.fill(PANICKED | CRASH_KERNEL_LOADED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let [value] = data else { return };
        let new = value & !self.reported & (PANICKED | CRASH_KERNEL_LOADED);
        self.reported |= new;
        if new & PANICKED != 0 {
            let _ = self.events.send(Event::Panicked { crash_kernel: false });
        } else if new & CRASH_KERNEL_LOADED != 0 {
            let _ = self.events.send(Event::Panicked { crash_kernel: true });
        }
    }
}

#[cfg(test)]
#[path = "panic_test.rs"]
mod panic_test;
