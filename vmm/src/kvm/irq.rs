//! Message interrupts of a VM: interrupt numbers, their routes, and the eventfds that fire them.
//!
//! One per VM, shared by all PCI functions as their [`Wiring`]. Owns every interrupt number from
//! [`FIRST_GSI`] up and the whole routing table (KVM_SET_GSI_ROUTING replaces it all at once), so nobody else
//! may set routes. Refuses more numbers than KVM has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use strata_virtio::limit::Throttle;
use vmm_sys_util::eventfd::EventFd;

use super::doorbell;
use crate::pci::wiring::{Message, Wiring, WiringError};

/// The first number for messages; those below are IOAPIC pins.
pub const FIRST_GSI: u32 = 24;
/// KVM_MAX_IRQ_ROUTES: the routing table's length, and one past the highest number.
const MAX_GSI: u32 = 4096;

static UNDONE: Throttle = Throttle::new(5, 60);

/// Who has the IOAPIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// KVM has all of it (KVM_CREATE_IRQCHIP): pins 0..24 keep their routes.
    Kernel,
    /// KVM has the local APICs only (KVM_CAP_SPLIT_IRQCHIP): messages are all there is.
    Split,
}

/// Routes and eventfds of one VM.
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    irqchip: Irqchip,
    table: Mutex<BTreeMap<u32, Option<Message>>>,
}

impl MsiRoutes {
    /// No messages yet. KVM's table is set with the first route.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, irqchip: Irqchip) -> Self {
        Self { vm, irqchip, table: Mutex::new(BTreeMap::new()) }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Message>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, table: &BTreeMap<u32, Option<Message>>) -> Result<(), WiringError> {
        let refused = |source| WiringError::Refused { what: "an interrupt route", source };
        let pins = if self.irqchip == Irqchip::Kernel { 0..FIRST_GSI } else { 0..0 };
        let messages = table.iter().filter_map(|(gsi, message)| message.map(|message| (*gsi, message)));
        let entries: Vec<_> = pins.map(pin).chain(messages.map(|(gsi, m)| msi(gsi, m))).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| refused(std::io::ErrorKind::OutOfMemory.into()))?;
        self.vm.set_gsi_routing(&routing).map_err(|errno| refused(errno.into()))
    }
}

fn pin(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
    entry
}

fn msi(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

impl Wiring for MsiRoutes {
    fn allocate(&self) -> Result<u32, WiringError> {
        let mut table = self.table();
        let gsi = (FIRST_GSI..MAX_GSI)
            .find(|gsi| !table.contains_key(gsi))
            .ok_or(WiringError::Exhausted(table.len()))?;
        table.insert(gsi, None);
        Ok(gsi)
    }

    fn release(&self, gsi: u32) {
        // The stale route stays in KVM until the next change: nothing is attached to it.
        self.table().remove(&gsi);
    }

    fn route(&self, routes: &[(u32, Message)]) -> Result<(), WiringError> {
        let mut table = self.table();
        let mut next = table.clone();
        next.extend(routes.iter().map(|(gsi, message)| (*gsi, Some(*message))));
        self.commit(&next)?;
        *table = next;
        Ok(())
    }

    fn attach(&self, gsi: u32, event: &EventFd) -> Result<(), WiringError> {
        // KVM looks at the eventfd once while attaching, and sends what is pending.
        self.vm
            .register_irqfd(event, gsi)
            .map_err(|errno| WiringError::Refused { what: "an interrupt eventfd", source: errno.into() })
    }

    fn detach(&self, gsi: u32, event: &EventFd) {
        if let Err(errno) = self.vm.unregister_irqfd(event, gsi)
            && UNDONE.allow()
        {
            tracing::warn!(gsi, %errno, "an interrupt eventfd could not be detached");
        }
    }

    fn ring(&self, address: u64, event: &EventFd) -> Result<(), WiringError> {
        doorbell::assign(&self.vm, address, event)
    }

    fn unring(&self, address: u64, event: &EventFd) {
        if let Err(error) = doorbell::deassign(&self.vm, address, event)
            && UNDONE.allow()
        {
            tracing::warn!(address, %error, "a doorbell could not be removed");
        }
    }
}

#[cfg(test)]
#[path = "irq_test.rs"]
mod irq_test;
