//! What the kernel will read, read back; and that nothing a boot writes lies on top of something else.

use std::io::Write;
use std::path::Path;

use super::*;

const MIB: u64 = 1 << 20;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A bzImage of one code page at 16 MiB that unpacks to 24 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    let fields: [(usize, &[u8]); 11] = [
        (0x1f1, &[1]),
        (0x1f4, &256_u32.to_le_bytes()),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 2]),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x234, &[1]),
        (0x236, &[1]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &(16 * MIB).to_le_bytes()),
    ];
    for (at, value) in fields {
        file[at..at + value.len()].copy_from_slice(value);
    }
    file[0x260..0x264].copy_from_slice(&(24 * MIB as u32).to_le_bytes());
    file
}

fn payload(initrd: Option<&[u8]>) -> Payload {
    let kernel = file(&bzimage());
    let initrd = initrd.map(file);
    Payload {
        kernel: Kernel::open(kernel.path()).unwrap(),
        initrd: initrd.map(|file| Source::open("the initrd", file.path()).unwrap()),
        cmdline: "console=hvc0 quiet".to_owned(),
    }
}

#[test]
fn the_zero_page_tells_all() {
    let memory = Memory::anonymous(64 * MIB).unwrap();
    memory.write_at(layout::ZERO_PAGE, &[0xff; 4096]).unwrap();
    let start = payload(Some(b"initrd!")).load(&memory, 64 * MIB, 0xe_0000).unwrap();
    assert_eq!(start, Start { mode: Mode::Long, rip: 16 * MIB + 0x200, info: layout::ZERO_PAGE });

    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!((params.sentinel, { params.hdr.type_of_loader }), (0, 0xff));
    assert_eq!({ params.hdr.header }, HEADER_MAGIC);
    let (at, size) = (u64::from(params.hdr.ramdisk_image), params.hdr.ramdisk_size);
    assert_eq!((at, size), (64 * MIB - 4096, 7));
    let mut initrd = [0; 7];
    memory.read_at(at, &mut initrd).unwrap();
    assert_eq!(&initrd, b"initrd!");
    let mut cmdline = [0; 19];
    memory.read_at(params.hdr.cmd_line_ptr.into(), &mut cmdline).unwrap();
    assert_eq!(&cmdline, b"console=hvc0 quiet\0");

    let table = params.e820_table;
    let entries: Vec<_> =
        table.iter().take(params.e820_entries.into()).map(|e| (e.addr, e.size, e.r#type)).collect();
    let map: Vec<_> = layout::memory_map(64 * MIB).iter().map(|e| (e.start, e.size, e.kind as u32)).collect();
    assert_eq!(entries, map);
}

#[test]
fn the_start_info_tells_all() {
    let memory = Memory::anonymous(16 * MIB).unwrap();
    let map = layout::memory_map(6 << 30);
    write_start_info(&memory, (0x800_0000, 0x1234), &map, 0xe_0000).unwrap();
    let info: hvm_start_info = memory.read_obj(layout::PVH_INFO).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (layout::CMDLINE, 0xe_0000));
    let module: hvm_modlist_entry = memory.read_obj(info.modlist_paddr).unwrap();
    assert_eq!((module.paddr, module.size), (0x800_0000, 0x1234));
    assert!(info.modlist_paddr + 32 <= layout::PVH_MEMMAP);
    assert_eq!(info.memmap_entries as usize, map.len());
    for (index, expected) in map.iter().enumerate() {
        let entry: hvm_memmap_table_entry = memory.read_obj(info.memmap_paddr + index as u64 * 24).unwrap();
        assert_eq!(
            (entry.addr, entry.size, entry.type_),
            (expected.start, expected.size, expected.kind as u32)
        );
    }
    write_start_info(&memory, (0, 0), &map, 0).unwrap();
    assert_eq!(memory.read_obj::<hvm_start_info>(layout::PVH_INFO).unwrap().nr_modules, 0);
}

#[test]
fn the_initrd_lies_as_high_as_it_may() {
    let payload = payload(Some(&[1; 5000]));
    assert_eq!(payload.place(64 * MIB).unwrap(), Some(64 * MIB - 8192));
    // initrd_addr_max of the image, not the end of memory.
    assert_eq!(payload.place(6 << 30).unwrap(), Some((2 << 30) - 8192));
}

#[test]
fn what_a_kernel_touches_first_is_known() {
    let payload = payload(Some(&[1; 5000]));
    let initrd = 64 * MIB - 8192;
    let tables = (initrd - 5 * MIB, 5 * MIB);
    assert_eq!(payload.touched(64 * MIB), [(0, MIB), (16 * MIB, 24 * MIB), (initrd, 8192), tables]);
    // With memory above the hole for devices, the top is there: 64 MiB of descriptors at most are mapped ahead.
    let last = payload.touched(12 << 30).pop().unwrap();
    assert_eq!(last, ((13 << 30) - 68 * MIB, 68 * MIB));
}

#[test]
fn too_little_memory_is_refused_with_how_much_is_needed() {
    let error = payload(Some(&[1; 5000])).place(40 * MIB).unwrap_err().to_string();
    assert_eq!(error, "memory is too small: the kernel with its initrd needs 41 MiB, the machine has 40 MiB");
    let error = payload(None).place(32 * MIB).unwrap_err().to_string();
    assert_eq!(error, "memory is too small: the kernel needs 40 MiB, the machine has 32 MiB");
    assert!(payload(None).place(40 * MIB).unwrap().is_none());
    assert!(Source::open("the initrd", Path::new("/nonexistent")).is_err());
}
