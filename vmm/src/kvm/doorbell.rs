//! Doorbells: a guest's write that KVM turns into an eventfd signal, with no exit to user space.
//!
//! Called by [`super::irq::MsiRoutes`] for the PCI functions. A doorbell matches a write of any width and any
//! value to its address (KVM_CAP_IOEVENTFD_ANY_LENGTH), which also lets KVM take its fast path without decoding
//! the guest's instruction where the processor tells it enough (KVM api.rst 4.59).

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::pci::wiring::WiringError;

/// Has a write to memory address `address` signal `event`.
///
/// # Errors
/// KVM refused: something else answers there, or descriptors ran out.
pub fn assign(vm: &VmFd, address: u64, event: &EventFd) -> Result<(), WiringError> {
    vm.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
        .map_err(|errno| WiringError::Refused { what: "a doorbell", source: errno.into() })
}

/// Takes the doorbell away again.
///
/// # Errors
/// There is none with this eventfd.
pub fn deassign(vm: &VmFd, address: u64, event: &EventFd) -> Result<(), WiringError> {
    vm.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
        .map_err(|errno| WiringError::Refused { what: "removing a doorbell", source: errno.into() })
}
