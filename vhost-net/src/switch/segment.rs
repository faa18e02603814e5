//! What a sender left to others and a receiver cannot do either: checksums, and cutting large TCP segments to size.
//! Called by the switch's thread for a port that did not accept the offload a frame needs; on a copy of the frame.
//!
//! A checksum is completed from what is there: the sum of the pseudo header is in its place already (virtio 1.2 section
//! 5.1.6.2.1), so neither addresses nor extension headers have to be understood, and the segments' sums follow from it
//! by the difference in length. Refuses frames that are not what their header says (no TCP behind IPv4 or IPv6 there),
//! and pieces so small that a frame would become thousands.

use virtio_bindings::virtio_net as net;

use crate::header::{ETHERNET, HEADER};

const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = net::VIRTIO_NET_HDR_GSO_ECN as u8;

/// The smallest piece: what no TCP goes below (Linux TCP_MIN_SND_MSS). A frame has 1365 of them at most.
pub const SMALLEST: usize = 48;
/// FIN and PSH belong to the end of a segment, CWR to its beginning.
const AT_END: u8 = 0x09;
const AT_START: u8 = 0x80;

/// The frame is not what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame that cannot be cut: {0}")]
pub struct Uncut(&'static str);

/// A header, taken apart.
struct Fields {
    gso: u8,
    size: usize,
    start: usize,
    offset: usize,
}

fn fields(bytes: &[u8]) -> Option<Fields> {
    let [flags, gso, _, _, g0, g1, s0, s1, o0, o1, ..] = *bytes.first_chunk::<HEADER>()?;
    let word = |low, high| usize::from(u16::from_le_bytes([low, high]));
    let needs = flags & NEEDS_CSUM != 0;
    needs.then(|| Fields { gso, size: word(g0, g1), start: word(s0, s1), offset: word(o0, o1) })
}

/// The sum of 16-bit words, folded once; a byte too many counts as the high one.
fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    // 64 KiB of words do not overflow 32 bits.
    let all: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    (all & 0xffff) + (all >> 16) + last
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn put(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// Completes the checksum of a frame behind its header, whose flags are then clear.
///
/// # Errors
/// There is no such place.
pub fn complete(bytes: &mut [u8]) -> Result<(), Uncut> {
    let Some(Fields { start, offset, .. }) = fields(bytes) else { return Ok(()) };
    let nowhere = Uncut("its checksum is outside");
    let (header, frame) = bytes.split_first_chunk_mut::<HEADER>().ok_or(nowhere)?;
    let covered = frame.get_mut(start..).ok_or(nowhere)?;
    let value = !fold(sum(covered));
    // A UDP checksum of zero means none (RFC 768); for others both zeroes are the same.
    put(covered, offset, if value == 0 { 0xffff } else { value }).ok_or(nowhere)?;
    *header = [0; HEADER];
    Ok(())
}

/// Where things are in a segment to be cut.
struct Layout {
    ip: usize,
    v6: bool,
    tcp: usize,
    payload: usize,
}

fn layout(frame: &[u8], start: usize, gso: u8) -> Result<Layout, Uncut> {
    let ip = match frame.get(12..14) {
        Some([0x81, 0x00]) => ETHERNET + 4,
        _ => ETHERNET,
    };
    let room = start.checked_sub(ip).ok_or(Uncut("TCP begins before IP"))?;
    let first = *frame.get(ip).ok_or(Uncut("no IP header"))?;
    let v6 = match (gso & !GSO_ECN, first >> 4) {
        // The length is in words; the rest of the header is where it says.
        (GSO_TCPV4, 4) if room >= 20 && usize::from(first & 0xf) * 4 == room => false,
        (GSO_TCPV6, 6) if room >= 40 => true,
        _ => return Err(Uncut("the IP header is another one")),
    };
    let words = *frame.get(start + 12).ok_or(Uncut("no TCP header"))? >> 4;
    let payload = start + usize::from(words) * 4;
    if words < 5 || payload > frame.len() {
        return Err(Uncut("the TCP header is longer than the frame"));
    }
    Ok(Layout { ip, v6, tcp: start, payload })
}

/// Cuts a large TCP segment behind its header into pieces and gives each, behind a header of its own that asks for
/// nothing, to `take`. `piece` is room to work in.
///
/// # Errors
/// It is none; nothing was given.
pub fn cut(bytes: &[u8], piece: &mut Vec<u8>, mut take: impl FnMut(&[u8])) -> Result<(), Uncut> {
    let fields = fields(bytes).ok_or(Uncut("without a checksum"))?;
    let frame = bytes.get(HEADER..).unwrap_or_default();
    if fields.size < SMALLEST {
        return Err(Uncut("pieces of less than 48 bytes"));
    }
    if fields.offset != 16 {
        return Err(Uncut("the checksum is not TCP's"));
    }
    let at = layout(frame, fields.start, fields.gso)?;
    let (headers, payload) = frame.split_at_checked(at.payload).ok_or(Uncut("no payload"))?;
    let pieces = payload.len().div_ceil(fields.size).max(1);
    let mut parts = payload.chunks(fields.size);
    for number in 0..pieces {
        let part = parts.next().unwrap_or_default();
        piece.clear();
        piece.extend_from_slice(&[0; HEADER]);
        piece.extend_from_slice(headers);
        piece.extend_from_slice(part);
        let one = piece.get_mut(HEADER..).unwrap_or_default();
        let shape =
            Piece { number, last: number + 1 == pieces, offset: number * fields.size, whole: frame.len() };
        finish(one, &at, &shape).ok_or(Uncut("a header is cut off"))?;
        take(piece);
    }
    Ok(())
}

struct Piece {
    number: usize,
    last: bool,
    /// Of its payload in the whole one.
    offset: usize,
    /// Length of the whole frame.
    whole: usize,
}

/// Makes a piece's headers its own. `None` cannot happen: the layout was checked.
fn finish(frame: &mut [u8], at: &Layout, piece: &Piece) -> Option<()> {
    let len = frame.len();
    if at.v6 {
        put(frame, at.ip + 4, (len - at.ip - 40) as u16)?;
    } else {
        put(frame, at.ip + 2, (len - at.ip) as u16)?;
        let id = word(frame, at.ip + 4)?.wrapping_add(piece.number as u16);
        put(frame, at.ip + 4, id)?;
        put(frame, at.ip + 10, 0)?;
        let check = !fold(sum(frame.get(at.ip..at.tcp)?));
        put(frame, at.ip + 10, check)?;
    }
    let sequence = frame.get_mut(at.tcp + 4..at.tcp + 8)?;
    let first = u32::from_be_bytes((&*sequence).try_into().ok()?);
    sequence.copy_from_slice(&first.wrapping_add(piece.offset as u32).to_be_bytes());
    let flags = frame.get_mut(at.tcp + 13)?;
    if !piece.last {
        *flags &= !AT_END;
    }
    if piece.number > 0 {
        *flags &= !AT_START;
    }
    // The pseudo header's sum has the length of the whole; in ones' complement, taking away is adding the inverse.
    let whole = !((piece.whole - at.tcp) as u16);
    let pseudo = fold(u32::from(word(frame, at.tcp + 16)?) + u32::from(whole) + (len - at.tcp) as u32);
    put(frame, at.tcp + 16, pseudo)?;
    let check = !fold(sum(frame.get(at.tcp..)?));
    put(frame, at.tcp + 16, check)
}

#[cfg(test)]
#[path = "segment_test.rs"]
mod segment_test;
