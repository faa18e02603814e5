//! Puts everything a kernel needs into guest memory and says how the boot vCPU has to begin.
//!
//! Called once per boot; a reboot calls it again over the same memory, so nothing here relies on memory being
//! zero. Refuses a kernel and initrd that do not fit, saying how much memory they need.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use strata_virtio::memory::{Memory, MemoryError};

use super::kernel::{Entry, Kernel, KernelError, Source};
use super::layout::{self, MapEntry};
use super::paging::{self, Mode};
use crate::legacy::power;

const PAGE: u64 = 4096;
/// What a kernel puts there besides page descriptors, and the most of these that are worth mapping ahead.
const FIRST_TABLES: u64 = 4 << 20;
const MOST_DESCRIPTORS: u64 = 64 << 20;
/// `KERNEL_BOOT_FLAG_MAGIC` and the loader type "undefined" (boot.rst, type_of_loader).
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "xEn3" with the top bit set (Xen public/arch-x86/hvm/start_info.h).
const PVH_MAGIC: u32 = 0x336e_c578;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Kernel and initrd do not fit below the device hole.
    #[error(
        "memory is too small: the kernel{} needs {} MiB, the machine has {} MiB{}",
        if *initrd > 0 { " with its initrd" } else { "" },
        needed.div_ceil(1 << 20),
        size >> 20,
        if *size >= layout::HOLE { " (at most 3072 MiB of it below the device hole)" } else { "" }
    )]
    TooSmall {
        /// Bytes of memory needed.
        needed: u64,
        /// Bytes of memory there are.
        size: u64,
        /// Bytes of the initrd.
        initrd: u64,
    },
    /// The kernel or initrd could not be loaded.
    #[error("loading failed")]
    Load(#[from] KernelError),
    /// Boot structures could not be written.
    #[error("boot structures do not fit into guest memory")]
    Memory(#[from] MemoryError),
}

/// What is booted. All of it outlives a boot.
#[derive(Debug)]
pub struct Payload {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<Source>,
    /// The command line, complete, without NUL.
    pub cmdline: String,
}

/// How the boot vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Processor mode.
    pub mode: Mode,
    /// First instruction.
    pub rip: u64,
    /// Where the boot information is: RSI in 64-bit mode, EBX in 32-bit mode.
    pub info: u64,
}

impl Payload {
    /// Where the initrd goes in a machine with `size` bytes of memory; `None` if there is none.
    ///
    /// # Errors
    /// Kernel and initrd do not fit.
    pub fn place(&self, size: u64) -> Result<Option<u64>, BootError> {
        let (low, _) = layout::split(size);
        let end = self.kernel.span().end;
        let length = self.initrd.as_ref().map_or(0, Source::len);
        let top = low.min(self.kernel.initrd_limit());
        // As high as it may be, so that the kernel's own early allocations lie next to it.
        let start = top.checked_sub(length).map(|start| start - start % PAGE);
        match start {
            Some(start) if start >= end => Ok((length > 0).then_some(start)),
            _ => Err(BootError::TooSmall {
                needed: end.saturating_add(length.next_multiple_of(PAGE)),
                size,
                initrd: length,
            }),
        }
    }

    /// The ranges that are touched before a kernel does anything of its own choice, as start and size in whole pages:
    /// what [`Payload::load`] fills, where a packed kernel unpacks itself, and the top of free memory, where a Linux
    /// puts its first tables and a descriptor of 64 bytes for each page.
    #[must_use]
    pub fn touched(&self, size: u64) -> Vec<(u64, u64)> {
        let (low, high) = layout::split(size);
        let kernel = self.kernel.span();
        let kernel_end = kernel.end.min(low);
        let mut ranges = vec![(0, layout::HIMEM), (kernel.start, kernel_end.saturating_sub(kernel.start))];
        let mut free = kernel_end..low;
        if let (Ok(Some(at)), Some(initrd)) = (self.place(size), &self.initrd) {
            ranges.push((at, initrd.len()));
            free.end = at;
        }
        if high > 0 {
            free = layout::HIGH_RAM..layout::HIGH_RAM + high;
        }
        let tables = (size / PAGE * 64).min(MOST_DESCRIPTORS) + FIRST_TABLES;
        let start = free.end.saturating_sub(tables).max(free.start);
        ranges.push((start, free.end.saturating_sub(start)));
        ranges
            .iter()
            .map(|(start, size)| (start - start % PAGE, (start % PAGE + size).next_multiple_of(PAGE)))
            .collect()
    }

    /// Loads everything but the ACPI tables, whose root is at `rsdp`.
    ///
    /// # Errors
    /// It does not fit, or a file cannot be read any more.
    pub fn load(&self, memory: &Memory, size: u64, rsdp: u64) -> Result<Start, BootError> {
        let initrd = match (self.place(size)?, &self.initrd) {
            (Some(at), Some(source)) => {
                source.copy(0, source.len(), memory, at)?;
                (at, source.len())
            }
            _ => (0, 0),
        };
        memory.write_at(layout::CMDLINE, self.cmdline.as_bytes())?;
        memory.write_at(layout::CMDLINE + self.cmdline.len() as u64, &[0])?;
        memory.write_at(layout::RESET_VECTOR, &reset_code())?;
        let map = layout::memory_map(size);
        match self.kernel.load(memory)? {
            Entry::Linux64 { rip, header } => {
                let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
                self.fill_header(&mut params, initrd);
                fill_e820(&mut params, &map);
                memory.write_obj(layout::ZERO_PAGE, params)?;
                paging::write_page_tables(memory)?;
                paging::write_gdt(memory, Mode::Long)?;
                Ok(Start { mode: Mode::Long, rip, info: layout::ZERO_PAGE })
            }
            Entry::Pvh { rip } => {
                write_start_info(memory, initrd, &map, rsdp)?;
                paging::write_gdt(memory, Mode::Protected)?;
                Ok(Start { mode: Mode::Protected, rip, info: layout::PVH_INFO })
            }
        }
    }

    fn fill_header(&self, params: &mut boot_params, (initrd, initrd_size): (u64, u64)) {
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        // All lie below 4 GiB: `place` and the layout see to it.
        params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
        params.hdr.code32_start = self.kernel.span().start as u32;
        params.hdr.ramdisk_image = initrd as u32;
        params.hdr.ramdisk_size = initrd_size as u32;
    }
}

/// Real-mode code that resets the machine, as firmware does at its entry: a kernel told to reboot "by BIOS", or that
/// knows no other way, jumps there.
pub(crate) fn reset_code() -> [u8; 9] {
    let [low, high] = (layout::PM_PORT + power::RESET).to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; again: hlt; jmp again
    [0xba, low, high, 0xb0, power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

fn fill_e820(params: &mut boot_params, map: &[MapEntry]) {
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.size, r#type: entry.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
}

fn write_start_info(
    memory: &Memory,
    (initrd, initrd_size): (u64, u64),
    map: &[MapEntry],
    rsdp: u64,
) -> Result<(), MemoryError> {
    let modules = layout::PVH_INFO + size_of::<hvm_start_info>() as u64;
    memory
        .write_obj(modules, hvm_modlist_entry { paddr: initrd, size: initrd_size, ..Default::default() })?;
    for (index, entry) in map.iter().enumerate() {
        let at = layout::PVH_MEMMAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory.write_obj(at, entry)?;
    }
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(initrd_size > 0),
        modlist_paddr: modules,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        reserved: 0,
    };
    memory.write_obj(layout::PVH_INFO, info)
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod boot_test;
