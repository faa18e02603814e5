use super::*;

const ALL: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::HOST_USO;

fn header(flags: u8, gso: u8, hdr_len: u16, size: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    h[0] = flags;
    h[1] = gso;
    h[2..4].copy_from_slice(&hdr_len.to_le_bytes());
    h[4..6].copy_from_slice(&size.to_le_bytes());
    h[6..8].copy_from_slice(&start.to_le_bytes());
    h[8..10].copy_from_slice(&offset.to_le_bytes());
    h
}

#[test]
fn honest_headers_pass_unchanged() {
    let allowed = Allowed::new(ALL);
    for h in [
        header(0, 0, 0, 0, 0, 0),
        header(1, 0, 0, 0, 34, 16),
        header(1, 1, 54, 1448, 34, 16),
        header(1, 0x81, 54, 1448, 34, 16),
        header(1, 4, 74, 1428, 54, 16),
        header(1, 5, 42, 1472, 34, 6),
    ] {
        assert_eq!(allowed.check(&h, 1514), Ok(h));
    }
}

#[test]
fn meaningless_fields_are_cleared() {
    let mut h = header(0xfe, 0, 0xffff, 0xffff, 0xffff, 0xffff);
    h[10] = 0xff;
    assert_eq!(Allowed::new(ALL).check(&h, 60), Ok([0; HEADER]));
}

#[test]
fn lies_are_named() {
    let allowed = Allowed::new(ALL);
    let lies = [
        (header(1, 1, 54, 0, 34, 16), Lie::SegmentSize),
        (header(1, 1, 101, 10, 34, 16), Lie::HeaderLength { headers: 101, frame: 100 }),
        (header(1, 0, 0, 0, 90, 9), Lie::ChecksumPlace { start: 90, offset: 9, frame: 100 }),
        (
            header(1, 0, 0, 0, 0xffff, 0xffff),
            Lie::ChecksumPlace { start: 0xffff, offset: 0xffff, frame: 100 },
        ),
        (header(0, 1, 54, 10, 34, 16), Lie::SegmentChecksum),
        (header(1, 2, 54, 10, 34, 16), Lie::Segmentation(2)),
        (header(1, 0x80, 54, 10, 34, 16), Lie::Segmentation(0x80)),
        (header(1, 0x83, 54, 10, 34, 16), Lie::Segmentation(0x83)),
        (header(1, 0x7f, 54, 10, 34, 16), Lie::Segmentation(0x7f)),
    ];
    for (h, lie) in lies {
        assert_eq!(allowed.check(&h, 100), Err(lie), "{h:?}");
    }
}

#[test]
fn the_last_two_bytes_may_hold_the_checksum() {
    let allowed = Allowed::new(ALL);
    assert!(allowed.check(&header(1, 0, 0, 0, 90, 8), 100).is_ok());
}

#[test]
fn what_was_not_negotiated_is_refused() {
    for (gso, without) in [
        (1, feature::HOST_TSO4),
        (4, feature::HOST_TSO6),
        (3, feature::HOST_UFO),
        (5, feature::HOST_USO),
        (0x81, feature::HOST_ECN),
    ] {
        let h = header(1, gso, 54, 100, 34, 16);
        assert!(Allowed::new(ALL).check(&h, 1000).is_ok());
        assert_eq!(Allowed::new(ALL & !without).check(&h, 1000), Err(Lie::Segmentation(gso)));
    }
    let h = header(1, 0, 0, 0, 34, 16);
    assert_eq!(Allowed::new(0).check(&h, 1000), Err(Lie::Checksum));
}
