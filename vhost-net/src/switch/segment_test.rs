//! Pieces are put together again and compared with what was cut; sums are taken from the start, pseudo header and all.

use super::*;

/// The sum over pseudo header and payload of the layer above IP, which must come out as all ones.
fn transport_sum(frame: &[u8], ip: usize, v6: bool, tcp: usize) -> u16 {
    let addresses = if v6 { &frame[ip + 8..ip + 40] } else { &frame[ip + 12..ip + 20] };
    let length = (frame.len() - tcp) as u32;
    fold(sum(addresses) + 6 + length + sum(&frame[tcp..]))
}

/// A segment as a driver hands it over: its pseudo header's sum in place.
fn segment(v6: bool, tagged: bool, payload: usize, size: u16, options: usize) -> (Vec<u8>, usize, usize) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if tagged {
        frame.extend([0x81, 0, 0x60, 10]);
    }
    let ip = frame.len() + 2;
    let tcp_len = 20 + options + payload;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((tcp_len as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend((0..32).map(|n| n * 7 + 1));
    } else {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend((20 + tcp_len as u16).to_be_bytes());
        frame.extend([0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let tcp = frame.len();
    frame.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4]);
    frame.extend([(((20 + options) / 4) << 4) as u8, 0x99, 1, 0, 0, 0, 0, 0]);
    frame.extend(std::iter::repeat_n(1, options));
    frame.extend((0..payload).map(|n| (n * 13 % 251) as u8));
    let addresses = if v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let pseudo = fold(sum(&frame[addresses]) + 6 + tcp_len as u32);
    put(&mut frame, tcp + 16, pseudo).unwrap();
    let mut header = [0; HEADER];
    header[0] = 1;
    header[1] = if v6 { 4 } else { 1 };
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&(tcp as u16).to_le_bytes());
    header[8] = 16;
    ([&header[..], &frame].concat(), ip, tcp)
}

fn pieces(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Uncut> {
    let mut all = Vec::new();
    cut(bytes, &mut Vec::new(), |piece| all.push(piece.to_vec())).map(|()| all)
}

#[test]
fn pieces_are_the_whole_again() {
    for (v6, tagged, payload, size, options) in [
        (false, false, 65_000, 1448, 12),
        (false, true, 4000, 1000, 0),
        (true, false, 65_000, 1428, 12),
        (true, true, 1441, 48, 20),
        (false, false, 100, 1448, 40),
        (false, false, 0, 100, 0),
        (true, false, 2000, 1000, 0),
    ] {
        let (bytes, ip, tcp) = segment(v6, tagged, payload, size, options);
        let all = pieces(&bytes).unwrap();
        assert_eq!(all.len(), payload.div_ceil(size.into()).max(1));
        let (mut whole, mut next) = (Vec::new(), 0xffff_ff00u32);
        for (number, piece) in all.iter().enumerate() {
            assert_eq!(piece[..HEADER], [0; HEADER], "a piece asks for nothing");
            let frame = &piece[HEADER..];
            assert_eq!(transport_sum(frame, ip, v6, tcp), 0xffff, "{v6} {number}");
            if v6 {
                assert_eq!(usize::from(word(frame, ip + 4).unwrap()), frame.len() - ip - 40);
            } else {
                assert_eq!(usize::from(word(frame, ip + 2).unwrap()), frame.len() - ip);
                assert_eq!(fold(sum(&frame[ip..tcp])), 0xffff);
                assert_eq!(word(frame, ip + 4), Some(0xffffu16.wrapping_add(number as u16)));
            }
            assert_eq!(frame[..ip], bytes[HEADER..HEADER + ip], "Ethernet header and tag");
            let sequence = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().unwrap());
            assert_eq!(sequence, next);
            let part = &frame[tcp + 20 + options..];
            assert!(part.len() <= usize::from(size));
            next = next.wrapping_add(part.len() as u32);
            whole.extend_from_slice(part);
            let last = number + 1 == all.len();
            assert_eq!(frame[tcp + 13], 0x10 | if last { 9 } else { 0 } | if number == 0 { 0x80 } else { 0 });
        }
        assert_eq!(whole, bytes[HEADER + tcp + 20 + options..]);
    }
}

#[test]
fn a_checksum_is_completed_in_its_place() {
    for payload in [0, 1, 7, 1400] {
        let (mut bytes, ip, tcp) = segment(false, false, payload, 1448, 0);
        bytes[1] = 0;
        complete(&mut bytes).unwrap();
        assert_eq!(bytes[..HEADER], [0; HEADER]);
        assert_eq!(transport_sum(&bytes[HEADER..], ip, false, tcp), 0xffff);
    }
    // Nothing asked for, nothing done.
    let mut plain = vec![0u8; 80];
    complete(&mut plain).unwrap();
    assert_eq!(plain, [0; 80]);
}

#[test]
fn what_is_no_such_segment_is_refused() {
    let (good, ip, tcp) = segment(false, false, 4000, 1000, 0);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        pieces(&bytes)
    };
    assert!(pieces(&good).is_ok());
    for (at, value) in [
        (0, 0),                    // no checksum asked for
        (1, 4),                    // said to be IPv6
        (4, 47),                   // pieces too small
        (6, 13),                   // TCP inside the Ethernet header
        (6, 35),                   // TCP where IP does not end
        (8, 6),                    // UDP's checksum
        (HEADER + ip, 0x46),       // IP with options that are not there
        (HEADER + ip, 0x65),       // another version
        (HEADER + tcp + 12, 0x40), // a TCP header of 16 bytes
    ] {
        let refused = if at == 4 {
            let mut bytes = good.clone();
            bytes[4..6].copy_from_slice(&u16::from(value).to_le_bytes());
            pieces(&bytes)
        } else {
            with(at, value)
        };
        assert!(refused.is_err(), "{at} {value}");
    }
    // Cut off anywhere, it is refused or still gives whole pieces; it never panics.
    for end in 0..HEADER + tcp + 24 {
        let _ = pieces(&good[..end]);
        let _ = complete(&mut good[..end].to_vec());
    }
}
