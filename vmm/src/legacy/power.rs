//! Reset and power-off: three byte-wide ports named in the FADT (ACPI 6.4, 4.8.3.6 and 4.8.3.7).
//!
//! A guest that writes them ends this life of its machine: the vCPUs are stopped at once, so that nothing runs
//! past its own reset, and the machine is told.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::bus::BusDevice;
use crate::kvm::gate::Gate;
use crate::machine::Event;

/// Offset of the reset register.
pub const RESET: u16 = 0;
/// What resets when written there.
pub const RESET_VALUE: u8 = 1;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 1;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 2;
/// Bytes of ports.
pub const PORTS: u64 = 3;
/// The sleep type of `\_S5`.
pub const S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// The ports' device.
pub struct Power {
    gate: Arc<Gate>,
    events: Sender<Event>,
}

impl Power {
    /// Stops through `gate`, tells `events`.
    #[must_use]
    pub fn new(gate: Arc<Gate>, events: Sender<Event>) -> Self {
        Self { gate, events }
    }

    fn end(&self, event: Event) {
        self.gate.doom();
        // The machine outlives its vCPUs; if it does not, there is nobody left to tell.
        let _ = self.events.send(event);
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No wake event ever: the machine does not sleep, it ends.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), [value]) = (u16::try_from(offset), data) else { return };
        let sleeps = value & SLEEP_ENABLE != 0 && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == S5;
        match offset {
            RESET if *value == RESET_VALUE => self.end(Event::Reset),
            SLEEP_CONTROL if sleeps => self.end(Event::PowerOff),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "power_test.rs"]
mod power_test;
