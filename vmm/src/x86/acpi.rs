//! ACPI 6.4 tables of a hardware-reduced machine: what there is, and above all what there is not.
//!
//! No PIC, PIT, 8042, CMOS clock, VGA or PM timer, so that no kernel looks for them by touching ports. One PCI
//! root bus through ECAM whose devices come and go, a power button, a generic event device for both, pvpanic, COM1 if
//! there is one.
//! Written by the machine at each boot into [`layout::ACPI`]; the kernel is told where the root is.

mod dsdt;
mod slots;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use strata_virtio::memory::{Memory, MemoryError};

use super::layout;
use crate::legacy::power;

const OEM: [u8; 6] = *b"STRATA";
const OEM_TABLE: [u8; 8] = *b"STRATAVM";
const OEM_REVISION: u32 = 1;

/// FADT IAPC_BOOT_ARCH (ACPI 6.4, table 5-10): no VGA, leave ASPM alone, no CMOS clock. Bits left at zero say: no
/// legacy devices, no 8042, and MSI works.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// APIC ids of the vCPUs, ascending, the boot vCPU's first.
    pub apic_ids: Vec<u8>,
    /// There is a UART at COM1.
    pub serial: bool,
    /// Where BARs can be; empty: there is no PCI bus. Below 4 GiB, page-aligned.
    pub windows: Vec<Range<u64>>,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More bytes than there is room for.
    #[error("ACPI tables need {size} bytes, there is room for {}", layout::ACPI.end - layout::ACPI.start)]
    TooLarge {
        /// Bytes.
        size: usize,
    },
    /// Guest memory ends before.
    #[error("ACPI tables do not fit into guest memory")]
    Memory(#[from] MemoryError),
}

/// Writes all tables; the address of the RSDP.
///
/// # Errors
/// They do not fit.
pub fn write(memory: &Memory, facts: &Facts) -> Result<u64, AcpiError> {
    let bytes = build(facts, layout::ACPI.start);
    if bytes.len() as u64 > layout::ACPI.end - layout::ACPI.start {
        return Err(AcpiError::TooLarge { size: bytes.len() });
    }
    memory.write_at(layout::ACPI.start, &bytes)?;
    Ok(layout::ACPI.start)
}

/// All tables as they lie in memory from `base` on, the RSDP first.
fn build(facts: &Facts, base: u64) -> Vec<u8> {
    let mut body = Vec::new();
    // Tables are aligned to 16 bytes; the root comes first because its place is what the kernel is told.
    let mut at = base + aligned(Rsdp::len());
    let mut add = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = at;
        bytes.resize(aligned(bytes.len()) as usize, 0);
        at += bytes.len() as u64;
        body.append(&mut bytes);
        address
    };
    let dsdt = add(&dsdt(facts));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(add(&fadt(dsdt)));
    xsdt.add_entry(add(&madt(&facts.apic_ids)));
    if !facts.windows.is_empty() {
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
        mcfg.add_ecam(layout::ECAM, 0, 0, 0);
        xsdt.add_entry(add(&mcfg));
    }
    let root = add(&xsdt);
    let mut bytes = Vec::new();
    Rsdp::new(OEM, root).to_aml_bytes(&mut bytes);
    bytes.resize(aligned(Rsdp::len()) as usize, 0);
    bytes.append(&mut body);
    bytes
}

fn aligned(len: usize) -> u64 {
    len.next_multiple_of(16) as u64
}

fn dsdt(facts: &Facts) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&dsdt::definition_block(facts));
    table
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |offset: u16| {
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::PM_PORT + offset))
    };
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // No fixed-feature buttons: ours is a device behind the event device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    table.iapc_boot_arch = BOOT_ARCH.into();
    table.reset_reg = port(power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.sleep_control_reg = port(power::SLEEP_CONTROL);
    table.sleep_status_reg = port(power::SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"STRATA\0\0").into();
    table.finalize()
}

fn madt(apic_ids: &[u8]) -> MADT {
    let address = LocalInterruptController::Address(layout::LAPIC);
    let mut table = MADT::new(OEM, OEM_TABLE, OEM_REVISION, address);
    // Ids end at 254, so none needs an x2APIC entry.
    for (id, index) in apic_ids.iter().zip(0..) {
        table.add_structure(ProcessorLocalApic::new(index, *id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, layout::IOAPIC, layout::IOAPIC_GSI));
    table
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod acpi_test;
