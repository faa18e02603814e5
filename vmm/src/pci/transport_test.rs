//! Plays a driver's start-up, reset and the ways it can go wrong.

use std::time::{Duration, Instant};

use super::layout::{CONFIG, ISR, TABLE, common};
use super::mock::Rig;
use super::wiring::Recorder;

const FEATURES: u64 = 1 << 32 | 1 << 29 | 0x5;

/// A driver of one device, by the book (virtio 1.2 section 3.1.1).
struct Driver<'r> {
    rig: &'r Rig,
    registers: u64,
    doorbells: u64,
}

impl<'r> Driver<'r> {
    fn new(rig: &'r Rig) -> Self {
        let (registers, doorbells) = rig.open(1);
        Self { rig, registers, doorbells }
    }

    fn read(&self, field: usize, len: usize) -> u64 {
        self.rig.read(self.registers + field as u64, len)
    }

    fn write(&self, field: usize, value: u64, len: usize) {
        self.rig.write(self.registers + field as u64, value, len);
    }

    fn status(&self) -> u64 {
        self.read(common::STATUS, 1)
    }

    fn offered(&self) -> u64 {
        self.write(common::DEVICE_FEATURE_SELECT, 0, 4);
        let low = self.read(common::DEVICE_FEATURE, 4);
        self.write(common::DEVICE_FEATURE_SELECT, 1, 4);
        low | self.read(common::DEVICE_FEATURE, 4) << 32
    }

    fn accept(&self, features: u64) -> bool {
        self.write(common::STATUS, 1, 1);
        self.write(common::STATUS, 3, 1);
        self.write(common::DRIVER_FEATURE_SELECT, 0, 4);
        self.write(common::DRIVER_FEATURE, features & 0xffff_ffff, 4);
        self.write(common::DRIVER_FEATURE_SELECT, 1, 4);
        self.write(common::DRIVER_FEATURE, features >> 32, 4);
        self.write(common::STATUS, 0xb, 1);
        self.status() & 8 != 0
    }

    fn queue(&self, index: u64, vector: u64) {
        self.write(common::QUEUE_SELECT, index, 2);
        assert_eq!(self.read(common::QUEUE_SIZE, 2), 256);
        self.write(common::QUEUE_SIZE, 128, 2);
        for (field, value) in [
            (common::QUEUE_DESC, 0x1_0000_1000_u64),
            (common::QUEUE_DRIVER, 0x2000),
            (common::QUEUE_DEVICE, 0x3000),
        ] {
            self.write(field, value & 0xffff_ffff, 4);
            self.write(field + 4, value >> 32, 4);
            assert_eq!(self.read(field, 8), value);
        }
        self.write(common::QUEUE_VECTOR, vector, 2);
        assert_eq!(self.read(common::QUEUE_VECTOR, 2), vector);
        self.write(common::QUEUE_ENABLE, 1, 2);
    }

    fn vector(&self, index: u64, data: u64) {
        let entry = TABLE as usize + 16 * index as usize;
        self.write(entry, 0xfee0_0000, 4);
        self.write(entry + 4, 0, 4);
        self.write(entry + 8, data, 4);
        self.write(entry + 12, 0, 4);
    }

    fn enable_msix(&self) {
        self.rig.write(Rig::config(1, 0x42), 0x8000, 2);
    }

    fn run(&self, queues: u64) {
        assert!(self.accept(FEATURES));
        self.enable_msix();
        self.write(common::CONFIG_VECTOR, 0, 2);
        self.vector(0, 0x40);
        for index in 0..queues {
            self.vector(index + 1, 0x41 + index);
            self.queue(index, index + 1);
        }
        self.write(common::STATUS, 0xf, 1);
        assert_eq!(self.status(), 0xf);
    }
}

fn clean(recorder: &Recorder) {
    assert_eq!(recorder.seen().breaches, Vec::<String>::new());
}

#[test]
fn a_driver_brings_the_device_up_and_resets_it() {
    let (rig, recorder) = Rig::recorded(&[2]);
    let driver = Driver::new(&rig);
    assert_eq!(driver.offered(), FEATURES | 1 << 40);
    driver.run(2);
    {
        let seen = rig.seen[0].lock().unwrap();
        assert_eq!(seen.features, Some(FEATURES));
        let setup = seen.running[1].as_ref().unwrap();
        assert_eq!((setup.size, setup.desc, setup.base), (128, 0x1_0000_1000, 0));
        let wired = recorder.seen();
        // Two calls and the configuration; a doorbell per queue, four bytes apart.
        assert_eq!(wired.attached.len(), 3);
        let bells: Vec<_> = wired.doorbells.keys().copied().collect();
        assert_eq!(bells, [driver.doorbells, driver.doorbells + 4]);
        let mut sent: Vec<_> = wired.routes.values().map(|message| message.data).collect();
        sent.sort_unstable();
        assert_eq!(sent, [0x40, 0x41, 0x42]);
    }
    driver.write(common::STATUS, 0, 1);
    assert_eq!(driver.status(), 0);
    {
        let seen = rig.seen[0].lock().unwrap();
        assert!(seen.running.iter().all(Option::is_none));
        assert_eq!(seen.resets, 1);
        assert!(recorder.seen().doorbells.is_empty() && recorder.seen().attached.is_empty());
    }
    driver.run(2);
    clean(&recorder);
    let devices = rig.pci.into_devices();
    assert_eq!(devices.len(), 1);
    let wired = recorder.seen();
    assert!(wired.gsis.is_empty() && wired.attached.is_empty() && wired.doorbells.is_empty());
    drop(wired);
    clean(&recorder);
}

#[test]
fn a_kick_is_there_when_a_queue_starts() {
    let (rig, _) = Rig::recorded(&[1]);
    Driver::new(&rig).run(1);
    let seen = rig.seen[0].lock().unwrap();
    let kick = seen.running[0].as_ref().unwrap().kick.as_ref().unwrap();
    let mut count = [0; 8];
    assert_eq!(nix::unistd::read(kick, &mut count).unwrap(), 8);
    drop(seen);
    // A doorbell that comes to us all the same rings too.
    rig.write(Driver::new(&rig).doorbells, 0, 2);
    let seen = rig.seen[0].lock().unwrap();
    let kick = seen.running[0].as_ref().unwrap().kick.as_ref().unwrap();
    assert_eq!(nix::unistd::read(kick, &mut count).unwrap(), 8);
}

#[test]
fn features_that_do_not_fit_are_refused() {
    for features in [0x5, FEATURES | 2, FEATURES | 1 << 34] {
        let (rig, _) = Rig::recorded(&[1]);
        let driver = Driver::new(&rig);
        assert!(!driver.accept(features), "{features:#x}");
        // And so no queue starts.
        driver.queue(0, 0xffff);
        driver.write(common::STATUS, 0xf, 1);
        assert_eq!(driver.status() & 4, 0);
        let seen = rig.seen[0].lock().unwrap();
        assert!(seen.features.is_none() && seen.running[0].is_none());
    }
}

#[test]
fn status_bits_are_added_in_order_and_never_taken_back() {
    let (rig, _) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    driver.write(common::STATUS, 0xc, 1);
    assert_eq!(driver.status(), 0, "neither FEATURES_OK nor DRIVER_OK before DRIVER");
    driver.run(1);
    driver.write(common::STATUS, 1, 1);
    assert_eq!(driver.status(), 0xf);
    driver.write(common::STATUS, 0x4f, 1);
    assert_eq!(driver.status(), 0xf, "NEEDS_RESET is not the driver's");
    // Features are settled.
    driver.write(common::DRIVER_FEATURE_SELECT, 0, 4);
    driver.write(common::DRIVER_FEATURE, 0, 4);
    assert_eq!(driver.read(common::DRIVER_FEATURE, 4), FEATURES & 0xffff_ffff);
}

#[test]
fn a_running_queue_cannot_be_changed_only_reset() {
    let (rig, recorder) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    assert!(driver.accept(FEATURES | 1 << 40));
    driver.queue(0, 0xffff);
    driver.write(common::STATUS, 0xf, 1);
    driver.write(common::QUEUE_DESC, 0xdead_0000, 4);
    driver.write(common::QUEUE_SIZE, 16, 2);
    assert_eq!(driver.read(common::QUEUE_DESC, 4), 0x1000);
    assert_eq!(driver.read(common::QUEUE_SIZE, 2), 128);
    driver.write(common::QUEUE_RESET, 1, 2);
    assert_eq!(driver.read(common::QUEUE_RESET, 2), 0);
    assert_eq!(driver.read(common::QUEUE_ENABLE, 2), 0);
    assert!(rig.seen[0].lock().unwrap().running[0].is_none());
    assert!(recorder.seen().doorbells.is_empty());
    driver.queue(0, 0xffff);
    assert!(rig.seen[0].lock().unwrap().running[0].is_some());
    clean(&recorder);
}

#[test]
fn vectors_that_do_not_exist_are_not_taken() {
    let (rig, _) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    for (vector, answer) in [(1, 1), (2, 0xffff), (0xfffe, 0xffff), (0, 0)] {
        driver.write(common::CONFIG_VECTOR, vector, 2);
        assert_eq!(driver.read(common::CONFIG_VECTOR, 2), answer);
    }
    driver.write(common::QUEUE_SELECT, 9, 2);
    assert_eq!(driver.read(common::QUEUE_SIZE, 2), 0);
    assert_eq!(driver.read(common::QUEUE_VECTOR, 2), 0xffff);
}

#[test]
fn a_queue_that_cannot_start_asks_for_a_reset() {
    let (rig, _) = Rig::recorded(&[1]);
    rig.seen[0].lock().unwrap().refuse_start = true;
    let driver = Driver::new(&rig);
    assert!(driver.accept(FEATURES));
    driver.queue(0, 0xffff);
    driver.write(common::STATUS, 0xf, 1);
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(rig.read(driver.doorbells + u64::from(ISR), 1), 2);
    assert_eq!(rig.read(driver.doorbells + u64::from(ISR), 1), 0);
    rig.seen[0].lock().unwrap().refuse_start = false;
    driver.write(common::STATUS, 0, 1);
    driver.run(1);
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_changed_configuration_is_shown_under_a_new_generation() {
    let (rig, _) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    driver.run(1);
    let before = driver.read(common::GENERATION, 1);
    rig.seen[0].lock().unwrap().config[..8].copy_from_slice(&[9; 8]);
    rig.notifiers[0].config_changed();
    eventually("an ISR of 2", || rig.read(driver.doorbells + u64::from(ISR), 1) == 2);
    assert_eq!(driver.read(CONFIG as usize, 8), 0x0909_0909_0909_0909);
    assert_ne!(driver.read(common::GENERATION, 1), before);

    rig.notifiers[0].needs_reset();
    eventually("NEEDS_RESET", || driver.status() & 0x40 != 0);
    driver.write(common::STATUS, 0, 1);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_writes_the_configuration_and_reads_it_back() {
    let (rig, _) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    driver.write(CONFIG as usize + 32, 0, 1);
    assert_eq!(driver.read(CONFIG as usize + 32, 1), 0);
    // Past the end: lost, and reads as zero.
    driver.write(CONFIG as usize + 58, 0xffff_ffff, 4);
    assert_eq!(driver.read(CONFIG as usize + 58, 4), 0xffff);
    driver.write(CONFIG as usize + 60, 0xffff_ffff, 4);
    assert_eq!(driver.read(CONFIG as usize + 60, 4), 0);
}

#[test]
fn without_messages_the_isr_tells_of_queues() {
    let (rig, _) = Rig::recorded(&[1]);
    let driver = Driver::new(&rig);
    assert!(driver.accept(FEATURES));
    driver.queue(0, 0xffff);
    driver.write(common::STATUS, 0xf, 1);
    let call = rig.seen[0].lock().unwrap().running[0].as_mut().unwrap().call.take().unwrap();
    nix::unistd::write(&call, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(rig.read(driver.doorbells + u64::from(ISR), 1), 1);
    assert_eq!(rig.read(driver.doorbells + u64::from(ISR), 1), 0);
}

#[test]
fn doorbells_follow_their_bar() {
    let (rig, recorder) = Rig::recorded(&[2]);
    let driver = Driver::new(&rig);
    driver.run(2);
    let elsewhere = super::mock::MMIO + 0x8_0000;
    rig.write(Rig::config(1, 0x14), elsewhere, 4);
    assert_eq!(recorder.seen().doorbells.keys().copied().collect::<Vec<_>>(), [elsewhere, elsewhere + 4]);
    rig.write(Rig::config(1, 0x14), 0x1000_0000, 4);
    assert!(recorder.seen().doorbells.is_empty(), "not where RAM may be");
    rig.write(Rig::config(1, 0x14), elsewhere, 4);
    rig.write(Rig::config(1, 4), 0, 2);
    assert!(recorder.seen().doorbells.is_empty());
    rig.write(Rig::config(1, 4), 6, 2);
    assert_eq!(recorder.seen().doorbells.len(), 2);
    clean(&recorder);
}
