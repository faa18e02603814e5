use std::io::Read;
use std::os::unix::net::UnixStream;

use super::*;

fn offer(view: &mut View, direction: Direction, frame: &[u8]) {
    if view.is_on() {
        view.offer(direction, frame.len(), |out| {
            out.copy_from_slice(&frame[..out.len()]);
            true
        });
    }
}

#[test]
fn nothing_is_copied_while_nobody_looks() {
    let captures = Arc::new(Captures::default());
    let mut view = captures.view();
    assert!(!view.is_on());
    let source = captures.start(WHOLE).unwrap();
    assert!(view.is_on());
    drop(source);
    assert!(!view.is_on());
}

#[test]
fn each_capture_gets_all_frames_in_order() {
    let captures = Arc::new(Captures::default());
    let mut view = captures.view();
    let (whole, heads) = (captures.start(usize::MAX).unwrap(), captures.start(4).unwrap());
    offer(&mut view, Direction::Outbound, b"first frame");
    offer(&mut view, Direction::Inbound, b"2nd");
    for (source, kept) in [(&whole, [&b"first frame"[..], b"2nd"]), (&heads, [b"firs", b"2nd"])] {
        let frames: Vec<Frame> = std::iter::from_fn(|| source.take()).collect();
        assert_eq!(frames.iter().map(|frame| frame.data.as_slice()).collect::<Vec<_>>(), kept);
        assert_eq!(frames.iter().map(|frame| frame.length).collect::<Vec<_>>(), [11, 3]);
        assert_eq!(frames[0].direction, Direction::Outbound);
        assert_eq!(frames[1].direction, Direction::Inbound);
        assert!(frames[0].time > 1_600_000_000_000_000_000);
        assert_eq!(source.counts(), (2, 0));
    }
}

#[test]
fn who_does_not_take_frames_misses_some_and_nothing_grows() {
    let captures = Arc::new(Captures::default());
    let mut view = captures.view();
    let source = captures.start(WHOLE).unwrap();
    let frame = vec![7; 60_000];
    for _ in 0..200 {
        offer(&mut view, Direction::Inbound, &frame);
    }
    let room = (BYTES / frame.len()) as u64;
    assert_eq!(source.counts(), (200, 200 - room));
    // Room again, for as many as were taken.
    assert_eq!((0..10).filter_map(|_| source.take()).count(), 10);
    for _ in 0..20 {
        offer(&mut view, Direction::Inbound, &frame);
    }
    assert_eq!(source.counts(), (220, 210 - room));
    // Small ones are bounded by their number.
    let small = captures.start(WHOLE).unwrap();
    for _ in 0..FRAMES + 100 {
        offer(&mut view, Direction::Outbound, &[1; 60]);
    }
    assert_eq!(small.counts(), (FRAMES as u64 + 100, 100));
}

#[test]
fn there_are_not_more_than_a_few() {
    let captures = Arc::new(Captures::default());
    let sources: Vec<Source> = (0..MOST).map(|_| captures.start(64).unwrap()).collect();
    assert!(captures.start(64).is_err());
    drop(sources);
    assert!(captures.start(64).is_ok());
}

/// Block types and bodies.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = number(4) as usize;
        assert_eq!(length % 4, 0);
        assert_eq!(number(length - 4) as usize, length, "both lengths agree");
        blocks.push((number(0), bytes[8..length - 4].to_vec()));
        bytes = &bytes[length..];
    }
    blocks
}

#[test]
fn a_client_gets_pcapng_until_it_hangs_up() {
    let captures = Arc::new(Captures::default());
    let mut view = captures.view();
    let source = captures.start(8).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || stream(&source, far, "tap0"));
    offer(&mut view, Direction::Outbound, b"0123456789");
    offer(&mut view, Direction::Inbound, b"abc");
    let mut bytes = vec![0; 28];
    near.read_exact(&mut bytes).unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    near.read_to_end(&mut bytes).unwrap();
    writer.join().unwrap();
    assert!(!view.is_on(), "the capture has ended");
    let blocks = blocks(&bytes);
    assert_eq!(blocks.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [0x0a0d_0d0a, 1, 6, 6, 5]);
    assert_eq!(blocks[0].1[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
    assert_eq!(blocks[1].1[..16], [1, 0, 0, 0, 8, 0, 0, 0, 2, 0, 4, 0, b't', b'a', b'p', b'0']);
    let (first, second) = (&blocks[2].1, &blocks[3].1);
    assert_eq!(first[12..28], [8, 0, 0, 0, 10, 0, 0, 0, b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7']);
    assert_eq!(first[28..36], [2, 0, 4, 0, 2, 0, 0, 0], "outbound");
    assert_eq!(second[12..24], [3, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c', 0]);
    assert_eq!(second[24..32], [2, 0, 4, 0, 1, 0, 0, 0], "inbound");
    assert_eq!(blocks[4].1[12..24], [4, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(blocks[4].1[24..36], [5, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_client_that_goes_ends_it() {
    let captures = Arc::new(Captures::default());
    let source = captures.start(WHOLE).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    drop(near);
    stream(&source, far, "tap0");
}
