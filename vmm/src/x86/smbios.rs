//! SMBIOS 3 tables (DMTF DSP0134): who the machine is, and the credentials for the guest's systemd.
//!
//! Written by the machine at each boot into [`layout::SMBIOS`], where a kernel without EFI looks for the entry point.
//! Four structures: 0 says that this is a virtual machine, 1 carries name and UUID, 11 the credentials as systemd reads
//! them (systemd.system-credentials(7)), 127 ends the list. Refuses credentials that do not fit.

use strata_virtio::memory::{Memory, MemoryError};

use super::layout;

/// The entry point's length (DSP0134 3.6, 5.2.2) and the alignment of what follows.
const ENTRY: usize = 24;
const ALIGNED_ENTRY: u64 = 32;
/// Handles are the structures' places; nothing refers to them.
const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const OEM_STRINGS: u8 = 11;
const END: u8 = 127;
/// BIOS characteristics: "not supported" (7.1.1, bit 3), and of the extension's second byte "virtual machine" (7.1.2.2).
const CHARACTERISTICS: u64 = 1 << 3;
const VIRTUAL_MACHINE: [u8; 2] = [0, 1 << 4];
/// Woken by its power switch (7.2.2).
const POWER_SWITCH: u8 = 6;

/// What the tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The machine's name.
    pub name: String,
    /// The UUID's bytes in the order they are written in; all zero: none.
    pub uuid: [u8; 16],
    /// Credentials: name and content.
    pub credentials: Vec<(String, Vec<u8>)>,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SmbiosError {
    /// More bytes than there is room for, or more strings than can be counted.
    #[error(
        "the credentials do not fit: {count} of them, {size} bytes of tables; there is room for 255 and {} bytes",
        room()
    )]
    TooLarge {
        /// Credentials.
        count: usize,
        /// Bytes of all tables.
        size: usize,
    },
    /// Guest memory ends before.
    #[error("SMBIOS tables do not fit into guest memory")]
    Memory(#[from] MemoryError),
}

const fn room() -> u64 {
    layout::SMBIOS.end - layout::SMBIOS.start - ALIGNED_ENTRY
}

/// Whether the tables have room.
///
/// # Errors
/// They have not.
pub fn check(facts: &Facts) -> Result<(), SmbiosError> {
    tables(facts).map(drop)
}

/// Writes the entry point and the tables.
///
/// # Errors
/// They do not fit.
pub fn write(memory: &Memory, facts: &Facts) -> Result<(), SmbiosError> {
    let tables = tables(facts)?;
    let at = layout::SMBIOS.start + ALIGNED_ENTRY;
    memory.write_at(layout::SMBIOS.start, &entry(at, tables.len() as u32))?;
    memory.write_at(at, &tables)?;
    Ok(())
}

/// The 64-bit entry point (5.2.2).
fn entry(at: u64, size: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let fields: [(usize, &[u8]); 4] = [
        (0, b"_SM3_"),
        // Length, version 3.6.0, revision of the entry point.
        (6, &[ENTRY as u8, 3, 6, 0, 1]),
        (12, &size.to_le_bytes()),
        (16, &at.to_le_bytes()),
    ];
    for (offset, bytes) in fields {
        for (slot, byte) in entry.iter_mut().skip(offset).zip(bytes) {
            *slot = *byte;
        }
    }
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    entry
}

fn tables(facts: &Facts) -> Result<Vec<u8>, SmbiosError> {
    let mut tables = Tables::default();
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let mut bios = vec![1, 2, 0, 0, 3, 0];
    bios.extend(CHARACTERISTICS.to_le_bytes());
    bios.extend(VIRTUAL_MACHINE);
    // No release of firmware, none of a controller.
    bios.extend([0xff; 4]);
    // Extended ROM size, in use only where the first size says so.
    bios.extend([0; 2]);
    tables.add(BIOS, &bios, &[b"Strata", version, b"01/01/2026"]);

    let mut system = vec![1, 2, 3, 4];
    system.extend(wire(facts.uuid));
    // The family comes first in the list of strings; there is no SKU number.
    system.extend([POWER_SWITCH, 0, 5]);
    tables.add(SYSTEM, &system, &[b"Strata", b"Virtual Machine", version, facts.name.as_bytes(), b"Strata"]);

    if !facts.credentials.is_empty() {
        let strings: Vec<Vec<u8>> =
            facts.credentials.iter().map(|(name, content)| oem(name, content)).collect();
        let strings: Vec<&[u8]> = strings.iter().map(Vec::as_slice).collect();
        let count = u8::try_from(strings.len()).unwrap_or(u8::MAX);
        tables.add(OEM_STRINGS, &[count], &strings);
    }
    tables.add(END, &[], &[]);
    let (bytes, count) = (tables.0, facts.credentials.len());
    if bytes.len() as u64 > room() || count > usize::from(u8::MAX) {
        return Err(SmbiosError::TooLarge { count, size: bytes.len() });
    }
    Ok(bytes)
}

/// The first three fields of a UUID are little-endian (7.2.1).
fn wire(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let mut wire = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    for (slot, byte) in wire.iter_mut().skip(8).zip(rest) {
        *slot = byte;
    }
    wire
}

/// A credential as systemd reads it: as it is, or in base64 where a string of SMBIOS cannot hold it.
fn oem(name: &str, content: &[u8]) -> Vec<u8> {
    let plain = !content.is_empty() && content.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b' '..=b'~'));
    if plain {
        return [b"io.systemd.credential:", name.as_bytes(), b"=", content].concat();
    }
    [b"io.systemd.credential.binary:", name.as_bytes(), b"=", &base64(content)].concat()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            let shown = DIGITS.get(value as usize).copied().unwrap_or_default();
            text.push(if digit > group.len() { b'=' } else { shown });
        }
    }
    text
}

/// Structures, one after another.
#[derive(Default)]
struct Tables(Vec<u8>);

impl Tables {
    /// The header (6.1.2), the formatted part, the strings, each with its NUL, and one more.
    fn add(&mut self, kind: u8, formatted: &[u8], strings: &[&[u8]]) {
        let bytes = &mut self.0;
        // The largest formatted part here has 22 bytes.
        bytes.extend([kind, (4 + formatted.len()) as u8]);
        bytes.extend(u16::from(kind).to_le_bytes());
        bytes.extend(formatted);
        for string in strings {
            bytes.extend(string.iter());
            bytes.push(0);
        }
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
    }
}

#[cfg(test)]
#[path = "smbios_test.rs"]
mod smbios_test;
