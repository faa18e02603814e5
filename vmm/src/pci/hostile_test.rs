//! A guest that writes anything anywhere: nothing panics, what must hold afterwards holds.

use super::layout::common;
use super::mock::{ECAM, MMIO, Rig};

/// xorshift64*: the same walk for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Where a step goes: mostly to registers that mean something.
fn address(random: &mut Random, rig: &Rig) -> u64 {
    let device = 1 + random.below(2);
    let bar = |register| rig.read(Rig::config(device, register), 4);
    match random.below(8) {
        0 => Rig::config(device, random.below(0x120)),
        1 => Rig::config(device, [4, 0x10, 0x14, 0x42, 0x94, 0x98, 0x9c, 0xa0][random.below(8) as usize]),
        2 | 3 => bar(0x10) + random.below(common::LEN as u64 + 8),
        4 => bar(0x10) + [0, 0x1000, 0x2000, 0x3000][random.below(4) as usize] + random.below(80),
        5 => bar(0x14) + [0, 0x1000, 0x2000, 0x3000][random.below(4) as usize] + random.below(40),
        6 => bar(0x10) + [0x14, 0x16, 0x1c, 0x3a, 0x0c, 0x08][random.below(6) as usize],
        _ => [ECAM, MMIO][random.below(2) as usize] + random.below(0x20_0000),
    }
}

fn value(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.next(),
        1 => [0, 1, 3, 0xb, 0xf, 0x8000, 0xc000, 6, 2][random.below(9) as usize],
        2 => u64::MAX,
        3 => 0xfee0_0000 | random.next() << 32,
        _ => random.below(300),
    }
}

/// Begins as a driver does, from wherever the walk has got to, so that it also walks among running queues.
fn behave(random: &mut Random, rig: &Rig) {
    let device = 1 + random.below(2);
    let bar = device * u64::from(super::layout::BAR_SIZE);
    rig.write(Rig::config(device, 0x10), ECAM + 0x10_0000 + bar, 4);
    rig.write(Rig::config(device, 0x14), MMIO + bar, 4);
    let (registers, _) = rig.open(device);
    let put = |field: usize, value: u64, len| rig.write(registers + field as u64, value, len);
    put(common::STATUS, 0, 1);
    put(common::STATUS, 3, 1);
    put(common::DRIVER_FEATURE_SELECT, 1, 4);
    put(common::DRIVER_FEATURE, 1 | random.below(2) << 8, 4);
    put(common::STATUS, 0xb, 1);
    put(common::CONFIG_VECTOR, random.below(3), 2);
    for _ in 0..random.below(4) {
        put(common::QUEUE_SELECT, random.below(4), 2);
        put(common::QUEUE_VECTOR, random.below(5), 2);
        put(common::QUEUE_ENABLE, 1, 2);
    }
    rig.write(Rig::config(device, 0x42), 0x8000, 2);
    for vector in 0..random.below(5) {
        let entry = registers + 0x2000 + 16 * vector;
        rig.write(entry, 0xfee0_0000 | (0x40 + vector) << 32, 8);
        rig.write(entry + 12, 0, 4);
    }
    put(common::STATUS, 0xf, 1);
}

fn storm(seed: u64, steps: u32) -> u32 {
    let (rig, recorder) = Rig::recorded(&[3, 300]);
    let mut random = Random(seed);
    for step in 0..steps {
        let at = address(&mut random, &rig);
        let len = [1, 2, 4, 8][random.below(4) as usize];
        if random.below(3) == 0 {
            rig.read(at, len);
        } else {
            let value = value(&mut random);
            rig.write(at, value, len);
        }
        match random.below(64) {
            0 => behave(&mut random, &rig),
            1 => rig.notifiers[random.below(2) as usize].config_changed(),
            2 => rig.notifiers[random.below(2) as usize].needs_reset(),
            _ => {}
        }
        assert_eq!(recorder.seen().breaches, Vec::<String>::new(), "seed {seed:#x}, step {step}");
    }
    let starts = rig.seen.iter().map(|seen| seen.lock().unwrap().starts).sum();
    drop(rig.pci.into_devices());
    let seen = recorder.seen();
    assert_eq!(seen.breaches, Vec::<String>::new(), "seed {seed:#x}");
    assert!(seen.gsis.is_empty() && seen.attached.is_empty() && seen.doorbells.is_empty());
    starts
}

#[test]
fn random_accesses_break_nothing() {
    let starts: u32 = (1..=12).map(|seed| storm(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), 4000)).sum();
    assert!(starts > 200, "only {starts} queues ever ran");
}
