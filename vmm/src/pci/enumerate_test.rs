//! Plays a kernel's enumeration of the bus.

use super::layout::{BAR_SIZE, CONFIG, common};
use super::mock::{ECAM, MMIO, Rig};

#[test]
fn absent_functions_read_as_all_ones_and_take_no_writes() {
    let (rig, _) = Rig::recorded(&[1, 2]);
    for device in 0..32 {
        for function in 0..8 {
            let at = Rig::config(device, function << 12);
            let there = (1..=2).contains(&device) && function == 0;
            assert_eq!(rig.read(at, 4) != 0xffff_ffff, there, "{device}.{function}");
            if !there {
                rig.write(at + 4, 7, 2);
                assert_eq!(rig.read(at + 4, 4), 0xffff_ffff);
            }
        }
    }
}

#[test]
fn the_header_is_a_modern_virtio_device() {
    let (rig, _) = Rig::recorded(&[1]);
    assert_eq!(rig.read(Rig::config(1, 0), 4), 0x1042_1af4);
    assert_eq!(rig.read(Rig::config(1, 8), 4), 0x0180_0001);
    assert_eq!(rig.read(Rig::config(1, 0x0e), 1), 0, "single function, type 0");
    assert_eq!(rig.read(Rig::config(1, 0x3d), 1), 0, "no interrupt pin");
    assert_eq!(rig.read(Rig::config(1, 0x30), 4), 0, "no ROM");
    assert_eq!(rig.read(Rig::config(1, 0x100), 4), 0, "no extended capabilities");
    // IDs are read-only.
    rig.write(Rig::config(1, 0), 0, 4);
    assert_eq!(rig.read(Rig::config(1, 0), 4), 0x1042_1af4);
}

#[test]
fn bars_are_assigned_and_tell_their_size() {
    let (rig, _) = Rig::recorded(&[1, 1]);
    for device in 1..=2 {
        for (bar, window) in [(0x10, ECAM + 0x10_0000), (0x14, MMIO)] {
            let at = Rig::config(device, bar);
            let home = rig.read(at, 4);
            assert_eq!(home, window + device * u64::from(BAR_SIZE));
            rig.write(at, 0xffff_ffff, 4);
            assert_eq!(rig.read(at, 4), u64::from(!(BAR_SIZE - 1)));
            rig.write(at, home, 4);
            assert_eq!(rig.read(at, 4), home);
        }
        for bar in [0x18, 0x1c, 0x20, 0x24, 0x30] {
            rig.write(Rig::config(device, bar), 0xffff_ffff, 4);
            assert_eq!(rig.read(Rig::config(device, bar), 4), 0, "nothing at {bar:#x}");
        }
    }
}

/// Walks the list and gives (type, bar, offset, length) of virtio's capabilities and where MSI-X is.
fn capabilities(rig: &Rig, device: u64) -> (Vec<(u64, u64, u64, u64)>, u64) {
    let mut at = rig.read(Rig::config(device, 0x34), 1);
    let (mut found, mut msix) = (Vec::new(), 0);
    let mut steps = 0;
    while at != 0 {
        assert_eq!(at % 4, 0);
        steps += 1;
        assert!(steps < 16, "the list loops");
        let read = |offset, len| rig.read(Rig::config(device, at + offset), len);
        match read(0, 1) {
            9 => found.push((read(3, 1), read(4, 1), read(8, 4), read(12, 4))),
            0x11 => msix = at,
            other => panic!("capability {other:#x}"),
        }
        at = read(1, 1);
    }
    (found, msix)
}

#[test]
fn capabilities_are_complete_and_inside_their_bars() {
    let (rig, _) = Rig::recorded(&[3]);
    let (found, msix) = capabilities(&rig, 1);
    let mut kinds: Vec<_> = found.iter().map(|cap| cap.0).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    for (kind, bar, offset, length) in found {
        assert!(bar < 2 && offset + length <= u64::from(BAR_SIZE), "capability {kind}");
    }
    let read = |offset, len| rig.read(Rig::config(1, msix + offset), len);
    assert_eq!(read(2, 2), 3, "a vector per queue and one for the configuration");
    assert_eq!(read(4, 4), 0x2000);
    assert_eq!(read(8, 4), 0x2001);
}

#[test]
fn registers_are_seen_only_while_memory_is_decoded_at_home() {
    let (rig, _) = Rig::recorded(&[1]);
    let home = rig.read(Rig::config(1, 0x10), 4);
    let queues = common::NUM_QUEUES as u64;
    assert_eq!(rig.read(home + queues, 2), 0xffff);
    let (registers, _) = rig.open(1);
    assert_eq!(registers, home);
    assert_eq!(rig.read(home + queues, 2), 1);
    assert_eq!(rig.read(home + u64::from(CONFIG) + 2, 2), 0x0302);

    // Moved inside the windows: gone from home, answered with exits at the new place.
    let elsewhere = MMIO + 0x8_0000;
    rig.write(Rig::config(1, 0x10), elsewhere, 4);
    assert_eq!(rig.read(home + queues, 2), 0xffff);
    assert_eq!(rig.read(elsewhere + queues, 2), 1);
    assert_eq!(rig.read(elsewhere + u64::from(CONFIG) + 2, 2), 0x0302);
    // Moved out of the windows: nowhere.
    rig.write(Rig::config(1, 0x10), 0x8000_0000, 4);
    assert_eq!(rig.read(elsewhere + queues, 2), 0xffff);
    assert_eq!(rig.read(0x8000_0000 + queues, 2), 0xffff);
    // And back.
    rig.write(Rig::config(1, 0x10), home, 4);
    assert_eq!(rig.read(home + queues, 2), 1);
    rig.write(Rig::config(1, 4), 0, 2);
    assert_eq!(rig.read(home + queues, 2), 0xffff);
}

#[test]
fn the_window_capability_reaches_the_registers() {
    let (rig, _) = Rig::recorded(&[1]);
    let (registers, _) = rig.open(1);
    let window = 0x90;
    let select = |bar: u64, offset: u64, length: u64| {
        rig.write(Rig::config(1, window + 4), bar, 1);
        rig.write(Rig::config(1, window + 8), offset, 4);
        rig.write(Rig::config(1, window + 12), length, 4);
    };
    select(0, common::NUM_QUEUES as u64, 2);
    assert_eq!(rig.read(Rig::config(1, window + 16), 2), 1);
    select(0, common::STATUS as u64, 1);
    rig.write(Rig::config(1, window + 16), 1, 1);
    assert_eq!(rig.read(registers + common::STATUS as u64, 1), 1);
    assert_eq!(rig.read(Rig::config(1, window + 16), 1), 1);
    // Nonsense is ignored.
    select(7, 0xffff_ffff, 0xffff_ffff);
    rig.write(Rig::config(1, window + 16), 1, 4);
}

#[test]
fn windows_that_cannot_work_are_refused() {
    use std::sync::Arc;

    use super::wiring::{Recorder, Wiring};
    use super::{Pci, PciError, PciWindows, Shadow};

    let memory = Arc::new(strata_virtio::memory::Memory::anonymous(4096).unwrap());
    for (ecam_base, mmio32) in [
        (ECAM + 0x10_0000, MMIO..MMIO + 0x10_0000),
        (ECAM, MMIO..MMIO + 0x1000),
        (ECAM, MMIO + 1..MMIO + 0x10_0000),
        (1 << 32, MMIO..MMIO + 0x10_0000),
        (ECAM, 0x1_0000_0000..0x1_0010_0000),
    ] {
        let windows = PciWindows { ecam_base, mmio32 };
        let wiring = Arc::new(Recorder::default()) as Arc<dyn Wiring>;
        let shadow = Arc::new(Shadow::anonymous().unwrap());
        let refused = Pci::new(wiring, &windows, &memory, shadow, Vec::new());
        assert!(matches!(refused, Err(PciError::Windows(_))), "{windows:?}");
    }
}
