//! The guest-physical map. Everything that has a fixed address has it here.
//!
//! ```text
//!          0  +-----------------------------+
//!             | RAM: boot structures, kernel, initrd          (slot 0)
//!   up to 3G  +-----------------------------+  <- low RAM ends
//!             | 32-bit PCI window                              3 GiB .. 3.5 GiB
//! 0xe000_0000 | ECAM and register BARs: read-only slot         2 MiB
//! 0xfec0_0000 | IOAPIC (ours)   0xfee0_0000 local APICs (KVM's)
//! 0xfffb_d000 | KVM's own pages (Intel real mode)
//!         4G  +-----------------------------+
//!             | RAM that did not fit below 3G                  (slot 1)
//!             +-----------------------------+
//! ```

use std::ops::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where low RAM ends at the latest: the hole for devices goes from here to 4 GiB.
pub const HOLE: u64 = 3 * GIB;
/// Where RAM goes on above the hole.
pub const HIGH_RAM: u64 = 4 * GIB;

/// Boot GDT.
pub const GDT: u64 = 0x500;
/// Start info of the PVH entry, with its module list.
pub const PVH_INFO: u64 = 0x6000;
/// Memory map of the PVH entry.
pub const PVH_MEMMAP: u64 = 0x6100;
/// The "zero page" of the 64-bit Linux entry (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit entry: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x20000;
/// ACPI tables, where a kernel that is told nothing looks for them (ACPI 6.4, 5.2.5.1).
pub const ACPI: Range<u64> = 0xe_0000..SMBIOS.start;
/// SMBIOS tables, their entry point first, where a kernel without EFI looks for it (DSP0134 3.6, 5.2.2).
pub const SMBIOS: Range<u64> = 0xf_0000..RESET_VECTOR;
/// Where a PC begins in real mode: F000:FFF0. What lies here resets the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM from here to 1 MiB is not used: a kernel expects video memory and ROMs there.
pub const LEGACY_HOLE: u64 = 0xa_0000;
/// The first byte above 1 MiB.
pub const HIMEM: u64 = MIB;

/// 32-bit PCI window.
pub const PCI32: Range<u64> = HOLE..HOLE + 512 * MIB;
/// PCI configuration space of bus 0, 1 MiB.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of configuration space of one bus.
pub const ECAM_SIZE: u64 = MIB;
/// The read-only slot: configuration space, and BARs that are only read without an exit.
pub const SHADOW: Range<u64> = ECAM..ECAM + 2 * MIB;
/// IOAPIC, where every PC has it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs, where KVM has them.
pub const LAPIC: u32 = 0xfee0_0000;
/// One page KVM needs for real mode on Intel (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs for real mode on Intel (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Power management ports: reset, sleep control, sleep status.
pub const PM_PORT: u16 = 0x600;
/// Ports of the generic event device's registers: four bytes each.
pub const GED_PORT: u16 = 0x610;
/// pvpanic's port, where QEMU has it.
pub const PANIC_PORT: u16 = 0x505;
/// COM1.
pub const UART_PORT: u16 = 0x3f8;
/// The first interrupt number of the IOAPIC. Not 0: numbers below 16 mean ISA interrupts to a kernel.
pub const IOAPIC_GSI: u32 = 16;
/// The generic event device's pin on the IOAPIC.
pub const GED_PIN: u32 = 0;
/// COM1's pin on the IOAPIC.
pub const UART_PIN: u32 = 1;

/// Pins of the IOAPIC. A kernel reads and writes each a dozen times at boot, so there is none to spare.
#[must_use]
pub fn ioapic_pins(serial: bool) -> u32 {
    if serial { UART_PIN + 1 } else { GED_PIN + 1 }
}

/// How much RAM lies below the hole, and how much above.
#[must_use]
pub fn split(size: u64) -> (u64, u64) {
    let low = size.min(HOLE);
    (low, size - low)
}

/// Usable RAM as a kernel may use it and the reserved parts it must know, ascending and disjoint:
/// the memory map of both boot protocols.
#[must_use]
pub fn memory_map(size: u64) -> Vec<MapEntry> {
    let (low, high) = split(size);
    let mut map = vec![
        MapEntry { start: 0, size: LEGACY_HOLE, kind: MapKind::Ram },
        MapEntry { start: ACPI.start, size: HIMEM - ACPI.start, kind: MapKind::Acpi },
        MapEntry { start: HIMEM, size: low.saturating_sub(HIMEM), kind: MapKind::Ram },
        // Linux uses ECAM only where the map has it reserved (PCI Firmware 3.3, 4.1.2).
        MapEntry { start: ECAM, size: ECAM_SIZE, kind: MapKind::Reserved },
    ];
    if high > 0 {
        map.push(MapEntry { start: HIGH_RAM, size: high, kind: MapKind::Ram });
    }
    map
}

/// One stretch of the memory map. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Length.
    pub size: u64,
    /// What it is.
    pub kind: MapKind,
}

/// What a stretch is, by the numbers both E820 and PVH use (ACPI 6.4, table 15-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Free to use.
    Ram = 1,
    /// Keep off.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod layout_test;
