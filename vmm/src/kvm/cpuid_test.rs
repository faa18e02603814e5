//! On lists as KVM gives them on AMD and Intel, cut down to what the rules are about.

use super::*;

fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn wanted(cores: u8) -> Wanted {
    let topology = Topology { sockets: 1, cores, threads: 1 };
    Wanted { topology, nested: true, vmx_registers: true, tsc_deadline: true, polls: false }
}

fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x0a20_0f10, 0xff10_0800, 0xfef8_3203 | 1 << 15, 0x178b_fbff]),
        entry(6, 0, [4, 0, 0, 0]),
        entry(7, 0, [0, 0x219c_97a9, 0, 0]),
        entry(0xa, 0, [0x0730_0404, 0, 0, 0x603]),
        entry(0xb, 0, [1, 2, 0x100, 9]),
        entry(0xd, 0, [7, 0x340, 0x340, 0]),
        entry(0x10, 0, [0; 4]),
        entry(0x1f, 0, [0; 4]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 1]),
        entry(0x8000_0000, 0, [0x8000_0023, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x01c2_37ff | 1 << 23, 0x2fd3_fbff]),
        entry(0x8000_0008, 0, [0x0030_3030, 0, 0x4007, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, 0x119b]),
        entry(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 63, 0]),
        entry(0x8000_001d, 3, [0x0001_c163, 0x03c0_003f, 0x3fff, 1]),
        entry(0x8000_001d, 4, [0x0003_c000, 0, 0, 0]),
        entry(0x8000_001e, 0, [9, 0x104, 1, 0]),
        entry(0x8000_0021, 0, [0x45, 0, 0, 0]),
        entry(0x8000_0022, 0, [1, 6, 0, 0]),
        entry(0x8000_0023, 0, [0; 4]),
        entry(0xc000_0000, 0, [0xc000_0001, 0, 0, 0]),
    ]
}

fn find(list: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    list.as_slice().iter().copied().find(|e| e.function == function && e.index == index)
}

fn get(list: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let e = find(list, function, index).unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    [e.eax, e.ebx, e.ecx, e.edx]
}

#[test]
fn maxima_end_at_the_last_leaf_that_says_something() {
    let list = Template::new(&amd(), wanted(2)).of(0).unwrap();
    assert_eq!(get(&list, 0, 0)[0], 0xd);
    assert_eq!(get(&list, 0x8000_0000, 0)[0], 0x8000_0021);
    for gone in [0x10, 0x1f, 0x8000_0022, 0x8000_0023, 0xc000_0000] {
        assert!(find(&list, gone, 0).is_none(), "{gone:#x}");
    }
    assert!(list.as_slice().is_sorted_by_key(|e| (e.function, e.index)));
}

#[test]
fn ids_and_counts_are_the_machines_own() {
    let template = Template::new(&amd(), wanted(6));
    for id in [0, 5] {
        let list = template.of(id).unwrap();
        let id = u32::from(id);
        let one = get(&list, 1, 0);
        assert_eq!(one[1], id << 24 | 6 << 16 | 0x0800);
        assert_ne!(one[3] & edx1::HTT, 0);
        assert_eq!(get(&list, 0xb, 0), [0, 1, 0x100, id]);
        assert_eq!(get(&list, 0xb, 1), [3, 6, 0x201, id]);
        assert_eq!(get(&list, 0xb, 2), [0, 0, 2, id]);
        assert!(list.as_slice().iter().filter(|e| e.function == 0xb).all(|e| e.flags == FLAG_INDEX));
        assert_eq!(get(&list, 0x8000_0008, 0)[2], 0x3005);
        assert_eq!(get(&list, 0x8000_001e, 0), [id, id, 0, 0]);
        // Level 1 belongs to a core, level 3 to all eight places of six cores.
        assert_eq!(get(&list, 0x8000_001d, 0)[0] >> 14 & 0xfff, 0);
        assert_eq!(get(&list, 0x8000_001d, 3)[0] >> 14 & 0xfff, 7);
    }
    let single = Template::new(&amd(), wanted(1)).of(0).unwrap();
    assert_eq!(get(&single, 1, 0)[3] & edx1::HTT, 0);
    assert_eq!(get(&single, 0xb, 1), [0, 1, 0x201, 0]);
    assert!(Template::new(&amd(), wanted(255)).of(254).is_ok());
}

#[test]
fn sockets_and_threads_have_fields_of_their_own() {
    let topology = Topology { sockets: 2, cores: 3, threads: 2 };
    let template = Template::new(&amd(), Wanted { topology, ..wanted(1) });
    let list = template.of(11).unwrap();
    // Socket 1, core 2, thread 1: one bit for threads, two for cores.
    let id = 0b1101;
    assert_eq!(get(&list, 1, 0)[1], id << 24 | 6 << 16 | 0x0800);
    assert_eq!(get(&list, 0xb, 0), [1, 2, 0x100, id]);
    assert_eq!(get(&list, 0xb, 1), [3, 6, 0x201, id]);
    assert_eq!(get(&list, 0x8000_0008, 0)[2], 0x3005);
    assert_eq!(get(&list, 0x8000_001e, 0), [id, 0x106, 0, 0]);
    // Level 1 belongs to the two threads of a core, level 3 to the eight places of a socket.
    assert_eq!(get(&list, 0x8000_001d, 0)[0] >> 14 & 0xfff, 1);
    assert_eq!(get(&list, 0x8000_001d, 3)[0] >> 14 & 0xfff, 7);
}

#[test]
fn nesting_is_shown_only_where_it_is_wanted_and_there() {
    let shown = Template::new(&amd(), wanted(1));
    assert!(shown.is_nested() && !shown.has_vmx());
    assert!(find(&shown.of(0).unwrap(), 0x8000_000a, 0).is_some());
    let hidden = Template::new(&amd(), Wanted { nested: false, ..wanted(1) });
    assert!(!hidden.is_nested());
    assert!(find(&hidden.of(0).unwrap(), 0x8000_000a, 0).is_none());

    let intel = [
        entry(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(1, 0, [0, 0, ecx1::VMX, 0]),
        entry(4, 0, [0x1c00_4121, 0x02c0_003f, 63, 0]),
        entry(4, 3, [0x1c03_c163, 0x02c0_003f, 63, 0]),
        entry(4, 4, [0; 4]),
    ];
    assert!(Template::new(&intel, wanted(4)).has_vmx());
    let hidden = Template::new(&intel, Wanted { nested: false, ..wanted(4) });
    assert!(!hidden.is_nested());
    let list = hidden.of(0).unwrap();
    assert_eq!(get(&list, 4, 0)[0], 3 << 26 | 0x121);
    assert_eq!(get(&list, 4, 3)[0], 3 << 26 | 3 << 14 | 0x163);
    assert_eq!(get(&list, 4, 4)[0] & 0x1f, 0);
    assert_eq!(get(&list, 0, 0)[0], 0xb);
}

#[test]
fn timers_and_hints_follow_the_machine() {
    let list = Template::new(&amd(), wanted(1)).with_timing(2_400_000).of(0).unwrap();
    assert_ne!(get(&list, 1, 0)[2] & ecx1::TSC_DEADLINE, 0);
    assert_ne!(get(&list, 1, 0)[2] & ecx1::HYPERVISOR, 0);
    assert_eq!(get(&list, 1, 0)[3] & edx1::MTRR, 0);
    assert_eq!(get(&list, 1, 0)[2] & ecx1::PDCM, 0);
    assert_eq!(get(&list, HYPERVISOR, 0)[0], TIMING);
    assert_eq!(get(&list, TIMING, 0), [2_400_000, 1_000_000, 0, 0]);
    assert_eq!(get(&list, KVM_FEATURES, 0), [0x0100_7efb, 0, 0, 0]);
    assert_eq!(get(&list, 0xa, 0), [0; 4]);
    assert_eq!(get(&list, 0x8000_0001, 0)[2] & AMD_COUNTERS, 0);

    let machine = Wanted { tsc_deadline: false, polls: true, ..wanted(1) };
    let list = Template::new(&amd(), machine).of(0).unwrap();
    assert_eq!(get(&list, 1, 0)[2] & ecx1::TSC_DEADLINE, 0);
    assert_eq!(get(&list, HYPERVISOR, 0)[0], KVM_FEATURES);
    assert_eq!(get(&list, KVM_FEATURES, 0)[3], HINT_REALTIME);
}

#[test]
fn address_bits_heed_the_nested_limit() {
    assert_eq!(Template::new(&amd(), wanted(1)).address_bits(), 48);
    let narrow =
        [entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]), entry(0x8000_0008, 0, [0x0028_3030, 0, 0, 0])];
    assert_eq!(Template::new(&narrow, wanted(1)).address_bits(), 40);
    assert_eq!(Template::new(&[], wanted(1)).address_bits(), 36);
}
