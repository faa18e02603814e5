//! The few devices that are not on PCI: power, panic, COM1, and the IOAPIC that two of them need. All are behind ports, all are named in the ACPI
//! tables, and none is on any path that costs time.

pub mod ged;
pub mod ioapic;
pub mod panic;
pub mod power;
pub mod uart;
