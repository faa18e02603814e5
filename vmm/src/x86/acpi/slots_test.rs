//! The bytes, as ACPI 6.4 section 20 has them, and what a kernel makes of them while it boots.

use super::super::{Facts, dsdt};
use super::*;

fn block(bus: bool) -> Vec<u8> {
    let windows = if bus { vec![layout::PCI32] } else { Vec::new() };
    dsdt::definition_block(&Facts { apic_ids: vec![0], serial: false, windows })
}

fn has(bytes: &[u8], parts: &[&[u8]]) -> bool {
    let wanted = parts.concat();
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn count(bytes: &[u8], name: &[u8]) -> usize {
    bytes.windows(name.len()).filter(|window| *window == name).count()
}

#[test]
fn a_slot_is_told_and_given_back() {
    let aml = block(true);
    // Device (S03) { Name (_ADR, 0x30000) }
    let told: [&[u8]; 4] = [b"\x5b\x82\x0fS03_", b"\x08_ADR", b"\x0c", &[0, 0, 3, 0]];
    assert!(has(&aml, &told));
    // Device (E03) { Name (_ADR, 0x30001) Method (_EJ0, 1) { EJCT = 8 } }
    let gives: [&[u8]; 6] =
        [b"\x5b\x82\x1dE03_", b"\x08_ADR", b"\x0c", &[1, 0, 3, 0], b"\x14\x0d_EJ0\x01", b"\x70\x0a\x08EJCT"];
    assert!(has(&aml, &gives));
    // The last slot's bit is the highest.
    assert!(has(&aml, &[b"_EJ0\x01\x70\x0c", &[0, 0, 0, 0x80], b"EJCT"]));
    // If (Arg0 & 8) { Notify (S03, Arg1) }
    assert!(has(&aml, &[b"\xa0\x0c\x7b\x68\x0a\x08\x00", b"\x86S03_\x69"]));
    let slots = DEVICES_MAX;
    assert_eq!(
        (count(&aml, b"_EJ0"), count(&aml, b"\x82\x0fS"), count(&aml, b"\x86S")),
        (slots, slots, slots)
    );
}

#[test]
fn the_event_method_reads_each_register_once_and_tells_what_goes_first() {
    let aml = block(true);
    // OperationRegion (GEDR, SystemIO, 0x610, 8) Field (GEDR, DWordAcc, NoLock, Preserve) { CHCK, 32, EJCT, 32 }
    assert!(has(&aml, &[b"\x5b\x80GEDR\x01\x0b\x10\x06\x0a\x08", b"\x5b\x81\x10GEDR\x03CHCK\x20EJCT\x20"]));
    // Local0 = CHCK; If (Local0 & 1) { Notify (\_SB.PWRB, 0x80) }; TELL (EJCT, 3); TELL (Local0, 1)
    let event: [&[u8]; 6] = [
        b"\x70CHCK\x60",
        b"\xa0\x12\x7b\x60\x01\x00\x86\\\x2e_SB_PWRB\x0a\x80",
        b"\\\x2f\x03_SB_PCI0TELL",
        b"EJCT\x0a\x03",
        b"\\\x2f\x03_SB_PCI0TELL",
        b"\x60\x01",
    ];
    assert!(has(&aml, &event), "{aml:02x?}");
    // Without a bus there is a button, and nothing that refers to slots.
    let plain = block(false);
    assert!(has(&plain, &event[..2]));
    assert_eq!((count(&plain, b"_EJ0"), count(&plain, b"TELL")), (0, 0));
}

#[test]
fn nothing_of_it_is_run_at_boot_and_it_is_small() {
    let aml = block(true);
    // The one there is says that pvpanic is there, a plain value.
    assert_eq!(count(&aml, b"_STA"), 1);
    for method in [&b"_INI"[..], b"_OSC", b"_DSM", b"_PS0", b"_PRT", b"_SUN", b"_RMV", b"_REG"] {
        assert_eq!(count(&aml, method), 0, "{}", String::from_utf8_lossy(method));
    }
    let size = aml.len() - block(false).len();
    assert!(size < 2600, "{size} bytes");
    // A kernel takes the first object of a slot for what the slot is: it must be the one without the method.
    let place = |name: &[u8]| aml.windows(name.len()).position(|window| window == name).unwrap();
    assert!(place(b"S01_") < place(b"E01_"));
}
