//! Where everything of a virtio function is: numbers that configuration space announces and the register
//! blocks answer by.
//!
//! ```text
//! BAR 0, "registers": read by the guest without an exit     BAR 1, "doorbells": every access counts
//!   0x0000 common configuration                                0x0000 notify, 4 bytes per queue
//!   0x1000 device configuration                                0x1000 ISR status (reading clears it)
//!   0x2000 MSI-X table, 256 entries                            0x2000 pending bits (computed on reading)
//! ```
//!
//! Doorbells have a page of their own that holds nothing else, outside the read-only slot, so that KVM may
//! take its fast path for them.

/// Bytes of a function's configuration space that exist.
pub(super) const CONFIG_LEN: usize = 256;
/// Bytes of each BAR.
pub(super) const BAR_SIZE: u32 = 0x4000;
/// The BAR of registers, in the shadow.
pub(super) const REGISTERS: u8 = 0;
/// The BAR of doorbells.
pub(super) const DOORBELLS: u8 = 1;

/// Device configuration, in [`REGISTERS`].
pub(super) const CONFIG: u32 = 0x1000;
/// The largest device configuration.
pub(super) const CONFIG_SIZE_MAX: u32 = 0x1000;
/// MSI-X table, in [`REGISTERS`].
pub(super) const TABLE: u32 = 0x2000;
/// The most vectors of a function.
pub(super) const VECTORS_MAX: u16 = 256;
/// Bytes of a vector's entry.
pub(super) const ENTRY: usize = 16;
/// ISR status, in [`DOORBELLS`].
pub(super) const ISR: u32 = 0x1000;
/// Pending bit array, in [`DOORBELLS`].
pub(super) const PBA: u32 = 0x2000;

/// Notification addresses.
pub(super) mod notify {
    /// Bytes between two queues' doorbells (`notify_off_multiplier`).
    pub(in super::super) const STRIDE: u32 = 4;

    /// Bytes of all doorbells of `queues` queues.
    pub(in super::super) const fn span(queues: u16) -> u32 {
        queues as u32 * STRIDE
    }
}

/// The most queues of a function: their doorbells share a page.
pub(super) const QUEUES_MAX: usize = 1024;

/// `struct virtio_pci_common_cfg` (virtio 1.2 section 4.1.4.3).
pub(super) mod common {
    pub(in super::super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(in super::super) const DEVICE_FEATURE: usize = 0x04;
    pub(in super::super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(in super::super) const DRIVER_FEATURE: usize = 0x0c;
    pub(in super::super) const CONFIG_VECTOR: usize = 0x10;
    pub(in super::super) const NUM_QUEUES: usize = 0x12;
    pub(in super::super) const STATUS: usize = 0x14;
    pub(in super::super) const GENERATION: usize = 0x15;
    pub(in super::super) const QUEUE_SELECT: usize = 0x16;
    pub(in super::super) const QUEUE_SIZE: usize = 0x18;
    pub(in super::super) const QUEUE_VECTOR: usize = 0x1a;
    pub(in super::super) const QUEUE_ENABLE: usize = 0x1c;
    pub(in super::super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(in super::super) const QUEUE_DESC: usize = 0x20;
    pub(in super::super) const QUEUE_DRIVER: usize = 0x28;
    pub(in super::super) const QUEUE_DEVICE: usize = 0x30;
    pub(in super::super) const QUEUE_RESET: usize = 0x3a;
    /// Bytes of the block, up to and with `queue_reset`.
    pub(in super::super) const LEN: usize = 0x3c;
}
