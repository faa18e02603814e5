use super::*;

/// Walks the tables as the processor does; 2 MiB pages only.
fn translate(memory: &Memory, address: u64) -> Option<u64> {
    let mut table = layout::PAGE_TABLES;
    for shift in [39, 30, 21] {
        let entry: u64 = memory.read_obj(table + (address >> shift & 0x1ff) * 8).unwrap();
        if entry & PRESENT == 0 {
            return None;
        }
        table = entry & !0xfff;
        if shift == 21 {
            assert_ne!(entry & LARGE, 0);
        }
    }
    Some((table & !(LARGE_PAGE - 1)) + address % LARGE_PAGE)
}

#[test]
fn four_gib_map_to_themselves_and_no_more() {
    let memory = Memory::anonymous(1 << 20).unwrap();
    memory.write_at(layout::PAGE_TABLES, &[0xff; 6 * 4096]).unwrap();
    write_page_tables(&memory).unwrap();
    for address in [0, 0x7123, 0x100_0000, 0x4000_0000, 0xbfff_ffff, 0xffff_ffff] {
        assert_eq!(translate(&memory, address), Some(address), "{address:#x}");
    }
    assert_eq!(translate(&memory, 1 << 32), None);
    assert_eq!(translate(&memory, 1 << 39), None);
}

#[test]
fn descriptors_are_the_well_known_ones() {
    // As every operating system course writes them, accessed bit set.
    assert_eq!(gdt(Mode::Long)[2..], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
    assert_eq!(
        gdt(Mode::Protected)[2..],
        [0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
    );
}

#[test]
fn long_mode_has_paging_and_protected_mode_does_not() {
    let mut sregs = kvm_sregs::default();
    set_mode(&mut sregs, Mode::Long);
    assert_eq!((sregs.cr3, sregs.efer), (layout::PAGE_TABLES, 0x500));
    assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    assert_eq!(sregs.gdt.limit, 39);
    let mut sregs = kvm_sregs::default();
    set_mode(&mut sregs, Mode::Protected);
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    assert_eq!((sregs.cs.l, sregs.cs.db), (0, 1));
}
