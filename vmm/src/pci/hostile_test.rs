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

fn storm(seed: u64, steps: u32) {
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
            // Give the walk a chance to get somewhere.
            0 => {
                rig.open(1 + random.below(2));
            }
            1 => rig.notifiers[random.below(2) as usize].config_changed(),
            2 => rig.notifiers[random.below(2) as usize].needs_reset(),
            _ => {}
        }
        assert_eq!(recorder.seen().breaches, Vec::<String>::new(), "seed {seed:#x}, step {step}");
    }
    drop(rig.pci.into_devices());
    let seen = recorder.seen();
    assert_eq!(seen.breaches, Vec::<String>::new(), "seed {seed:#x}");
    assert!(seen.gsis.is_empty() && seen.attached.is_empty() && seen.doorbells.is_empty());
}

#[test]
fn random_accesses_break_nothing() {
    for seed in 1..=12 {
        storm(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), 4000);
    }
}
