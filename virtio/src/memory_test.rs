use std::fs::File;
use std::os::fd::OwnedFd;

use super::*;

fn file(size: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.into()
}

fn spec(gpa: u64, size: u64) -> RegionSpec {
    RegionSpec { gpa, size, user_addr: gpa, fd: file(size), fd_offset: 0 }
}

/// Two adjacent regions (0x1000 + 0x2000, 0x3000 + 0x1000), a hole, one more, at other frontend addresses.
fn holed() -> Memory {
    let user = |spec: RegionSpec| RegionSpec { user_addr: spec.gpa + 0x7000_0000, ..spec };
    Memory::new(vec![user(spec(0x8000, 0x1000)), user(spec(0x1000, 0x2000)), user(spec(0x3000, 0x1000))])
        .unwrap()
}

#[test]
fn refuses_what_no_memory_can_be() {
    let beyond = RegionSpec { fd: file(0x1000), ..spec(0, 0x2000) };
    let offset = RegionSpec { fd_offset: 0x1000, ..spec(0, 0x1000) };
    let pipe = RegionSpec { fd: nix::unistd::pipe().unwrap().0, ..spec(0, 0x1000) };
    let device = RegionSpec { fd: File::open("/dev/zero").unwrap().into(), ..spec(0, 0x1000) };
    let user = RegionSpec { user_addr: u64::MAX - 1, ..spec(0, 0x1000) };
    let huge = RegionSpec { fd: file(0x1000), fd_offset: u64::MAX - 0xfff, ..spec(0, 0x1000) };
    type Case = (&'static str, Vec<RegionSpec>, fn(&MemoryError) -> bool);
    let cases: Vec<Case> = vec![
        ("nothing", vec![], |e| matches!(e, MemoryError::Count(0))),
        ("too many", (0..65).map(|i| spec(i * 0x1000, 0x1000)).collect(), |e| {
            matches!(e, MemoryError::Count(65))
        }),
        ("empty", vec![RegionSpec { fd: file(1), ..spec(0, 0) }], |e| {
            matches!(e, MemoryError::Empty { gpa: 0 })
        }),
        ("past 2^64", vec![spec(u64::MAX - 0xfff, 0x1000)], |e| matches!(e, MemoryError::Wraps { .. })),
        ("user past 2^64", vec![user], |e| matches!(e, MemoryError::Wraps { .. })),
        ("offset past 2^64", vec![huge], |e| matches!(e, MemoryError::Wraps { .. })),
        ("short file", vec![beyond], |e| {
            matches!(e, MemoryError::BeyondFile { end: 0x2000, file_size: 0x1000, .. })
        }),
        ("offset into short file", vec![offset], |e| {
            matches!(e, MemoryError::BeyondFile { end: 0x2000, .. })
        }),
        ("a pipe", vec![pipe], |e| matches!(e, MemoryError::NotAFile { .. })),
        ("a device", vec![device], |e| matches!(e, MemoryError::NotAFile { .. })),
        ("overlap", vec![spec(0x1000, 0x2000), spec(0x2000, 0x1000)], |e| {
            matches!(e, MemoryError::Overlap { first: 0x1000, second: 0x2000 })
        }),
    ];
    for (name, regions, expected) in cases {
        let error = Memory::new(regions).unwrap_err();
        assert!(expected(&error), "{name}: {error}");
    }
}

#[test]
fn a_read_only_descriptor_is_refused_by_the_system() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(0x1000).unwrap();
    let fd = File::open(path.path()).unwrap().into();
    assert!(matches!(Memory::new(vec![RegionSpec { fd, ..spec(0, 0x1000) }]), Err(MemoryError::Map { .. })));
}

#[test]
fn a_slice_stays_inside_one_region() {
    let memory = holed();
    assert_eq!(memory.slice(0x1000, 0x2000).unwrap().len(), 0x2000);
    assert!(memory.slice(0x3fff, 0).unwrap().is_empty());
    for (gpa, len) in [(0x2fff, 2), (0xfff, 1), (0x4000, 1), (0x4000, 0), (0x8000, 0x1001), (u64::MAX, 2)] {
        assert!(memory.slice(gpa, len).is_err(), "{gpa:#x} + {len:#x}");
    }
}

#[test]
fn segments_split_where_regions_meet_and_nowhere_else() {
    let memory = holed();
    let lens = |gpa, len, max| {
        let mut out = Vec::new();
        memory.segments(gpa, len, max, &mut out).map(|()| out.iter().map(IoSlice::len).collect::<Vec<_>>())
    };
    assert_eq!(lens(0x1800, 0x1000, 4).unwrap(), [0x1000]);
    assert_eq!(lens(0x2000, 0x2000, 4).unwrap(), [0x1000, 0x1000]);
    assert_eq!(lens(0x4000, 0, 4).unwrap(), [0; 0]);
    assert!(matches!(lens(0x3000, 0x1001, 4), Err(MemoryError::OutOfBounds { .. })));
    assert!(matches!(lens(0x2000, 0x2000, 1), Err(MemoryError::TooManySegments { max: 1, .. })));
    assert!(lens(u64::MAX - 1, 2, 4).is_err());
    assert!(lens(0x8000, usize::MAX, 4).is_err());
}

#[test]
fn reads_and_writes_cross_regions_but_not_holes() {
    let memory = holed();
    memory.write_at(0x2ffe, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    memory.read_at(0x2ffe, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert_eq!(memory.read_obj::<u16>(0x3000).unwrap(), u16::from_le_bytes([3, 4]));
    assert!(memory.write_at(0x3fff, &[0; 2]).is_err());
    assert!(memory.read_at(0x7fff, &mut back).is_err());
    assert!(memory.read_obj::<u64>(u64::MAX - 3).is_err());
}

#[test]
fn the_file_behind_is_shared_at_the_offset_given() {
    let fd = file(0x5000);
    let other = File::from(fd.try_clone().unwrap());
    // Not a page's multiple: the mapping begins at the page before.
    let memory =
        Memory::new(vec![RegionSpec { gpa: 0, size: 0x3000, user_addr: 0, fd, fd_offset: 0x1234 }]).unwrap();
    memory.write_at(0x10, b"strata").unwrap();
    let mut back = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&other, &mut back, 0x1244).unwrap();
    assert_eq!(&back, b"strata");
}

#[test]
fn frontend_addresses_translate_inside_regions_only() {
    let memory = holed();
    assert_eq!(memory.user_to_gpa(0x7000_1000), Some(0x1000));
    assert_eq!(memory.user_to_gpa(0x7000_3fff), Some(0x3fff));
    assert_eq!(memory.user_to_gpa(0x7000_4000), None);
    assert_eq!(memory.user_to_gpa(0x1000), None);
    assert_eq!(memory.user_to_gpa(u64::MAX), None);
}

#[test]
fn regions_come_and_go_while_the_others_stay_where_they_are() {
    let memory = Memory::new(vec![spec(0, 0x1000)]).unwrap();
    let host = memory.slice(0, 1).unwrap().as_ptr();
    let more = memory.with_region(spec(0x1000, 0x1000)).unwrap();
    assert_eq!(more.slice(0, 1).unwrap().as_ptr(), host);
    assert!(matches!(more.with_region(spec(0x1800, 0x1000)), Err(MemoryError::Overlap { .. })));
    assert!(matches!(more.without_region(0x1000, 0x800, 0x1000), Err(MemoryError::NoRegion { .. })));
    assert!(matches!(more.without_region(0x1000, 0x1000, 0), Err(MemoryError::NoRegion { .. })));
    let less = more.without_region(0, 0x1000, 0).unwrap().unwrap();
    assert_eq!(less.regions().len(), 1);
    assert!(less.slice(0, 1).is_err());
    assert!(less.without_region(0x1000, 0x1000, 0x1000).unwrap().is_none());
}

#[test]
fn vm_memory_sees_the_same_bytes() {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
    let memory = holed();
    memory.write_at(0x2fff, &[7, 8]).unwrap();
    assert_eq!(Bytes::read_obj::<u16>(&memory, GuestAddress(0x2fff)).unwrap(), u16::from_le_bytes([7, 8]));
    assert!(Bytes::read_obj::<u16>(&memory, GuestAddress(0x3fff)).is_err());
    assert_eq!(GuestMemoryBackend::num_regions(&memory), 3);
}

#[test]
fn pieces_copy_only_as_far_as_they_reach() {
    let memory = Memory::anonymous(0x1000).unwrap();
    let slice = memory.slice(0, 4).unwrap();
    assert_eq!(slice.write(2, &[1, 2, 3]), 2);
    assert_eq!(slice.write(5, &[1]), 0);
    let mut out = [9; 3];
    assert_eq!(slice.read(3, &mut out), 1);
    assert_eq!(out, [2, 9, 9]);
    let piece = slice.io();
    assert_eq!(
        (piece.skip(1).len(), piece.skip(9).len(), piece.take(2).len(), piece.take(9).len()),
        (3, 0, 2, 4)
    );
}
