//! What a vCPU needs to stand in 64-bit or 32-bit mode at its first instruction: page tables that map the first
//! 4 GiB one to one, and a GDT. Written to guest memory at each boot; the kernel soon has its own.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use strata_virtio::memory::{Memory, MemoryError};

use super::layout;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Linux's boot protocol names the selectors: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Writes one PML4, one PDPT and four page directories of 2 MiB pages at [`layout::PAGE_TABLES`].
///
/// # Errors
/// Guest memory does not reach that far.
pub fn write_page_tables(memory: &Memory) -> Result<(), MemoryError> {
    let (pml4, pdpt) = (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE);
    let directory = |index: u64| layout::PAGE_TABLES + (2 + index) * PAGE;
    memory.write_at(pml4, &[0; PAGE as usize])?;
    memory.write_at(pdpt, &[0; PAGE as usize])?;
    memory.write_obj(pml4, pdpt | PRESENT | WRITABLE)?;
    for gib in 0..4 {
        memory.write_obj(pdpt + gib * 8, directory(gib) | PRESENT | WRITABLE)?;
        for entry in 0..ENTRIES {
            let address = (gib * ENTRIES + entry) * LARGE_PAGE;
            memory.write_obj(directory(gib) + entry * 8, address | PRESENT | WRITABLE | LARGE)?;
        }
    }
    Ok(())
}

/// The mode a vCPU begins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit, paging on.
    Long,
    /// 32-bit, flat, paging off.
    Protected,
}

/// Writes the GDT that goes with `mode`.
///
/// # Errors
/// Guest memory does not reach that far.
pub fn write_gdt(memory: &Memory, mode: Mode) -> Result<(), MemoryError> {
    for (index, entry) in gdt(mode).into_iter().enumerate() {
        memory.write_obj(layout::GDT + index as u64 * 8, entry)?;
    }
    Ok(())
}

/// Puts the control, segment and descriptor table registers of `sregs` into `mode`.
pub fn set_mode(sregs: &mut kvm_sregs, mode: Mode) {
    sregs.cs = segment(CODE, mode);
    let data = segment(DATA, mode);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TASK, mode);
    let limit = u16::try_from(gdt(mode).len() * 8 - 1).unwrap_or(u16::MAX);
    sregs.gdt = kvm_dtable { base: layout::GDT, limit, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    match mode {
        Mode::Protected => {
            (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
        }
        Mode::Long => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

fn segment(selector: u16, mode: Mode) -> kvm_segment {
    let flat = kvm_segment {
        limit: u32::MAX,
        selector,
        present: 1,
        s: 1,
        g: 1,
        type_: 0x3, // read, write, accessed
        db: 1,
        ..Default::default()
    };
    match (selector, mode) {
        (CODE, Mode::Long) => kvm_segment { type_: 0xb, l: 1, db: 0, ..flat },
        (CODE, Mode::Protected) => kvm_segment { type_: 0xb, ..flat },
        // A busy 32- or 64-bit TSS; its content is never used.
        (TASK, _) => kvm_segment { type_: 0xb, s: 0, db: 0, g: 0, limit: 0x67, ..flat },
        _ => flat,
    }
}

/// The descriptors behind the selectors (AMD64 APM volume 2, 4.7 and 4.8).
fn gdt(mode: Mode) -> [u64; 5] {
    [
        0,
        0,
        descriptor(&segment(CODE, mode)),
        descriptor(&segment(DATA, mode)),
        descriptor(&segment(TASK, mode)),
    ]
}

fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let base = segment.base;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | flags << 40
        | (limit & 0xf_0000) << 32
        | (base & 0xff00_0000) << 32
}

#[cfg(test)]
#[path = "paging_test.rs"]
mod paging_test;
