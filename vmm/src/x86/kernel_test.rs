//! Images built by hand, each wrong in one way; and memory that ends up as the loader promises.

use std::io::Write;

use strata_virtio::memory::Memory;

use super::{Entry, Kernel, KernelError};

const MIB: u64 = 1 << 20;

fn open(bytes: &[u8]) -> Result<Kernel, KernelError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Kernel::open(file.path())
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).expect_err("it must be refused").to_string()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// One setup sector, 4 KiB of code that counts up.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1f4, &(4096_u32 / 16).to_le_bytes());
    put(&mut file, 0x201, &[0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut file, 0x234, &[1]);
    put(&mut file, 0x236, &0x7f_u16.to_le_bytes());
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut file, 0x260, &(8 * MIB as u32).to_le_bytes());
    for (index, byte) in file[1024..].iter_mut().enumerate() {
        *byte = index as u8;
    }
    file
}

/// One segment at 16 MiB that holds `code`, followed by as many zeroes, and a note that names its 16th byte as entry.
pub(crate) fn vmlinux(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x200 + code.len().max(0x40)];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 18, &62_u16.to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &56_u16.to_le_bytes());
    put(&mut file, 56, &2_u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, words: [(usize, u64); 4]| {
        put(&mut file, at, &kind.to_le_bytes());
        for (offset, word) in words {
            put(&mut file, at + offset, &word.to_le_bytes());
        }
    };
    let size = code.len() as u64;
    header(64, 1, [(8, 0x200), (24, 0x100_0000), (32, size), (40, 2 * size)]);
    header(120, 4, [(8, 0x180), (24, 0), (32, 40), (40, 40)]);
    put(&mut file, 0x200, code);
    // Another note first, with a name that needs padding.
    for (at, word) in [(0x180, 4_u32), (0x184, 4), (0x188, 1), (0x194, 4), (0x198, 4), (0x19c, 18)] {
        put(&mut file, at, &word.to_le_bytes());
    }
    put(&mut file, 0x18c, b"GNU\0");
    put(&mut file, 0x1a0, b"Xen\0");
    put(&mut file, 0x1a4, &0x100_0010_u32.to_le_bytes());
    file
}

#[test]
fn a_bzimage_is_loaded_where_it_wants() {
    let kernel = open(&bzimage()).unwrap();
    assert_eq!(kernel.span(), 16 * MIB..24 * MIB);
    assert_eq!(kernel.initrd_limit(), 1 << 31);
    assert_eq!(kernel.cmdline_limit(), 2047);
    let memory = Memory::anonymous(32 * MIB).unwrap();
    let Entry::Linux64 { rip, header } = kernel.load(&memory).unwrap() else { panic!("a bzImage") };
    assert_eq!(rip, 16 * MIB + 0x200);
    assert_eq!({ header.init_size }, 8 * MIB as u32);
    let mut code = [0; 4096];
    memory.read_at(16 * MIB, &mut code).unwrap();
    assert!(code.iter().enumerate().all(|(index, byte)| *byte == index as u8));
}

#[test]
fn a_vmlinux_is_loaded_and_its_bss_cleared() {
    let kernel = open(&vmlinux(&[0xaa; 0x20])).unwrap();
    assert_eq!(kernel.span(), 16 * MIB..16 * MIB + 0x40);
    let memory = Memory::anonymous(32 * MIB).unwrap();
    memory.write_at(16 * MIB, &[0xff; 0x50]).unwrap();
    assert_eq!(kernel.load(&memory).unwrap(), Entry::Pvh { rip: 16 * MIB + 0x10 });
    let mut loaded = [0; 0x50];
    memory.read_at(16 * MIB, &mut loaded).unwrap();
    assert_eq!(loaded[..0x20], [0xaa; 0x20]);
    assert_eq!(loaded[0x20..0x40], [0; 0x20]);
    assert_eq!(loaded[0x40..], [0xff; 0x10]);
}

#[test]
fn memory_too_small_is_an_error_not_a_crash() {
    let memory = Memory::anonymous(16 * MIB).unwrap();
    for image in [bzimage(), vmlinux(&[0xaa; 0x20])] {
        assert!(matches!(open(&image).unwrap().load(&memory), Err(KernelError::Memory { .. })));
    }
}

#[test]
fn bzimages_that_cannot_boot_are_refused() {
    let with = |at, value: &[u8]| {
        let mut file = bzimage();
        put(&mut file, at, value);
        refusal(&file)
    };
    assert!(with(0x206, &[0x0b, 2]).contains("older than 2.12"));
    assert!(with(0x236, &[0, 0]).contains("32-bit kernel"));
    assert!(with(0x211, &[0]).contains("above 1 MiB"));
    assert!(with(0x258, &[0; 8]).contains("load address"));
    assert!(with(0x258, &[0xff; 8]).contains("load address"));
    assert!(with(0x1f4, &[0xff; 4]).contains("cut short"));
    assert!(with(0x1f1, &[0xff]).contains("cut short"));
    assert!(refusal(&bzimage()[..2000]).contains("cut short"));
}

#[test]
fn a_short_header_does_not_lend_its_code_as_fields() {
    let mut file = bzimage();
    // The header ends before init_size; what lies there is code.
    put(&mut file, 0x201, &[0x5e]);
    let kernel = open(&file).unwrap();
    assert_eq!(kernel.span(), 16 * MIB..16 * MIB + 4096);
}

#[test]
fn elf_files_that_cannot_boot_are_refused() {
    let with = |at, value: &[u8]| {
        let mut file = vmlinux(&[0xaa; 0x20]);
        put(&mut file, at, value);
        refusal(&file)
    };
    assert!(with(0x19c, &[17]).contains("CONFIG_PVH=y"));
    assert!(with(0x1a4, &[0, 0, 0, 2]).contains("entry point lies outside"));
    assert!(with(32, &[0xff; 8]).contains("cut short"));
    assert!(with(56, &[0xff, 0xff]).contains("program headers"));
    assert!(with(64 + 8, &[0xff; 8]).contains("cut short"));
    assert!(with(64 + 24, &[0; 8]).contains("between 1 MiB and 4 GiB"));
    assert!(with(64 + 24, &[0xff; 8]).contains("between 1 MiB and 4 GiB"));
    assert!(with(64 + 40, &[0x1f]).contains("between 1 MiB and 4 GiB"));
    // A note whose sizes wrap ends the walk.
    assert!(with(0x180, &[0xff; 4]).contains("CONFIG_PVH=y"));
}

#[test]
fn other_files_are_named() {
    for (bytes, looks) in [
        (&b""[..], "an empty file"),
        (b"\x1f\x8b\x08", "gzip data"),
        (b"QFI\xfb", "qcow2"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "text"),
        (b"\x7fELF\x01\x01", "another processor"),
        (&[0; 100], "zeroes"),
        (&[0xfe; 100], "nothing known"),
        (b"070701", "initramfs"),
    ] {
        let text = refusal(bytes);
        assert!(text.contains(looks), "{text}");
    }
    let mut arm = vec![0; 64];
    put(&mut arm, 0, b"\x7fELF\x02\x01\x01");
    put(&mut arm, 18, &183_u16.to_le_bytes());
    assert!(refusal(&arm).contains("64-bit ARM"));
    let text = Kernel::open(std::path::Path::new("/")).expect_err("a folder").to_string();
    assert!(text.contains("cannot open the kernel /"), "{text}");
}
