//! What a file that is not a kernel looks like, so that the error can say it.

use super::le16;

/// A guess from the first bytes, worded to follow "it looks like".
pub(super) fn looks_like(head: &[u8]) -> &'static str {
    const BY_MAGIC: [(&[u8], &str); 17] = [
        (b"\x1f\x8b", "gzip data, such as an initramfs (initrd) or a packed vmlinux"),
        (b"\xfd7zXZ\0", "xz data, such as a packed vmlinux"),
        (b"\x28\xb5\x2f\xfd", "zstd data, such as an initramfs (initrd) or a packed vmlinux"),
        (b"\x02\x21\x4c\x18", "lz4 data, such as an initramfs (initrd) or a packed vmlinux"),
        (b"\x04\x22\x4d\x18", "lz4 data, such as an initramfs (initrd) or a packed vmlinux"),
        (b"BZh", "bzip2 data, such as a packed vmlinux"),
        (b"070701", "an initramfs (initrd)"),
        (b"070702", "an initramfs (initrd)"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"KDMV", "a VMDK disk image"),
        (b"vhdxfile", "a VHDX disk image"),
        (b"!<arch>\n", "a Debian package or static library"),
        (b"\xed\xab\xee\xdb", "an RPM package"),
        (b"PK\x03\x04", "a zip archive"),
        (b"#!", "a script"),
        (b"hsqs", "a squashfs image"),
        (b"\xd0\x0d\xfe\xed", "a device tree"),
    ];
    if head.is_empty() {
        return "an empty file";
    }
    if let Some((_, looks)) = BY_MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return looks;
    }
    if head.starts_with(b"\x7fELF") {
        return match (head.get(4), le16(head, 18)) {
            (_, Some(183)) => "an ELF file for 64-bit ARM",
            (_, Some(243)) => "an ELF file for RISC-V",
            (Some(1), Some(3)) => "an ELF file for 32-bit x86",
            _ => "an ELF file for another processor",
        };
    }
    if head.get(0x38..0x3c) == Some(b"ARM\x64".as_slice()) {
        return "a kernel for 64-bit ARM";
    }
    if head.starts_with(b"MZ") {
        return "an EFI or Windows program";
    }
    if head.get(510..512) == Some([0x55, 0xaa].as_slice()) {
        return "a disk image with a boot sector";
    }
    if head.get(0x438..0x43a) == Some([0x53, 0xef].as_slice()) {
        return "an ext2, ext3 or ext4 file system image";
    }
    if head.iter().all(|b| *b == 0) {
        return "zeroes, as at the start of an empty disk image";
    }
    if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return "text";
    }
    "nothing known"
}
