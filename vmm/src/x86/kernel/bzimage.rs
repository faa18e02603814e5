//! bzImage: a setup header and a compressed kernel that unpacks itself (Linux Documentation/arch/x86/boot.rst).

use std::ops::Range;

use linux_loader::bootparam::setup_header;
use strata_virtio::memory::Memory;
use vm_memory::ByteValued;

use super::{Entry, KernelError, Source, le16, le32};
use crate::x86::layout::HIMEM;

const FORM: &str = "bzImage";
/// Where the setup header begins in the file.
const HEADER: usize = 0x1f1;
/// Where the byte lies that says where the header ends (the offset of the jump at 0x200).
const JUMP: usize = 0x201;
/// "HdrS" at 0x202.
const MAGIC: u32 = 0x5372_6448;
const MAGIC_AT: usize = 0x202;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry lies this far into the protected-mode code.
const ENTRY_64: u64 = 0x200;

pub(super) fn is(head: &[u8]) -> bool {
    le32(head, MAGIC_AT) == Some(MAGIC)
}

#[derive(Debug)]
pub(super) struct BzImage {
    header: setup_header,
    /// Where the protected-mode code lies in the file.
    code: Range<u64>,
    load: u64,
}

impl BzImage {
    pub(super) fn parse(source: &Source, head: &[u8]) -> Result<Self, KernelError> {
        let bad = |why| Err(source.unusable(FORM, why));
        let mut header = setup_header::default();
        // An older header is shorter than ours: what follows it is code and must not be taken for fields.
        let end = MAGIC_AT + usize::from(head.get(JUMP).copied().unwrap_or(0));
        let given = head.get(HEADER..end.min(HEADER + size_of::<setup_header>())).unwrap_or_default();
        if let Some(fields) = header.as_mut_slice().get_mut(..given.len()) {
            fields.copy_from_slice(given);
        }
        if le16(head, 0x206).unwrap_or(0) < 0x20c {
            return bad("its boot protocol is older than 2.12 (Linux 3.8)");
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return bad("it has no 64-bit entry; it is a 32-bit kernel");
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return bad("it does not load above 1 MiB");
        }
        let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let start = (sectors + 1) * 512;
        if source.len() < start + ENTRY_64 + 1 {
            return bad("the file ends inside its setup code; it was cut short");
        }
        // syszize counts 16-byte units of protected-mode code; a signature may follow it in the file.
        let size = u64::from(header.syssize) * 16;
        if size < ENTRY_64 || size > source.len() - start + 15 {
            return bad("the file is shorter than its header says; it was cut short");
        }
        let code = start..source.len().min(start + size);
        let load =
            if header.relocatable_kernel == 0 { u64::from(header.code32_start) } else { header.pref_address };
        let align = u64::from(header.kernel_alignment);
        if !(HIMEM..1 << 32).contains(&load) || (align != 0 && !load.is_multiple_of(align)) {
            return bad("its load address is not between 1 MiB and 4 GiB, or not aligned");
        }
        Ok(Self { header, code, load })
    }

    pub(super) fn span(&self) -> Range<u64> {
        let loaded = self.loaded();
        self.load..loaded.end.max(self.load + u64::from(self.header.init_size))
    }

    pub(super) fn loaded(&self) -> Range<u64> {
        self.load..self.load + (self.code.end - self.code.start)
    }

    pub(super) fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    pub(super) fn cmdline_limit(&self) -> usize {
        self.header.cmdline_size as usize
    }

    pub(super) fn load(&self, source: &Source, memory: &Memory) -> Result<Entry, KernelError> {
        source.copy(self.code.start, self.code.end - self.code.start, memory, self.load)?;
        Ok(Entry::Linux64 { rip: self.load + ENTRY_64, header: self.header })
    }
}
