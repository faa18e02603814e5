use super::*;
use crate::device::QueueSetup;
use crate::memory::RegionSpec;
use crate::queue::{Popped, Queue};
use crate::spec::RING_FEATURES;

const N: u16 = 8;
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Indirect tables go here.
const TABLE: u64 = 0x3000;
/// Buffers go here; memory ends at END.
const DATA: u64 = 0x4000;
const END: u64 = 0x2_0000;

fn region(gpa: u64, size: u64) -> RegionSpec {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    RegionSpec { gpa, size, user_addr: gpa, fd: file.into(), fd_offset: 0 }
}

fn memory() -> Arc<Memory> {
    // Two regions that meet in the middle of the buffers.
    Arc::new(Memory::new(vec![region(0, 0x8000), region(0x8000, END - 0x8000)]).unwrap())
}

fn write(memory: &Memory, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
    let at = table + u64::from(index) * 16;
    memory.write_obj(at, addr).unwrap();
    memory.write_obj(at + 8, len).unwrap();
    memory.write_obj(at + 12, flags).unwrap();
    memory.write_obj(at + 14, next).unwrap();
}

type Row = (u64, u32, u16, u16);

/// Puts `rows` into the descriptor table from 0 on, `table` into an indirect one, and pops the chain at 0.
fn pop(rows: &[Row], table: &[Row], features: u64, chain: &mut Chain) -> Result<(), ChainError> {
    let memory = memory();
    (0u16..).zip(rows).for_each(|(i, row)| write(&memory, DESC, i, *row));
    (0u16..).zip(table).for_each(|(i, row)| write(&memory, TABLE, i, *row));
    memory.write_obj(AVAIL + 2, 1u16).unwrap();
    let mut queue = Queue::new(&setup(&memory, features)).unwrap();
    match queue.pop(chain).unwrap() {
        Popped::Chain => Ok(()),
        Popped::Malformed { head: 0, why } => Err(why),
        other => panic!("{other:?}"),
    }
}

fn setup(memory: &Arc<Memory>, features: u64) -> QueueSetup {
    QueueSetup {
        index: 0,
        size: N,
        desc: DESC,
        avail: AVAIL,
        used: USED,
        features,
        base: 0,
        kick: None,
        call: None,
        err: None,
        memory: Arc::clone(memory),
        inflight: None,
        inherited: false,
    }
}

const NEXT: u16 = DESC_NEXT;
const WRITE: u16 = DESC_WRITE;
const IND: u16 = DESC_INDIRECT;

#[test]
fn malformed_chains_are_named() {
    use ChainError as E;
    use MemoryError as M;
    type Case = (&'static str, &'static [Row], &'static [Row], fn(&ChainError) -> bool);
    let cases: &[Case] = &[
        ("loop to itself", &[(DATA, 1, NEXT, 0)], &[], |e| matches!(e, E::TooLong { size: 8 })),
        ("loop of two", &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)], &[], |e| matches!(e, E::TooLong { .. })),
        ("next outside", &[(DATA, 1, NEXT, 8)], &[], |e| matches!(e, E::NextOutOfRange { next: 8, size: 8 })),
        ("next far outside", &[(DATA, 1, NEXT, 0xffff)], &[], |e| matches!(e, E::NextOutOfRange { .. })),
        ("address outside", &[(END, 1, 0, 0)], &[], |e| matches!(e, E::Memory(M::OutOfBounds { .. }))),
        ("end outside", &[(END - 1, 2, 0, 0)], &[], |e| matches!(e, E::Memory(M::OutOfBounds { .. }))),
        ("wraps", &[(u64::MAX, 2, 0, 0)], &[], |e| matches!(e, E::Memory(M::OutOfBounds { .. }))),
        ("lying length", &[(DATA, u32::MAX, WRITE, 0)], &[], |e| {
            matches!(e, E::Memory(M::OutOfBounds { .. }))
        }),
        ("readable behind writable", &[(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)], &[], |e| {
            matches!(e, E::Order)
        }),
        ("indirect and next", &[(TABLE, 16, IND | NEXT, 1), (DATA, 1, 0, 0)], &[(DATA, 1, 0, 0)], |e| {
            matches!(e, E::IndirectContinued)
        }),
        ("indirect in indirect", &[(TABLE, 16, IND, 0)], &[(TABLE, 16, IND, 0)], |e| {
            matches!(e, E::IndirectNested)
        }),
        ("indirect of nothing", &[(TABLE, 0, IND, 0)], &[], |e| matches!(e, E::IndirectLength { len: 0 })),
        ("indirect of half", &[(TABLE, 24, IND, 0)], &[(DATA, 1, 0, 0)], |e| {
            matches!(e, E::IndirectLength { len: 24 })
        }),
        ("indirect too long", &[(TABLE, 0x10_0010, IND, 0)], &[], |e| matches!(e, E::IndirectLength { .. })),
        ("indirect outside", &[(END, 16, IND, 0)], &[], |e| matches!(e, E::Memory(M::OutOfBounds { .. }))),
        ("indirect wraps", &[(u64::MAX - 7, 32, IND, 0)], &[], |e| matches!(e, E::Memory(_))),
        ("indirect loop", &[(TABLE, 32, IND, 0)], &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)], |e| {
            matches!(e, E::TooLong { size: 2 })
        }),
        ("indirect next outside", &[(TABLE, 32, IND, 0)], &[(DATA, 1, NEXT, 2)], |e| {
            matches!(e, E::NextOutOfRange { next: 2, size: 2 })
        }),
        (
            "order across the indirect",
            &[(DATA, 1, WRITE | NEXT, 1), (TABLE, 16, IND, 0)],
            &[(DATA, 1, 0, 0)],
            |e| matches!(e, E::Order),
        ),
    ];
    for (name, rows, table, expected) in cases {
        let mut chain = Chain::new();
        let why = pop(rows, table, RING_FEATURES, &mut chain).expect_err(name);
        assert!(expected(&why), "{name}: {why:?}");
        assert_eq!((chain.readable_len(), chain.writable_len()), (0, 0), "{name}: nothing of it may be used");
        assert!(chain.readable().is_empty() && chain.writable().is_empty());
    }
}

#[test]
fn indirect_needs_its_feature() {
    let mut chain = Chain::new();
    let why = pop(&[(TABLE, 16, IND, 0)], &[(DATA, 1, 0, 0)], crate::spec::F_VERSION_1, &mut chain);
    assert!(matches!(why, Err(ChainError::IndirectNotNegotiated)));
}

#[test]
fn four_gib_in_all_is_too_much() {
    // The file is sparse: nothing is stored.
    let memory = Arc::new(Memory::anonymous(3 << 30).unwrap());
    write(&memory, DESC, 0, (0, 2 << 30, NEXT, 1));
    write(&memory, DESC, 1, (0, 2 << 30, WRITE, 0));
    memory.write_obj(AVAIL + 2, 1u16).unwrap();
    let mut queue = Queue::new(&setup(&memory, RING_FEATURES)).unwrap();
    let popped = queue.pop(&mut Chain::new()).unwrap();
    assert!(matches!(popped, Popped::Malformed { why: ChainError::TooLarge { total: 0x1_0000_0000 }, .. }));
}

#[test]
fn more_pieces_than_the_kernel_takes_are_too_many() {
    let memory = memory();
    let table: Vec<Row> = (0u16..2048).map(|i| (DATA, 1, if i < 2047 { NEXT } else { 0 }, i + 1)).collect();
    let place = 0x1_0000;
    (0u16..).zip(&table).for_each(|(i, row)| write(&memory, place, i, *row));
    write(&memory, DESC, 0, (place, 2048 * 16, IND, 0));
    memory.write_obj(AVAIL + 2, 1u16).unwrap();
    let mut queue = Queue::new(&setup(&memory, RING_FEATURES)).unwrap();
    let popped = queue.pop(&mut Chain::new()).unwrap();
    let Popped::Malformed { why: ChainError::Memory(why), .. } = popped else { panic!("{popped:?}") };
    assert!(matches!(why, MemoryError::TooManySegments { max: MAX_SEGMENTS, .. }));
}

#[test]
fn direct_descriptors_may_lead_to_an_indirect_table() {
    let mut chain = Chain::new();
    let rows = [(DATA, 4, NEXT, 3), (0, 0, 0, 0), (0, 0, 0, 0), (TABLE, 32, IND | WRITE, 0)];
    pop(&rows, &[(DATA + 4, 4, NEXT, 1), (DATA + 16, 8, WRITE, 0)], RING_FEATURES, &mut chain).unwrap();
    assert_eq!((chain.readable().len(), chain.readable_len()), (2, 8));
    assert_eq!((chain.writable().len(), chain.writable_len()), (1, 8));
}

#[test]
fn an_indirect_table_may_lie_anywhere() {
    for at in [TABLE + 3, 0x8000 - 8, 0x8000 - 16, END - 32] {
        let memory = memory();
        write(&memory, at, 0, (DATA, 4, NEXT, 1));
        write(&memory, at, 1, (DATA, 2, WRITE, 0));
        write(&memory, DESC, 0, (at, 32, IND, 0));
        memory.write_obj(AVAIL + 2, 1u16).unwrap();
        let mut queue = Queue::new(&setup(&memory, RING_FEATURES)).unwrap();
        let mut chain = Chain::new();
        assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)), "at {at:#x}");
        assert_eq!((chain.readable_len(), chain.writable_len()), (4, 2));
    }
}

#[test]
fn buffers_of_nothing_are_skipped() {
    let mut chain = Chain::new();
    pop(&[(u64::MAX, 0, NEXT, 1), (DATA, 3, NEXT, 2), (END, 0, WRITE, 0)], &[], RING_FEATURES, &mut chain)
        .unwrap();
    assert_eq!((chain.readable().len(), chain.readable_len(), chain.writable().len()), (1, 3, 0));
}

/// Readable: 10 bytes in pieces of 4, 2, 4 (across the regions' border); writable: 8 in 3 and 5.
fn pieced() -> (Arc<Memory>, Chain) {
    let memory = memory();
    let rows =
        [(DATA, 4, NEXT, 1), (0x7ffe, 6, NEXT, 2), (DATA + 64, 3, WRITE | NEXT, 3), (DATA + 96, 5, WRITE, 0)];
    (0u16..).zip(rows).for_each(|(i, row)| write(&memory, DESC, i, row));
    memory.write_at(DATA, &[0, 1, 2, 3]).unwrap();
    memory.write_at(0x7ffe, &[4, 5, 6, 7, 8, 9]).unwrap();
    memory.write_obj(AVAIL + 2, 1u16).unwrap();
    let mut queue = Queue::new(&setup(&memory, RING_FEATURES)).unwrap();
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
    (memory, chain)
}

#[test]
fn copies_reach_every_byte_and_none_beyond() {
    let (memory, chain) = pieced();
    assert_eq!(chain.readable().iter().map(IoSlice::len).collect::<Vec<_>>(), [4, 2, 4]);
    for from in 0..=10 {
        for to in from..=10 {
            let mut out = vec![0xff; to - from];
            chain.copy_out(from, &mut out).unwrap();
            assert!(out.iter().copied().eq(from as u8..to as u8), "{from}..{to}: {out:?}");
        }
    }
    assert_eq!(chain.copy_out(10, &mut [0]), Err(Short { offset: 10, wanted: 1, has: 10 }));
    assert!(chain.copy_out(usize::MAX, &mut [0; 2]).is_err());
    chain.copy_in(2, &[1, 2, 3]).unwrap();
    assert_eq!(chain.copy_in(6, &[1, 2, 3]), Err(Short { offset: 6, wanted: 3, has: 8 }));
    let mut all = [0; 8];
    chain.copy_back(0, &mut all).unwrap();
    assert_eq!(all, [0, 0, 1, 2, 3, 0, 0, 0]);
    assert_eq!(memory.read_obj::<u8>(DATA + 66).unwrap(), 1);
    assert_eq!(memory.read_obj::<u16>(DATA + 96).unwrap(), u16::from_le_bytes([2, 3]));
    chain.zero(3, 1).unwrap();
    chain.copy_back(0, &mut all).unwrap();
    assert_eq!(all, [0, 0, 1, 0, 3, 0, 0, 0]);
}

#[test]
fn ranges_name_the_same_bytes() {
    let (_memory, chain) = pieced();
    let mut out = Vec::new();
    chain.readable_range(3, 4, &mut out).unwrap();
    assert_eq!(out.iter().map(IoSlice::len).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(out.first().unwrap().as_ptr(), chain.readable().first().unwrap().as_ptr().wrapping_add(3));
    out.clear();
    chain.writable_range(0, 7, &mut out).unwrap();
    assert_eq!(out.iter().map(IoSlice::len).collect::<Vec<_>>(), [3, 4]);
    assert!(chain.writable_range(1, 8, &mut out).is_err());
    assert_eq!(out.len(), 2, "an error leaves the list alone");
}

#[test]
fn a_chain_outlives_its_queue() {
    let (memory, chain) = pieced();
    drop(memory);
    let mut out = [0; 10];
    chain.copy_out(0, &mut out).unwrap();
    assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_ring_that_changes_while_it_is_read_leads_nowhere_else() {
    let memory = Arc::new(Memory::anonymous(0x1_0000).unwrap());
    let base = memory.slice(0, 1).unwrap().as_ptr() as usize;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut chains, mut refused, mut broken) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A driver that rewrites descriptors, tables and the avail ring as fast as it can.
            let mut state = 1u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let random = state >> 24;
                let table = if random & 1 == 0 { DESC } else { TABLE };
                let index = (random >> 1 & 7) as u16;
                let flags = (random >> 4 & 7) as u16;
                let (addr, len) = match (random >> 8 & 15, flags & IND) {
                    (0, _) => (u64::MAX - (random >> 16 & 0xff), 64),
                    (1, _) => (0xfff0, (random >> 16 & 0x1f) as u32),
                    (_, 0) => (random >> 16 & 0xff_ff, (random >> 12 & 0xf) as u32),
                    (..) => (TABLE, 128),
                };
                write(&memory, table, index, (addr, len, flags, (random >> 20 & 7) as u16));
                memory.write_obj(AVAIL + 4 + (random >> 30 & 7) * 2, (random >> 33 & 7) as u16).unwrap();
            }
        });
        // Also when an assertion below fails: the scope waits for its threads.
        let _stop = Stop(&stop);
        let mut chain = Chain::new();
        while chains < 20_000 || refused < 2_000 {
            let avail = memory.read_obj::<u16>(AVAIL + 2).unwrap().wrapping_add(3);
            memory.write_obj(AVAIL + 2, avail).unwrap();
            let mut setup = setup(&memory, RING_FEATURES);
            setup.base = avail.wrapping_sub(3);
            let mut queue = Queue::new(&setup).unwrap();
            loop {
                match queue.pop(&mut chain) {
                    Ok(Popped::Empty) => break,
                    Ok(Popped::Malformed { .. }) => refused += 1,
                    Ok(Popped::Chain) => chains += 1,
                    Err(_) => {
                        broken += 1;
                        break;
                    }
                }
                let (mut readable, mut writable) = (0, 0);
                for (list, sum) in [(chain.readable(), &mut readable), (chain.writable(), &mut writable)] {
                    for piece in list {
                        let at = (piece.as_ptr() as usize).wrapping_sub(base);
                        assert!(at < 0x1_0000 && at + piece.len() <= 0x1_0000, "{piece:?}");
                        *sum += piece.len();
                    }
                }
                assert_eq!((readable, writable), (chain.readable_len(), chain.writable_len()));
            }
        }
    });
    assert!(broken > 0, "a head offered twice breaks the ring");
}

/// From one request's readable part into another's writable one, whatever their pieces are.
#[test]
fn bytes_cross_from_chain_to_chain() {
    let memory = memory();
    let all: Vec<u8> = (0..300u32).map(|n| (n % 251) as u8).collect();
    memory.write_at(DATA, &all).unwrap();
    let rows = [
        (DATA, 100, DESC_NEXT, 1),
        (DATA + 100, 1, DESC_NEXT, 2),
        (DATA + 101, 199, DESC_NEXT, 3),
        // Over the bound of the two regions.
        (0x7ff0, 40, DESC_NEXT | DESC_WRITE, 4),
        (0x9000, 300, DESC_WRITE, 0),
    ];
    (0u16..).zip(rows).for_each(|(i, row)| write(&memory, DESC, i, row));
    memory.write_obj(AVAIL + 2, 1u16).unwrap();
    let mut queue = Queue::new(&setup(&memory, RING_FEATURES)).unwrap();
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
    for (offset, from, len) in [(0, 0, 300), (5, 99, 3), (39, 100, 200), (16, 50, 1), (340, 300, 0)] {
        chain.zero(0, 340).unwrap();
        chain.copy_across(offset, &chain, from, len).unwrap();
        let mut got = vec![0; 340];
        chain.copy_back(0, &mut got).unwrap();
        let mut expected = vec![0; 340];
        expected[offset..offset + len].copy_from_slice(&all[from..from + len]);
        assert_eq!(got, expected, "{offset} {from} {len}");
    }
    assert!(chain.copy_across(0, &chain, 1, 300).is_err());
    assert!(chain.copy_across(41, &chain, 0, 300).is_err());
}
