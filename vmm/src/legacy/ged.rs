//! Why the generic event device interrupts, and how a guest gives a PCI slot back (ACPI 6.4, 5.6.9 and 6.3.3): two
//! registers behind the event device's method and the `_EJ0` methods of the slots.
//!
//! ```text
//! offset  width  read                                      write
//!   0       4    bit 0: the power button was pressed;       ignored
//!                bit n: slot n is to be looked at
//!   4       4    bit n: slot n is to be let go of           bit n: slot n has been let go of
//! ```
//!
//! Reading clears, so each event is reported once. Only the guest's event method reads them, never its boot, so they cost
//! nothing unless there is something to tell. Shared by vCPU threads (the ports) and the machine's owner (what there is to
//! tell). Refuses slots that nobody asked the guest for: a guest has no say in what it has, and one request leads to one
//! event for the owner at most, however often the guest writes. Accesses of another width or place read as zero and do
//! nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;

use strata_virtio::limit::Throttle;

use crate::bus::BusDevice;
use crate::machine::Event;

/// Offset of what is to be looked at.
pub const CHECK: u16 = 0;
/// Offset of what is to be let go of, and has been.
pub const EJECT: u16 = 4;
/// Bytes of ports.
pub const PORTS: u64 = 8;
/// The power button's bit in [`CHECK`]: there is no slot 0.
pub const BUTTON: u32 = 1;

static UNASKED: Throttle = Throttle::new(3, 60);

#[derive(Debug, Default)]
struct Inner {
    check: AtomicU32,
    eject: AtomicU32,
    /// Slots whose devices the guest was asked for and has not given back.
    asked: AtomicU32,
}

/// What there is to tell a guest. Clones are the same; the interrupt is for whoever calls.
#[derive(Debug, Clone, Default)]
pub struct Reasons(Arc<Inner>);

impl Reasons {
    /// The power button is pressed.
    pub fn press(&self) {
        self.0.check.fetch_or(BUTTON, Ordering::AcqRel);
    }

    /// A device has come into a slot, or has gone from it without having been asked for.
    pub fn changed(&self, slot: u8) {
        self.withdraw(slot);
        self.0.check.fetch_or(bit(slot), Ordering::AcqRel);
    }

    /// The guest is to let go of the device in a slot.
    pub fn ask(&self, slot: u8) {
        // In this order: the guest may answer as soon as it can know.
        self.0.asked.fetch_or(bit(slot), Ordering::AcqRel);
        self.0.eject.fetch_or(bit(slot), Ordering::AcqRel);
    }

    /// It need not any more; an answer that comes late is none.
    pub fn withdraw(&self, slot: u8) {
        self.0.eject.fetch_and(!bit(slot), Ordering::AcqRel);
        self.0.asked.fetch_and(!bit(slot), Ordering::AcqRel);
    }

    /// The registers; what the guest lets go of is told to `events`.
    #[must_use]
    pub fn device(&self, events: Sender<Event>) -> Box<dyn BusDevice> {
        Box::new(Registers { reasons: self.clone(), events })
    }
}

/// Slots are 1 to 31; another number is no slot.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0) & !BUTTON
}

struct Registers {
    reasons: Reasons,
    events: Sender<Event>,
}

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inner = &self.reasons.0;
        let register = match u16::try_from(offset) {
            Ok(CHECK) => &inner.check,
            Ok(EJECT) => &inner.eject,
            _ => return,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = register.swap(0, Ordering::AcqRel).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(EJECT), Ok(bytes)) = (u16::try_from(offset), <[u8; 4]>::try_from(data)) else { return };
        let slots = u32::from_le_bytes(bytes);
        let given = slots & self.reasons.0.asked.fetch_and(!slots, Ordering::AcqRel);
        if given != 0 {
            // The machine outlives its vCPUs; if it does not, there is nobody left to tell.
            let _ = self.events.send(Event::LetGo(given));
        } else if UNASKED.allow() {
            tracing::warn!(slots, "the guest lets go of slots that it was not asked for; they stay");
        }
    }
}

#[cfg(test)]
#[path = "ged_test.rs"]
mod ged_test;
