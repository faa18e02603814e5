//! The tables are read back the way a kernel reads them, from the root down; and, where `iasl` is installed, by it.

use std::collections::BTreeMap;

use super::*;

fn facts() -> Facts {
    let registers = layout::ECAM + layout::ECAM_SIZE..layout::SHADOW.end;
    Facts { apic_ids: (0..4).collect(), serial: true, windows: vec![layout::PCI32, registers] }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Every table by signature, each checked for length and checksum.
fn tables(facts: &Facts) -> BTreeMap<String, Vec<u8>> {
    let memory = Memory::anonymous(1 << 20).unwrap();
    let rsdp = write(&memory, facts).unwrap();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_at(at, &mut bytes).unwrap();
        bytes
    };
    let table = |at: u64| {
        assert!(layout::ACPI.contains(&at) && at.is_multiple_of(16), "{at:#x}");
        let len = u32_at(&read(at, 36), 4) as usize;
        let bytes = read(at, len);
        assert_eq!(sum(&bytes), 0, "checksum of the table at {at:#x}");
        bytes
    };
    let root = read(rsdp, 36);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(&root), root[15]), (0, 0, 2));
    let xsdt = table(u64_at(&root, 24));
    let mut found = BTreeMap::new();
    for entry in xsdt[36..].chunks(8) {
        let bytes = table(u64_at(entry, 0));
        found.insert(String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes);
    }
    let dsdt = table(u64_at(&found["FACP"], 140));
    found.insert("DSDT".to_owned(), dsdt);
    found.insert("XSDT".to_owned(), xsdt);
    found
}

#[test]
fn every_table_is_reached_from_the_root_and_sums_to_zero() {
    let names: Vec<String> = tables(&facts()).into_keys().collect();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "MCFG", "XSDT"]);
    let without = tables(&Facts { apic_ids: vec![0], serial: false, windows: Vec::new() });
    assert!(!without.contains_key("MCFG"));
}

#[test]
fn the_fadt_says_what_is_absent_and_where_power_goes() {
    let fadt = &tables(&facts())["FACP"];
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0x34);
    let flags = u32_at(fadt, 112);
    for bit in [4, 5, 10, 12, 20] {
        assert_ne!(flags & 1 << bit, 0, "flag {bit}");
    }
    // Reset register: system I/O, 8 bits, byte access.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0x600, 1));
    assert_eq!((u64_at(fadt, 248), u64_at(fadt, 260)), (0x601, 0x602));
}

#[test]
fn the_madt_has_every_vcpu_and_the_ioapic() {
    for cpus in [1, 4, 255] {
        let madt = &tables(&Facts { apic_ids: (0..cpus).collect(), ..facts() })["APIC"];
        let (mut at, mut apics, mut ioapics) = (44, Vec::new(), 0);
        while at < madt.len() {
            match madt[at] {
                0 => apics.push((madt[at + 3], u32_at(madt, at + 4))),
                1 => {
                    assert_eq!((u32_at(madt, at + 4), u32_at(madt, at + 8)), (0xfec0_0000, 16));
                    ioapics += 1;
                }
                kind => panic!("entry of type {kind}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(apics, (0..cpus).map(|id| (id, 1)).collect::<Vec<_>>());
        assert_eq!(ioapics, 1);
    }
}

#[test]
fn the_mcfg_covers_bus_zero() {
    let mcfg = &tables(&facts())["MCFG"];
    assert_eq!(mcfg.len(), 60);
    assert_eq!(u64_at(mcfg, 44), layout::ECAM);
    assert_eq!(mcfg[52..56], [0, 0, 0, 0]);
}

#[test]
fn the_dsdt_names_the_uart_only_where_there_is_one() {
    let has = |facts: &Facts, name: &[u8]| tables(facts)["DSDT"].windows(4).any(|w| w == name);
    for name in [b"PCI0", b"ECAM", b"GED_", b"PWRB", b"PEVT", b"COM1", b"_S5_"] {
        assert!(has(&facts(), name), "{name:?}");
    }
    assert!(!has(&Facts { serial: false, ..facts() }, b"COM1"));
    assert!(!has(&Facts { windows: Vec::new(), ..facts() }, b"PCI0"));
}

#[test]
fn iasl_takes_every_table_apart_and_puts_it_together_again() {
    use std::process::Command;
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl (package acpica-tools) is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in tables(&facts()) {
        let file = folder.path().join(format!("{name}.aml"));
        std::fs::write(&file, &bytes).unwrap();
        let run = |args: &[&str], file: &std::path::Path| {
            let output = Command::new("iasl").args(args).arg(file).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {text}");
            text
        };
        run(&["-d"], &file);
        let text = run(&[], &file.with_extension("dsl"));
        assert!(text.contains("0 Errors"), "{name}: {text}");
    }
}
