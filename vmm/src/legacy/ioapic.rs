//! The IOAPIC, in this process (KVM_CAP_SPLIT_IRQCHIP), with as many pins as the machine uses.
//!
//! KVM's own has 24, and a Linux guest reads and masks each several times at boot, each access a nested page fault
//! and an emulated instruction: measured, 490 exits of about 2,000. Ours has two, edge-triggered, for the power
//! button and the UART, and sends their interrupts as messages (KVM_SIGNAL_MSI).
//!
//! Its registers also stand in a page that the guest reads without an exit ([`Page`]); only writes come here.
//!
//! Called by the memory bus (the guest's accesses) and by whoever has a pin. Refuses nothing: reserved fields stay
//! zero, registers that are not there read as zero. Registers: Intel 82093AA data sheet, section 3. Level-triggered
//! entries are delivered as edges; the tables tell the guest that both pins are edges.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use strata_virtio::limit::Throttle;

use crate::bus::BusDevice;
use crate::pci::Shadow;

/// Bytes of registers.
pub const SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
/// Version 0x20: as the chip that has a register per interrupt and no more.
const VERSION_20: u32 = 0x20;

const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination; not the status bits.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

static UNDELIVERED: Throttle = Throttle::new(3, 60);

/// Sends a message interrupt.
pub trait Messages: Send {
    /// Sends it now.
    ///
    /// # Errors
    /// The hypervisor's answer.
    fn send(&self, address: u32, data: u32) -> std::io::Result<()>;
}

impl Messages for Arc<VmFd> {
    fn send(&self, address: u32, data: u32) -> std::io::Result<()> {
        let message = kvm_msi { address_lo: address, data, ..Default::default() };
        self.signal_msi(message).map(drop).map_err(Into::into)
    }
}

/// The page of a shadow where the registers stand.
pub type Page = (Arc<Shadow>, usize);

struct Pin {
    entry: u64,
    // An edge that came while the pin was masked: the button must not be lost because the kernel is not ready.
    pending: bool,
}

/// The chip, shared by the bus and whoever has a pin.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<IoApic>>);

impl Interrupts {
    /// A chip of `pins` pins, all masked, that stands in `page`.
    #[must_use]
    pub fn new(messages: Box<dyn Messages>, pins: u32, page: Option<Page>) -> Self {
        let pins = (0..pins).map(|_| Pin { entry: MASKED, pending: false }).collect();
        if let Some((shadow, at)) = &page {
            shadow.fill(*at, SIZE as usize, 0);
        }
        let chip = IoApic { messages, id: 0, select: 0, pins, page };
        chip.show();
        Self(Arc::new(Mutex::new(chip)))
    }

    /// An edge on `pin`.
    pub fn raise(&self, pin: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).raise(pin as usize);
    }

    /// The device to be put on the memory bus.
    #[must_use]
    pub fn device(&self) -> Box<dyn BusDevice> {
        Box::new(self.clone())
    }
}

struct IoApic {
    messages: Box<dyn Messages>,
    id: u32,
    select: u8,
    pins: Vec<Pin>,
    page: Option<Page>,
}

impl IoApic {
    fn raise(&mut self, index: usize) {
        let Some(pin) = self.pins.get_mut(index) else { return };
        pin.pending = pin.entry & MASKED != 0;
        if pin.pending {
            return;
        }
        let (address, data) = message(pin.entry);
        if let Err(error) = self.messages.send(address, data)
            && UNDELIVERED.allow()
        {
            tracing::warn!(pin = index, %error, "an interrupt could not be delivered");
        }
    }

    /// Both registers as they read now. No entry changes by itself: deliveries are not pending, and none is level-triggered.
    fn show(&self) {
        if let Some((shadow, at)) = &self.page {
            shadow.write(*at + SELECT as usize, &u32::from(self.select).to_le_bytes());
            shadow.write(*at + WINDOW as usize, &self.read_register().to_le_bytes());
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id << 24,
            VERSION => VERSION_20 | (self.pins.len() as u32).saturating_sub(1) << 16,
            index => self.half(index).map_or(0, |(pin, shift)| (pin.entry >> shift) as u32),
        }
    }

    /// The pin and the shift of a redirection entry's half that register `index` is.
    fn half(&self, index: u8) -> Option<(&Pin, u32)> {
        let at = index.checked_sub(FIRST_ENTRY)?;
        Some((self.pins.get(usize::from(at) / 2)?, u32::from(at % 2) * 32))
    }

    fn write_register(&mut self, value: u32) {
        if self.select == ID {
            self.id = value >> 24 & 0xf;
            return;
        }
        let Some(at) = self.select.checked_sub(FIRST_ENTRY) else { return };
        let (index, shift) = (usize::from(at) / 2, u32::from(at % 2) * 32);
        let Some(pin) = self.pins.get_mut(index) else { return };
        pin.entry = (pin.entry & !(0xffff_ffff << shift) | u64::from(value) << shift) & WRITABLE;
        if pin.pending && pin.entry & MASKED == 0 {
            self.raise(index);
        }
    }
}

/// A redirection entry as a message (Intel SDM volume 3, "message address register format" and "message data
/// register format"): always an asserted edge.
fn message(entry: u64) -> (u32, u32) {
    let destination = (entry >> 56) as u32;
    let logical = (entry >> 11) as u32 & 1;
    let (vector, mode) = (entry as u32 & 0xff, (entry >> 8) as u32 & 7);
    (0xfee0_0000 | destination << 12 | logical << 2, 1 << 14 | mode << 8 | vector)
}

impl BusDevice for Interrupts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = match offset {
            SELECT => u32::from(chip.select),
            WINDOW => chip.read_register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            SELECT => chip.select = value as u8,
            WINDOW => chip.write_register(value),
            _ => {}
        }
        chip.show();
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod ioapic_test;
