use super::*;
use std::sync::Arc;
use strata_virtio::device::QueueSetup;
use strata_virtio::memory::Memory;
use strata_virtio::queue::{Popped, Queue};
use strata_virtio::spec::{DESC_NEXT, DESC_WRITE};

const LIMITS: Limits = Limits { capacity: 1000, read_only: false, block_sectors: 1 };
const BUFFERS: u64 = 0x10_0000;

/// A piece of a chain: bytes to read, or room to write.
enum Piece {
    R(Vec<u8>),
    W(usize),
}
use Piece::{R, W};

/// Posts one chain in a ring of its own and takes it back as the device sees it.
fn chain(pieces: &[Piece]) -> (Chain, Arc<Memory>) {
    let memory = Arc::new(Memory::anonymous(0x80_0000).unwrap());
    let (desc, avail, used) = (0u64, 0x4000u64, 0x8000u64);
    let mut at = BUFFERS;
    for (index, piece) in pieces.iter().enumerate() {
        let (len, mut flags) = match piece {
            R(bytes) => {
                memory.write_at(at, bytes).unwrap();
                (bytes.len(), 0)
            }
            W(len) => (*len, DESC_WRITE),
        };
        if index + 1 < pieces.len() {
            flags |= DESC_NEXT;
        }
        let entry = desc + 16 * index as u64;
        memory.write_obj::<u64>(entry, at).unwrap();
        memory.write_obj::<u32>(entry + 8, len as u32).unwrap();
        memory.write_obj::<u16>(entry + 12, flags).unwrap();
        memory.write_obj::<u16>(entry + 14, index as u16 + 1).unwrap();
        // A gap, so that a read past an end is seen.
        at += len as u64 + 64;
    }
    memory.write_obj::<u16>(avail + 4, 0).unwrap();
    memory.write_obj::<u16>(avail + 2, 1).unwrap();
    let setup = QueueSetup {
        index: 0,
        size: 256,
        desc,
        avail,
        used,
        features: strata_virtio::spec::F_VERSION_1,
        base: 0,
        kick: None,
        call: None,
        err: None,
        memory: Arc::clone(&memory),
        inflight: None,
        inherited: false,
    };
    let mut queue = Queue::new(&setup).unwrap();
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain).unwrap(), Popped::Chain));
    (chain, memory)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xaa; 4]); // reserved: ignored
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn parse_with(limits: &Limits, pieces: &[Piece]) -> Result<Request, (Option<Status>, Option<Refusal>)> {
    let (chain, _memory) = chain(pieces);
    let mut request = Request::default();
    match request.parse(&chain, limits) {
        Ok(()) => Ok(request),
        Err(Fault::Unanswerable { .. }) => Err((None, None)),
        Err(Fault::Refused { status, why, .. }) => Err((Some(status), Some(why))),
    }
}

fn parse(pieces: &[Piece]) -> Result<Request, (Option<Status>, Option<Refusal>)> {
    parse_with(&LIMITS, pieces)
}

#[test]
fn a_read_in_the_usual_three_descriptors() {
    let request = parse(&[R(header(0, 8)), W(4096), W(1)]).unwrap();
    assert_eq!(request.op, Op::Read { offset: 4096 });
    assert_eq!(request.len, 4096);
    assert_eq!(request.data.len(), 1);
    assert_eq!(request.answer.as_ref().unwrap().writable, 4097);
}

#[test]
fn where_descriptors_end_means_nothing() {
    let (a, b) = (header(1, 3)[..5].to_vec(), header(1, 3)[5..].to_vec());
    let request = parse(&[R(a), R(b), R(vec![1; 700]), R(vec![2; 324]), W(1)]).unwrap();
    assert_eq!(request.op, Op::Write { offset: 3 * 512 });
    assert_eq!(request.len, 1024);
    assert_eq!(request.data.len(), 2);

    // Header and data in one descriptor; data and status in one descriptor.
    let mut whole = header(1, 0);
    whole.extend([7; 512]);
    let request = parse(&[R(whole), W(1)]).unwrap();
    assert_eq!((request.op, request.len), (Op::Write { offset: 0 }, 512));
    let request = parse(&[R(header(0, 0)), W(513)]).unwrap();
    assert_eq!((request.op, request.len), (Op::Read { offset: 0 }, 512));
}

#[test]
fn the_status_is_the_last_writable_byte() {
    let (chain, memory) = chain(&[R(header(0, 0)), W(512), W(3)]);
    let mut request = Request::default();
    // 514 bytes of data are no whole sectors, and that has to be said in the last byte.
    let Err(Fault::Refused { answer, status, .. }) = request.parse(&chain, &LIMITS) else { panic!() };
    let last = BUFFERS + (16 + 64) + (512 + 64) + 2;
    memory.write_obj::<u8>(last, 0xff).unwrap();
    assert_eq!(answer.write(&memory, status), (0, 515));
    assert_eq!(memory.read_obj::<u8>(last).unwrap(), 1);
    assert_eq!(memory.read_obj::<u8>(last - 1).unwrap(), 0);
}

#[test]
fn nothing_writable_cannot_be_answered() {
    assert_eq!(parse(&[R(header(0, 0))]).unwrap_err(), (None, None));
    assert_eq!(parse(&[R(header(1, 0)), R(vec![0; 512])]).unwrap_err(), (None, None));
}

#[test]
fn what_is_refused_and_how() {
    use Refusal::*;
    let table: Vec<(Vec<Piece>, Status, Refusal)> = vec![
        (vec![W(1)], Status::IoError, ShortHeader(0)),
        (vec![R(vec![0; 15]), W(1)], Status::IoError, ShortHeader(15)),
        (vec![R(header(77, 0)), W(1)], Status::Unsupported, UnknownType(77)),
        (vec![R(header(2, 0)), W(1)], Status::Unsupported, UnknownType(2)),
        (vec![R(header(0x8000_0000, 0)), W(1)], Status::Unsupported, UnknownType(0x8000_0000)),
        (vec![R(header(0, 0)), W(511), W(1)], Status::IoError, PartialSector(511)),
        (vec![R(header(1, 0)), R(vec![0; 513]), W(1)], Status::IoError, PartialSector(513)),
        (vec![R(header(0, 1000)), W(512), W(1)], Status::IoError, OutOfRange { sector: 1000, len: 512 }),
        (vec![R(header(0, 999)), W(1024), W(1)], Status::IoError, OutOfRange { sector: 999, len: 1024 }),
        (
            vec![R(header(1, u64::MAX)), R(vec![0; 512]), W(1)],
            Status::IoError,
            OutOfRange { sector: u64::MAX, len: 512 },
        ),
        (
            vec![R(header(0, 1 << 55)), W(512), W(1)],
            Status::IoError,
            OutOfRange { sector: 1 << 55, len: 512 },
        ),
        (vec![R(header(11, 0)), W(1)], Status::IoError, SegmentCount(0)),
        (vec![R(header(11, 0)), R(vec![0; 15]), W(1)], Status::IoError, SegmentCount(15)),
        (vec![R(header(13, 0)), R(vec![0; 16 * 17]), W(1)], Status::IoError, SegmentCount(16 * 17)),
        (vec![R(header(11, 0)), R(segment(0, 8, 1)), W(1)], Status::Unsupported, SegmentFlags(1)),
        (vec![R(header(13, 0)), R(segment(0, 8, 2)), W(1)], Status::Unsupported, SegmentFlags(2)),
        (
            vec![R(header(13, 0)), R(segment(993, 8, 0)), W(1)],
            Status::IoError,
            OutOfRange { sector: 993, len: 4096 },
        ),
        (
            vec![R(header(11, 0)), R(segment(u64::MAX, 2, 0)), W(1)],
            Status::IoError,
            OutOfRange { sector: u64::MAX, len: 1024 },
        ),
        (
            vec![R(header(11, 0)), R(segment(0, MAX_SEGMENT_SECTORS + 1, 0)), W(1)],
            Status::IoError,
            SegmentShape { sector: 0, sectors: MAX_SEGMENT_SECTORS + 1 },
        ),
    ];
    for (index, (pieces, status, why)) in table.into_iter().enumerate() {
        assert_eq!(parse(&pieces).map(|r| r.op).unwrap_err(), (Some(status), Some(why)), "case {index}");
    }
}

#[test]
fn the_last_sector_is_inside_and_no_data_is_no_error() {
    assert_eq!(parse(&[R(header(0, 999)), W(512), W(1)]).unwrap().op, Op::Read { offset: 999 * 512 });
    let empty = parse(&[R(header(0, 1000)), W(1)]).unwrap();
    assert_eq!((empty.len, empty.data.len()), (0, 0));
}

#[test]
fn a_read_only_disk_refuses_what_changes_it() {
    let limits = Limits { read_only: true, ..LIMITS };
    for (kind, data) in [(1, vec![0; 512]), (11, segment(0, 8, 0)), (13, segment(0, 8, 0))] {
        let refused = parse_with(&limits, &[R(header(kind, 0)), R(data), W(1)]).map(|r| r.op).unwrap_err();
        assert_eq!(refused, (Some(Status::IoError), Some(Refusal::ReadOnly(kind))));
    }
    assert_eq!(parse_with(&limits, &[R(header(4, 0)), W(1)]).unwrap().op, Op::Flush);
    assert!(parse_with(&limits, &[R(header(0, 0)), W(512), W(1)]).is_ok());
}

#[test]
fn segments_are_read_and_empty_ones_dropped() {
    let mut data = segment(8, 16, 1);
    data.extend(segment(5, 0, 0));
    data.extend(segment(100, 1, 0));
    let (first, second) = data.split_at(20);
    let request = parse(&[R(header(13, 0)), R(first.to_vec()), R(second.to_vec()), W(1)]).unwrap();
    assert_eq!(request.op, Op::WriteZeroes);
    assert_eq!(
        request.ranges,
        [
            Range { offset: 8 * 512, len: 16 * 512, unmap: true },
            Range { offset: 100 * 512, len: 512, unmap: false }
        ]
    );
    let discard = parse(&[R(header(11, 0)), R(segment(8, 8, 0)), W(1)]).unwrap();
    assert_eq!(discard.ranges, [Range { offset: 4096, len: 4096, unmap: true }]);
}

#[test]
fn segments_are_whole_blocks() {
    let limits = Limits { block_sectors: 8, ..LIMITS };
    for (sector, sectors) in [(1, 8), (8, 1), (8, 12)] {
        let refused = parse_with(&limits, &[R(header(13, 0)), R(segment(sector, sectors, 0)), W(1)]);
        assert_eq!(
            refused.map(|r| r.op).unwrap_err(),
            (Some(Status::IoError), Some(Refusal::SegmentShape { sector, sectors }))
        );
    }
}

#[test]
fn an_identifier_needs_no_more_room_than_there_is() {
    assert_eq!(parse(&[R(header(8, 0)), W(20), W(1)]).unwrap().len, 20);
    assert_eq!(parse(&[R(header(8, 0)), W(6), W(1)]).unwrap().len, 6);
    assert_eq!(parse(&[R(header(8, 0)), W(4096), W(1)]).unwrap().len, 20);
    assert_eq!(parse(&[R(header(8, 0)), W(1)]).unwrap().len, 0);
}

#[test]
fn a_request_is_reused_without_traces() {
    let (first, _m1) = chain(&[R(header(13, 0)), R(segment(0, 8, 0)), W(1)]);
    let (second, _m2) = chain(&[R(header(0, 0)), W(512), W(1)]);
    let mut request = Request::default();
    request.parse(&first, &LIMITS).unwrap();
    request.parse(&second, &LIMITS).unwrap();
    assert!(request.ranges.is_empty());
    request.parse(&first, &LIMITS).unwrap();
    assert!(request.data.is_empty());
}
