use std::io::Write;

use super::*;

/// A file as the kernel lays it out: header, id, descriptors, data.
fn file(descriptors: &[(u32, u16, u32, &str)], values: &[u64]) -> Vec<u8> {
    const NAME: u32 = 48;
    let data = 24 + NAME + descriptors.len() as u32 * (16 + NAME);
    let mut bytes = Vec::new();
    for word in [0, NAME, descriptors.len() as u32, 24, 24 + NAME, data] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([b'v'; NAME as usize]);
    for (flags, size, offset, name) in descriptors {
        bytes.extend(flags.to_le_bytes());
        bytes.extend(0_u16.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        let mut name = name.as_bytes().to_vec();
        name.resize(NAME as usize, 0);
        bytes.extend(name);
    }
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn describe(bytes: &[u8]) -> Result<Stats, StatsError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Stats::describe(file)
}

#[test]
fn plain_counters_are_read_and_histograms_left_out() {
    let bytes =
        file(&[(0, 1, 0, "exits"), (4, 8, 8, "histogram"), (1, 2, 8, "pair"), (0, 0, 0, "none")], &[7, 1, 2]);
    let stats = describe(&bytes).unwrap();
    assert_eq!(stats.read().unwrap(), [("exits", 7), ("pair", 3)]);
}

#[test]
fn descriptions_out_of_bounds_are_errors() {
    let good = file(&[(0, 1, 0, "exits")], &[7]);
    let with = |at: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        describe(&bytes)
    };
    assert!(matches!(with(4, 0), Err(StatsError::Format(_))));
    assert!(matches!(with(4, u32::MAX), Err(StatsError::Format(_))));
    assert!(matches!(with(8, u32::MAX), Err(StatsError::Format(_))));
    assert!(matches!(with(16, u32::MAX), Err(StatsError::Read(_))));
    assert!(matches!(with(20, u32::MAX).unwrap().read(), Err(StatsError::Read(_))));
    assert!(matches!(describe(&good[..20]), Err(StatsError::Read(_))));
}

#[test]
fn a_real_vcpu_counts_its_exits() {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("skipped: no usable /dev/kvm");
        return;
    };
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let stats = match Stats::open(&vcpu) {
        Ok(stats) => stats,
        Err(StatsError::Open(error)) => {
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let counters = stats.read().unwrap();
    assert!(counters.iter().any(|(name, _)| *name == "exits"), "{counters:?}");
    assert!(Stats::open(&vm).unwrap().read().unwrap().len() > 3);
}
