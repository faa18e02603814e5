use super::*;

const SIZES: [u64; 8] =
    [32 * MIB, 256 * MIB, 3 * GIB - 2 * MIB, 3 * GIB, 3 * GIB + 2 * MIB, 6 * GIB, 64 * GIB, 16 << 40];

#[test]
fn the_map_is_ascending_disjoint_and_holds_all_ram() {
    for size in SIZES {
        let map = memory_map(size);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].size <= pair[1].start, "{size:#x}: {map:x?}");
        }
        let ram: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.size).sum();
        assert_eq!(ram, size - (HIMEM - LEGACY_HOLE), "{size:#x}");
    }
}

#[test]
fn ram_splits_around_the_hole() {
    assert_eq!(split(512 * MIB), (512 * MIB, 0));
    assert_eq!(split(3 * GIB), (3 * GIB, 0));
    assert_eq!(split(6 * GIB), (3 * GIB, 3 * GIB));
    let map = memory_map(6 * GIB);
    assert_eq!(map.last(), Some(&MapEntry { start: 4 * GIB, size: 3 * GIB, kind: MapKind::Ram }));
}

#[test]
fn nothing_in_the_hole_touches_ram_or_its_neighbours() {
    let fixed = [
        PCI32,
        SHADOW,
        u64::from(IOAPIC)..u64::from(IOAPIC) + 4096,
        u64::from(LAPIC)..u64::from(LAPIC) + 4096,
        KVM_IDENTITY_MAP..KVM_IDENTITY_MAP + 4096,
        KVM_TSS..KVM_TSS + 3 * 4096,
    ];
    for pair in fixed.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
    assert!(fixed[0].start >= HOLE && fixed[5].end <= HIGH_RAM);
}
