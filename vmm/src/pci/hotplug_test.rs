//! Devices come and go under a guest that uses them.

use std::sync::Arc;

use super::layout::common;
use super::mock::{MMIO, Mock, Rig};
use super::{DEVICES_MAX, Notifier, PciDevice, PciError};

fn device(id: &str) -> PciDevice {
    let (mock, _) = Mock::new(2, 1, 60);
    PciDevice { id: id.into(), notifier: Notifier::new(), device: Box::new(mock), slot: None }
}

/// Has a driver start the device in `slot`, with its messages on. Its BARs.
fn start(rig: &Rig, slot: u64) -> (u64, u64) {
    let (registers, doorbells) = rig.open(slot);
    let table = registers + 0x2000;
    for vector in 0..2 {
        rig.write(table + 16 * vector, 0xfee0_0000, 4);
        rig.write(table + 16 * vector + 8, 0x30 + vector, 4);
        rig.write(table + 16 * vector + 12, 0, 4);
    }
    rig.write(Rig::config(slot, 0x42), 0x8000, 2);
    let common = |at: usize, value: u64, len: usize| rig.write(registers + at as u64, value, len);
    common(common::STATUS, 3, 1);
    common(common::DRIVER_FEATURE_SELECT, 1, 4);
    common(common::DRIVER_FEATURE, 1, 4);
    common(common::STATUS, 0xb, 1);
    common(common::CONFIG_VECTOR, 0, 2);
    common(common::QUEUE_SELECT, 0, 2);
    common(common::QUEUE_VECTOR, 1, 2);
    common(common::QUEUE_DESC, 0x1000, 8);
    common(common::QUEUE_DRIVER, 0x2000, 8);
    common(common::QUEUE_DEVICE, 0x3000, 8);
    common(common::QUEUE_ENABLE, 1, 2);
    common(common::STATUS, 0xf, 1);
    (registers, doorbells)
}

fn is_absent(rig: &Rig, slot: u64) -> bool {
    (0..0x100).step_by(4).all(|register| rig.read(Rig::config(slot, register), 4) == 0xffff_ffff)
}

#[test]
fn what_goes_leaves_nothing_behind() {
    let (rig, recorder) = Rig::recorded(&[1, 1]);
    let (registers, doorbells) = start(&rig, 1);
    assert!(!recorder.seen().attached.is_empty() && recorder.seen().doorbells.len() == 1);
    let gone = rig.pci.take(1).unwrap();
    assert_eq!((gone.id.as_str(), gone.slot), ("disk0", Some(1)));
    {
        let seen = recorder.seen();
        assert!(seen.gsis.is_empty() && seen.attached.is_empty() && seen.doorbells.is_empty());
        assert!(seen.breaches.is_empty(), "{:?}", seen.breaches);
    }
    let device = rig.seen[0].lock().unwrap();
    assert!(device.running.iter().all(Option::is_none) && device.resets == 1);
    drop(device);
    assert!(is_absent(&rig, 1) && !is_absent(&rig, 2));
    for at in [registers, registers + common::STATUS as u64, doorbells, doorbells + 0x1000] {
        assert_eq!(rig.read(at, 4), 0xffff_ffff, "{at:#x}");
    }
    // Nothing is there to be written to, and what the device says is nobody's to hear.
    rig.write(Rig::config(1, 4), 7, 2);
    rig.write(registers + common::STATUS as u64, 1, 1);
    rig.write(doorbells, 0, 4);
    rig.notifiers[0].config_changed();
    assert!(is_absent(&rig, 1));
    assert!(rig.pci.take(1).is_none() && rig.pci.tear(1).is_none());
    assert_eq!((rig.pci.slot_of("disk0"), rig.pci.slot_of("disk1")), (None, Some(2)));
    for slot in [0, 32, 255] {
        assert!(rig.pci.take(slot).is_none() && rig.pci.tear(slot).is_none());
        rig.pci.exorcise(slot);
    }
}

#[test]
fn what_comes_has_the_first_free_slot_and_works() {
    let (rig, recorder) = Rig::recorded(&[1, 1, 1]);
    drop(rig.pci.take(2));
    assert_eq!(rig.pci.insert(device("new")).unwrap(), 2);
    assert_eq!(rig.pci.slot_of("new"), Some(2));
    assert_eq!(rig.read(Rig::config(2, 0), 4), 0x1042_1af4);
    let (registers, _) = start(&rig, 2);
    assert_eq!(rig.read(registers + common::STATUS as u64, 1), 0xf);
    assert_eq!(recorder.seen().doorbells.len(), 1);
    // Where a kernel puts the BARs of what comes late: beside those it knows, in the other window.
    rig.write(Rig::config(2, 0x10), MMIO + 0x8_0000, 4);
    assert_eq!(rig.read(MMIO + 0x8_0000 + common::STATUS as u64, 1), 0xf);
    assert_eq!(rig.pci.insert(device("more")).unwrap(), 4);
    drop(rig.pci.tear(2));
    assert!(recorder.seen().breaches.is_empty() && recorder.seen().gsis.is_empty());
}

#[test]
fn a_driver_that_resets_what_was_torn_away_does_not_wait_for_ever() {
    let (rig, _) = Rig::recorded(&[1, 1]);
    let (registers, doorbells) = start(&rig, 1);
    let moved = MMIO + 0x8_0000;
    start(&rig, 2);
    rig.write(Rig::config(2, 0x10), moved, 4);
    drop(rig.pci.tear(1));
    drop(rig.pci.tear(2));
    assert!(is_absent(&rig, 1) && is_absent(&rig, 2));
    for home in [registers, moved] {
        rig.write(home + common::STATUS as u64, 0, 1);
        assert_eq!(rig.read(home + common::STATUS as u64, 1), 0);
    }
    assert_eq!(rig.read(doorbells + 0x1000, 1), 0, "no interrupt");
    // Until it has let go, another slot is taken; then this one is as any other.
    assert_eq!(rig.pci.insert(device("a")).unwrap(), 3);
    rig.pci.exorcise(1);
    assert_eq!(rig.read(registers + common::STATUS as u64, 1), 0xff);
    assert_eq!(rig.read(moved + common::STATUS as u64, 1), 0);
    assert_eq!(rig.pci.insert(device("b")).unwrap(), 1);
    // A slot that is in use has nothing to be rid of.
    rig.pci.exorcise(1);
    assert_eq!(rig.read(Rig::config(1, 0), 4), 0x1042_1af4);
}

#[test]
fn the_last_slot_is_used_and_then_there_is_none() {
    let (rig, _) = Rig::recorded(&[1; DEVICES_MAX - 1]);
    rig.open(7);
    drop(rig.pci.tear(7));
    // The last clean one, then the one that a guest may not know to be gone, then none.
    assert_eq!(rig.pci.insert(device("last")).unwrap(), 31);
    assert_eq!(rig.pci.insert(device("haunted")).unwrap(), 7);
    assert!(matches!(rig.pci.insert(device("none")), Err(PciError::Full { id }) if id == "none"));
    assert!(matches!(
        rig.pci.insert(PciDevice { slot: Some(7), ..device("taken") }),
        Err(PciError::Full { .. })
    ));
}

#[test]
fn slots_are_kept_over_a_reboot() {
    let (rig, recorder) = Rig::recorded(&[1, 1, 1]);
    drop(rig.pci.take(1));
    let left = rig.pci.into_devices();
    let slots: Vec<_> = left.iter().map(|device| (device.id.clone(), device.slot)).collect();
    assert_eq!(slots, [("disk1".to_owned(), Some(2)), ("disk2".to_owned(), Some(3))]);
    let memory = Arc::new(strata_virtio::memory::Memory::anonymous(1 << 20).unwrap());
    let shadow = Arc::new(super::Shadow::anonymous().unwrap());
    let devices = std::iter::once(device("new")).chain(left).collect();
    let pci = super::Pci::new(recorder, &super::mock::windows(), &memory, shadow, devices).unwrap();
    assert_eq!(["new", "disk1", "disk2"].map(|id| pci.slot_of(id)), [Some(1), Some(2), Some(3)]);
}

#[test]
fn guests_that_hammer_at_what_goes_meet_nothing() {
    let (rig, recorder) = Rig::recorded(&[1, 1]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for slot in 1..=2 {
            let (rig, stop) = (&rig, &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (registers, doorbells) = start(rig, slot);
                    rig.write(doorbells, 0, 4);
                    rig.write(registers + common::STATUS as u64, 0, 1);
                }
            });
        }
        for round in 0..100 {
            let gone = if round % 2 == 0 { rig.pci.take(1) } else { rig.pci.tear(1) };
            rig.pci.exorcise(1);
            assert_eq!(rig.pci.insert(PciDevice { slot: None, ..gone.unwrap() }).unwrap(), 1);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(rig.pci.into_devices().len(), 2);
    let seen = recorder.seen();
    assert!(seen.breaches.is_empty(), "{:?}", seen.breaches);
    assert!(seen.gsis.is_empty() && seen.attached.is_empty() && seen.doorbells.is_empty());
}
