//! Configuration space of one virtio function: a type 0 header with the capabilities virtio asks for.
//!
//! Owned by [`super::function::Function`]. A register is bytes and a mask of the bits a guest may change, which
//! is also all that BAR sizing needs (a BAR's address bits below its size stay 0 whatever is written; PCI 3.0
//! section 6.2.5.1). Writes of any width at any offset are taken; what is read-only stays.
//!
//! Nothing is here that a guest would spend exits on: no ROM, no interrupt pin, no power management, no PCI
//! Express capability, a latency timer a kernel finds acceptable.

use super::layout::{
    BAR_SIZE, CONFIG_LEN, CONFIG_SIZE_MAX, DOORBELLS, ISR, PBA, REGISTERS, TABLE, common, notify,
};
use super::{bytes, layout};

const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const LATENCY: usize = 0x0d;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const MSIX: usize = 0x40;
const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Where the window capability's BAR number is.
const WINDOW: usize = 0x90;
/// The four data bytes of the window capability (`pci_cfg_data`).
pub(super) const WINDOW_DATA: usize = WINDOW + 16;

const CAP_MSIX: u8 = 0x11;
const CAP_VENDOR: u8 = 0x09;
// cfg_type (virtio 1.2 section 4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The registers and which of their bits a guest may change.
#[derive(Debug, Clone)]
pub(super) struct ConfigSpace {
    regs: [u8; CONFIG_LEN],
    mask: [u8; CONFIG_LEN],
}

/// Where the window capability points (virtio 1.2 section 4.1.4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl ConfigSpace {
    /// A function for a virtio device of type `device_id`, with `vectors` message vectors, `queues` queues and
    /// `config_size` bytes of device configuration.
    pub(super) fn new(device_id: u16, vectors: u16, queues: u16, config_size: u32) -> Self {
        let mut space = Self { regs: [0; CONFIG_LEN], mask: [0; CONFIG_LEN] };
        // Vendor and device ID of a modern device, revision 1 (virtio 1.2 section 4.1.2.1).
        space.put16(VENDOR, 0x1af4);
        space.put16(VENDOR + 2, 0x1040_u16.wrapping_add(device_id));
        space.put(REVISION, &[1]);
        let [base, sub, interface] = class(device_id);
        space.put(REVISION + 1, &[interface, sub, base]);
        space.put16(STATUS, STATUS_CAPABILITIES);
        let command =
            COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        // As firmware hands over a device it has used: a kernel then writes neither bit again. Memory stays off, or
        // sizing the BARs would switch it off and on.
        space.put16(COMMAND, COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
        space.allow(CACHE_LINE, &[0xff]);
        // Linux rewrites a latency below 16, at the cost of an exit.
        space.put(LATENCY, &[0x40]);
        space.allow(LATENCY, &[0xff]);
        space.put16(SUBSYSTEM, 0x1af4);
        space.put16(SUBSYSTEM + 2, 0x1100);
        space.allow(INTERRUPT_LINE, &[0xff]);
        for bar in [REGISTERS, DOORBELLS] {
            // 32-bit, not prefetchable: type bits 0.
            space.allow(BARS + 4 * usize::from(bar), &(!(BAR_SIZE - 1)).to_le_bytes());
        }
        space.put(CAPABILITIES, &[MSIX as u8]);

        // MSI-X (PCI 3.0 section 6.8.2).
        space.put(MSIX, &[CAP_MSIX, 0x50]);
        space.put16(MSIX_CONTROL, vectors.saturating_sub(1));
        space.allow(MSIX_CONTROL, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
        space.put32(MSIX + 4, TABLE | u32::from(REGISTERS));
        space.put32(MSIX + 8, PBA | u32::from(DOORBELLS));

        let config = config_size.min(CONFIG_SIZE_MAX);
        space.virtio(0x50, 0x60, 16, COMMON_CFG, REGISTERS, (0, common::LEN as u32));
        space.virtio(0x60, 0x70, 16, ISR_CFG, DOORBELLS, (ISR, 1));
        let after_notify = if config > 0 { 0xa4 } else { WINDOW as u8 };
        space.virtio(0x70, after_notify, 20, NOTIFY_CFG, DOORBELLS, (0, notify::span(queues)));
        space.put32(0x70 + 16, notify::STRIDE);
        if config > 0 {
            space.virtio(0xa4, WINDOW as u8, 16, DEVICE_CFG, REGISTERS, (layout::CONFIG, config));
        }
        space.virtio(WINDOW, 0, 20, PCI_CFG, 0, (0, 0));
        space.allow(WINDOW + 4, &[0xff]);
        space.allow(WINDOW + 8, &[0xff; 12]);
        space
    }

    /// One virtio capability (`struct virtio_pci_cap`).
    fn virtio(&mut self, at: usize, next: u8, len: u8, kind: u8, bar: u8, (offset, length): (u32, u32)) {
        self.put(at, &[CAP_VENDOR, next, len, kind, bar, 0, 0, 0]);
        self.put32(at + 8, offset);
        self.put32(at + 12, length);
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        bytes::overlay(&mut self.regs, at, data);
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        bytes::overlay(&mut self.mask, at, mask);
    }

    /// A guest's write.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for ((reg, mask), byte) in self.regs.iter_mut().zip(&self.mask).skip(offset).zip(data) {
            *reg = *reg & !mask | byte & mask;
        }
    }

    /// All registers.
    pub(super) fn regs(&self) -> &[u8; CONFIG_LEN] {
        &self.regs
    }

    /// Whether the function answers memory accesses.
    pub(super) fn decodes(&self) -> bool {
        bytes::le16(&self.regs, COMMAND) & COMMAND_MEMORY != 0
    }

    /// Where a BAR is.
    pub(super) fn bar(&self, bar: u8) -> u32 {
        bytes::le32(&self.regs, BARS + 4 * usize::from(bar))
    }

    /// Puts a BAR where we want it.
    pub(super) fn set_bar(&mut self, bar: u8, address: u32) {
        self.put32(BARS + 4 * usize::from(bar), address & !(BAR_SIZE - 1));
    }

    /// Whether MSI-X is on, and whether all vectors are masked.
    pub(super) fn msix(&self) -> (bool, bool) {
        let control = bytes::le16(&self.regs, MSIX_CONTROL);
        (control & MSIX_ENABLE != 0, control & MSIX_FUNCTION_MASK != 0)
    }

    /// Where the window points.
    pub(super) fn window(&self) -> Window {
        Window {
            bar: bytes::le8(&self.regs, WINDOW + 4),
            offset: bytes::le32(&self.regs, WINDOW + 8),
            length: bytes::le32(&self.regs, WINDOW + 12),
        }
    }

    /// What the window's data bytes read as.
    pub(super) fn set_window_data(&mut self, data: [u8; 4]) {
        self.put(WINDOW_DATA, &data);
    }

    /// What the window's data bytes were last written as.
    pub(super) fn window_data(&self) -> [u8; 4] {
        bytes::le32(&self.regs, WINDOW_DATA).to_le_bytes()
    }
}

/// Base class, sub-class, interface; drivers match on the device ID, people read this one.
fn class(device_id: u16) -> [u8; 3] {
    match device_id {
        1 => [0x02, 0x00, 0x00],
        2 | 8 | 26 => [0x01, 0x80, 0x00],
        3 => [0x07, 0x80, 0x00],
        16 => [0x03, 0x80, 0x00],
        18 => [0x09, 0x80, 0x00],
        19 => [0x02, 0x80, 0x00],
        25 => [0x04, 0x01, 0x00],
        _ => [0xff, 0x00, 0x00],
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod config_test;
