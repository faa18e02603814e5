//! Devices that come and go while the guest runs.
//!
//! Called by the machine's owner; vCPU threads may be in the functions meanwhile, each under its slot's lock. A device
//! that goes is invisible at once (configuration space reads as all ones, its BARs answer nowhere, doorbells and
//! interrupts are gone) and is reset afterwards, outside the lock: its backend may take time to finish what it holds.
//!
//! A device that is taken away by force leaves its registers behind, reading as zero. A driver that resets its device
//! waits until the status reads zero (virtio 1.2 section 4.1.4.3.2), and all ones would have it wait for ever, with all
//! hot-plugging of its kernel behind it. They go when the guest has let go of the slot, or when another device needs it;
//! a slot without such remains is preferred.
//!
//! Refuses a device for which there is no slot, and leaves everything as it was.

use super::function::Place;
use super::layout::BAR_SIZE;
use super::{DEVICES_MAX, ECAM_SIZE, Function, Occupant, Ordering, Pci, PciDevice, PciError, SLOT, Slot};
use std::sync::Arc;

impl Slot {
    /// Whether a device was taken away by force, and the guest may not know.
    fn is_haunted(&self) -> bool {
        self.lock().is_none() && self.bars.iter().any(|at| at.load(Ordering::Acquire) != super::NOWHERE)
    }
}

impl Pci {
    /// Puts a device on the bus, in the state after power-on, and gives its slot: the one it had, or the first free one.
    ///
    /// # Errors
    /// No slot is free, or the device cannot be put there.
    pub fn insert(&self, device: PciDevice) -> Result<u8, PciError> {
        let PciDevice { id, notifier, device, slot } = device;
        let free = |number: &u8| self.slot(*number).is_some_and(|slot| slot.lock().is_none());
        let all = || (1..=DEVICES_MAX as u8).filter(free);
        let clean = || all().find(|number| self.slot(*number).is_some_and(|slot| !slot.is_haunted()));
        let number = match slot {
            Some(slot) => Some(slot).filter(free),
            None => clean().or_else(|| all().next()),
        };
        let Some((number, slot)) = number.and_then(|number| Some((number, self.slot(number)?))) else {
            return Err(PciError::Full { id });
        };
        self.exorcise(number);
        let reach = {
            let (mmio, registers) = (&self.windows.mmio32, self.windows.registers());
            mmio.start.min(registers.start)..mmio.end.max(registers.end)
        };
        let outside = (Arc::clone(&self.wiring), Arc::clone(&self.shadow));
        let memory = Arc::clone(&self.memory);
        let function = Function::new(id, device, memory, (self.place(number), reach), outside)?;
        let voice = notifier.clone();
        *slot.lock() = Some(Occupant { function, notifier });
        // Now that there is somebody to hear it.
        voice.connect(self.events.clone(), usize::from(number) - 1);
        Ok(number)
    }

    /// Takes the device off a slot: the guest has let go of it, or no guest runs.
    pub fn take(&self, slot: u8) -> Option<PciDevice> {
        let here = self.slot(slot)?;
        let occupant = here.lock().take()?;
        here.hide();
        Some(retire(occupant, slot, 0xff))
    }

    /// Takes the device off a slot although the guest may use it.
    pub fn tear(&self, slot: u8) -> Option<PciDevice> {
        let here = self.slot(slot)?;
        let occupant = here.lock().take()?;
        Some(retire(occupant, slot, 0))
    }

    /// Removes what a device that was taken away by force has left in its slot.
    pub fn exorcise(&self, slot: u8) {
        if let Some(here) = self.slot(slot).filter(|here| here.is_haunted()) {
            here.hide();
            self.shadow.fill(self.place(slot).registers, BAR_SIZE as usize, 0xff);
        }
    }

    /// Where the device of this name is.
    #[must_use]
    pub fn slot_of(&self, id: &str) -> Option<u8> {
        let is_it = |number: &u8| {
            let slot = self.slot(*number);
            slot.is_some_and(|slot| slot.lock().as_ref().is_some_and(|it| it.function.id() == id))
        };
        (1..=DEVICES_MAX as u8).find(is_it)
    }

    /// How many devices there are.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.slots.iter().filter(|slot| slot.lock().is_some()).count()
    }

    fn slot(&self, number: u8) -> Option<&Slot> {
        self.slots.get(usize::from(number).checked_sub(1)?)
    }

    fn place(&self, number: u8) -> Place {
        let offset = u32::from(number) * BAR_SIZE;
        let (registers, doorbells) = (self.windows.registers().start, self.windows.mmio32.start);
        Place {
            config: usize::from(number) * SLOT,
            bars: [registers as u32 + offset, doorbells as u32 + offset],
            registers: ECAM_SIZE as usize + offset as usize,
        }
    }
}

/// Takes the device out of its function; its registers read as `left` then.
fn retire(occupant: Occupant, slot: u8, left: u8) -> PciDevice {
    let Occupant { function, notifier } = occupant;
    notifier.disconnect();
    let (id, device) = function.retire(left);
    PciDevice { id, notifier, device, slot: Some(slot) }
}
