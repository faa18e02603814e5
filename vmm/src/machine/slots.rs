//! What the owner does with the slots of a board's bus: the bus and what the guest is told of it, together.
//!
//! Called by [`super::hotplug`], which decides. Refuses nothing itself.

use super::board::Board;
use crate::pci::{DEVICES_MAX, PciDevice, PciError};
use crate::x86::layout;

impl Board {
    /// Where the device of this name is on the bus.
    pub(super) fn slot_of(&self, id: &str) -> Option<u8> {
        self.pci.slot_of(id)
    }

    /// How many more devices there is room for.
    pub(super) fn free_slots(&self) -> usize {
        DEVICES_MAX.saturating_sub(self.pci.devices())
    }

    /// Puts a device on the bus; the guest is not told.
    pub(super) fn insert(&self, device: PciDevice) -> Result<u8, PciError> {
        self.pci.insert(device)
    }

    /// Tells the guest that a device has come into a slot.
    pub(super) fn tell(&self, slot: u8) {
        self.reasons.changed(slot);
        self.interrupts.raise(layout::GED_PIN);
    }

    /// Asks the guest to let go of the device in a slot.
    pub(super) fn ask_for(&self, slot: u8) {
        self.reasons.ask(slot);
        self.interrupts.raise(layout::GED_PIN);
    }

    /// Has the guest keep it after all.
    pub(super) fn withdraw(&self, slot: u8) {
        self.reasons.withdraw(slot);
    }

    /// Takes a device off the bus that the guest has let go of.
    pub(super) fn take(&self, slot: u8) -> Option<PciDevice> {
        self.pci.take(slot)
    }

    /// Takes a device off the bus that the guest may use, and has it look.
    pub(super) fn tear(&self, slot: u8) -> Option<PciDevice> {
        let device = self.pci.tear(slot);
        self.ask_for(slot);
        device
    }

    /// The guest knows what has been taken away.
    pub(super) fn exorcise(&self, slot: u8) {
        self.pci.exorcise(slot);
    }
}
