//! vmlinux: an ELF file for x86-64 with a PVH note, which names a 32-bit entry point (Xen
//! docs/misc/pvh.pandoc, XEN_ELFNOTE_PHYS32_ENTRY).

use std::ops::Range;

use strata_virtio::memory::Memory;

use super::{Entry, KernelError, Source, le16, le32, le64};
use crate::x86::layout::HIMEM;

const FORM: &str = "vmlinux";
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PHDR_SIZE: usize = 56;
const MAX_PHDRS: u16 = 64;
const MAX_NOTES: u64 = 1 << 20;
const XEN_PHYS32_ENTRY: u32 = 18;

pub(super) fn is(head: &[u8]) -> bool {
    // 64-bit, little-endian, x86-64; the others are named by `sniff`.
    head.starts_with(b"\x7fELF\x02\x01") && le16(head, 18) == Some(EM_X86_64)
}

/// A stretch of the file that goes to memory, and the zeroes after it.
#[derive(Debug)]
struct Segment {
    offset: u64,
    in_file: u64,
    gpa: u64,
    in_memory: u64,
}

#[derive(Debug)]
pub(super) struct ElfImage {
    segments: Vec<Segment>,
    entry: u64,
}

impl ElfImage {
    pub(super) fn parse(source: &Source, head: &[u8]) -> Result<Self, KernelError> {
        let bad = |why| source.unusable(FORM, why);
        let cut = || bad("its program headers lie outside the file; it was cut short");
        let at = le64(head, 32).ok_or_else(cut)?;
        let count = le16(head, 56).ok_or_else(cut)?;
        if le16(head, 54).map(usize::from) != Some(PHDR_SIZE) || count == 0 || count > MAX_PHDRS {
            return Err(bad("it has no program headers of the usual size"));
        }
        let mut headers = vec![0; usize::from(count) * PHDR_SIZE];
        if at.checked_add(headers.len() as u64).is_none_or(|end| end > source.len()) {
            return Err(cut());
        }
        source.read(at, &mut headers)?;

        let (mut segments, mut entry) = (Vec::new(), None);
        for header in headers.chunks_exact(PHDR_SIZE) {
            let kind = le32(header, 0).unwrap_or(0);
            let word = |at| le64(header, at).unwrap_or(0);
            let (offset, gpa, in_file, in_memory) = (word(8), word(24), word(32), word(40));
            if offset.checked_add(in_file).is_none_or(|end| end > source.len()) {
                return Err(bad("a segment reaches past the end of the file; it was cut short"));
            }
            match kind {
                PT_LOAD if in_memory > 0 => {
                    let end = gpa.checked_add(in_memory);
                    if gpa < HIMEM || in_file > in_memory || end.is_none_or(|end| end > 1 << 32) {
                        return Err(bad("a segment does not lie between 1 MiB and 4 GiB"));
                    }
                    segments.push(Segment { offset, in_file, gpa, in_memory });
                }
                PT_NOTE => {
                    let mut notes = vec![0; usize::try_from(in_file.min(MAX_NOTES)).unwrap_or(0)];
                    source.read(offset, &mut notes)?;
                    entry = entry.or_else(|| pvh_entry(&notes));
                }
                _ => {}
            }
        }
        let entry = entry.ok_or_else(|| {
            bad("it has no PVH note; build it with CONFIG_PVH=y, or give the bzImage (vmlinuz)")
        })?;
        if !segments.iter().any(|s| s.gpa <= entry && entry < s.gpa + s.in_memory) {
            return Err(bad("its PVH entry point lies outside its segments"));
        }
        Ok(Self { segments, entry })
    }

    pub(super) fn span(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.gpa).min().unwrap_or(HIMEM);
        let end = self.segments.iter().map(|s| s.gpa + s.in_memory).max().unwrap_or(HIMEM);
        start..end
    }

    pub(super) fn load(&self, source: &Source, memory: &Memory) -> Result<Entry, KernelError> {
        for segment in &self.segments {
            source.copy(segment.offset, segment.in_file, memory, segment.gpa)?;
            // After a reboot the memory holds what the last kernel left there.
            zero(memory, segment.gpa + segment.in_file, segment.in_memory - segment.in_file)
                .map_err(|source| KernelError::Memory { what: "the kernel", source })?;
        }
        Ok(Entry::Pvh { rip: self.entry })
    }
}

fn zero(memory: &Memory, gpa: u64, len: u64) -> Result<(), strata_virtio::memory::MemoryError> {
    const STEP: u64 = 1 << 20;
    let zeroes = vec![0; STEP as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(STEP);
        memory.write_at(gpa + done, zeroes.get(..part as usize).unwrap_or_default())?;
        done += part;
    }
    Ok(())
}

/// Walks the notes: name size, descriptor size, type, then name and descriptor, each padded to 4 bytes.
fn pvh_entry(notes: &[u8]) -> Option<u64> {
    let mut at = 0_usize;
    loop {
        let (name_len, desc_len) = (le32(notes, at)? as usize, le32(notes, at + 4)? as usize);
        let kind = le32(notes, at + 8)?;
        let name_at = at + 12;
        let desc_at = name_at.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(name_at..name_at.checked_add(name_len)?)?;
        if kind == XEN_PHYS32_ENTRY && name == b"Xen\0" && desc_len >= 4 {
            return le32(notes, desc_at).map(u64::from);
        }
        at = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
    }
}
