use super::*;
use crate::features as feature;

const ALLOWED: Allowed = Allowed::of(feature::CSUM | feature::HOST_TSO4);

fn bytes(header: [u8; HEADER], tag: Option<u16>, len: usize) -> Vec<u8> {
    let mut frame = [&header[..], &[1; 6], &[2; 6]].concat();
    if let Some(tci) = tag {
        frame.extend([0x81, 0]);
        frame.extend(tci.to_be_bytes());
    }
    frame.extend([8, 0]);
    frame.extend((0..len).map(|n| n as u8));
    frame
}

fn gathered(out: &Out<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    assert!(out.gather(&mut all));
    assert_eq!(all.len(), out.len());
    all
}

/// Every way in and out: what the header counts moves with the tag, the rest stays.
#[test]
fn tags_come_and_go_and_the_header_keeps_pointing_at_the_same_bytes() {
    for len in [60, 300, 4000] {
        let mut plain = [0; HEADER];
        plain[..10].copy_from_slice(&[1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
        let mut behind = plain;
        [behind[2], behind[6]] = [58, 38];
        let (untagged, tagged) = (bytes(plain, None, len), bytes(behind, Some(0x6000 | 10), len));
        let from_plain = Frame::of_bytes(&untagged, ALLOWED).unwrap();
        assert_eq!((from_plain.tci(), from_plain.inner()), (None, false));
        assert_eq!(gathered(&from_plain.out(None).unwrap()), untagged);
        assert_eq!(gathered(&from_plain.out(Some(10)).unwrap()), bytes(behind, Some(10), len));
        let from_tagged = Frame::of_bytes(&tagged, ALLOWED).unwrap();
        assert_eq!(from_tagged.tci(), Some(0x6000 | 10));
        assert_eq!(from_tagged.len(), from_plain.len());
        assert_eq!(gathered(&from_tagged.out(None).unwrap()), untagged);
        assert_eq!(gathered(&from_tagged.out(Some(10)).unwrap()), tagged, "the priority stays");
    }
}

#[test]
fn two_tags_are_seen() {
    let mut double = bytes([0; HEADER], Some(10), 60);
    double[HEADER + 16..HEADER + 18].copy_from_slice(&TAG);
    assert!(Frame::of_bytes(&double, ALLOWED).unwrap().inner());
}

#[test]
fn what_is_no_frame() {
    let whole = bytes([0; HEADER], Some(10), 4);
    for end in 0..HEADER + ETHERNET {
        assert_eq!(Frame::of_bytes(&whole[..end], ALLOWED).unwrap_err(), Unfit::Short, "{end}");
    }
    for end in HEADER + ETHERNET..HEADER + 18 {
        assert_eq!(Frame::of_bytes(&whole[..end], ALLOWED).unwrap_err(), Unfit::Short, "half a tag, {end}");
    }
    assert!(Frame::of_bytes(&whole[..HEADER + 18], ALLOWED).is_ok());
    assert_eq!(Frame::of_bytes(&vec![0; HEADER + MAX_FRAME + 1], ALLOWED).unwrap_err(), Unfit::Long);
    let mut lie = [0; HEADER];
    lie[0] = 1;
    lie[6] = 17;
    let tagged = bytes(lie, Some(10), 60);
    assert!(matches!(Frame::of_bytes(&tagged, ALLOWED), Err(Unfit::Lie(_))), "a sum inside the tag");
    // The longest place there is cannot be moved further.
    let mut far = [0; HEADER];
    [far[0], far[6], far[7]] = [1, 0xfe, 0xff];
    let frame = bytes(far, None, 65_536 - ETHERNET);
    let frame = Frame::of_bytes(&frame, ALLOWED).unwrap();
    assert!(frame.out(None).is_ok() && frame.out(Some(1)).is_err());
}
