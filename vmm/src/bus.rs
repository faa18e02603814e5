//! Where a guest's port and memory accesses land when no memory answers them.
//!
//! The machine attaches each device once, while it is built; vCPU threads then look up and call under `&self`,
//! one lock per device. Refuses ranges that overlap or wrap. Addresses nobody owns read as all ones, and writes
//! to them vanish, as on a PC; neither is worth a log line, since a guest can do it a million times a second.

use std::sync::{Mutex, PoisonError};

/// A device on a bus. Offsets are within the range it was attached with; an access never leaves that range.
pub trait BusDevice: Send {
    /// Fills all of `data` (1, 2, 4 or 8 bytes).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1, 2, 4 or 8 bytes).
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range holds nothing or passes the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps")]
    Range {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// Another device is there.
    #[error("bus range {base:#x}+{len:#x} overlaps another device's")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
}

struct Slot {
    base: u64,
    len: u64,
    device: Mutex<Box<dyn BusDevice>>,
}

/// One address space: ports or memory.
#[derive(Default)]
pub struct Bus {
    // Sorted by base, disjoint.
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus with nobody on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base`, `len` bytes long.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another.
    pub fn attach(&mut self, base: u64, len: u64, device: Box<dyn BusDevice>) -> Result<(), BusError> {
        if len == 0 || base.checked_add(len).is_none() {
            return Err(BusError::Range { base, len });
        }
        if self.slots.iter().any(|slot| base < slot.base + slot.len && slot.base < base + len) {
            return Err(BusError::Overlap { base, len });
        }
        let at = self.slots.partition_point(|slot| slot.base < base);
        self.slots.insert(at, Slot { base, len, device: Mutex::new(device) });
        Ok(())
    }

    /// Reads at `address`; all ones where nobody is or where the access would leave its range.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((slot, offset)) => {
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`; lost where nobody is. Says whether somebody took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((slot, offset)) = self.find(address, data.len()) else { return false };
        slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        let after = self.slots.partition_point(|slot| slot.base <= address);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        let offset = address - slot.base;
        (offset < slot.len && len as u64 <= slot.len - offset).then_some((slot, offset))
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod bus_test;
