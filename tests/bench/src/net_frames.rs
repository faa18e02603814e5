//! The frames that the network bench sends. Called by it alone.

use crate::net_driver::HEADER;

/// The hardware address of the side that the driver stands for.
pub(crate) const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// The other one.
pub(crate) const HOST: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];

fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2]) -> Vec<u8> {
    [&to[..], &from, &kind].concat()
}

/// A frame nobody understands: the host drops it as early as it can.
pub(crate) fn plain(len: usize) -> ([u8; HEADER], Vec<u8>) {
    let mut frame = ethernet(HOST, GUEST, [0x88, 0xb5]);
    frame.resize(len, 0x5a);
    ([0; HEADER], frame)
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: usize) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    ip.extend(from);
    ip.extend(to);
    ip.splice(2..4, ((20 + payload) as u16).to_be_bytes());
    let sum = checksum(&ip);
    ip.splice(10..12, sum.to_be_bytes());
    ip
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|w| w.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum + (sum >> 16)) as u16)
}

/// A TCP segment of 64 KiB to be cut, to an address that is not the host's.
pub(crate) fn segment() -> ([u8; HEADER], Vec<u8>) {
    const PAYLOAD: usize = 65_160;
    let mut frame = ethernet(HOST, GUEST, [0x08, 0x00]);
    frame.extend(ipv4(6, [198, 51, 100, 1], [198, 51, 100, 2], 20 + PAYLOAD));
    frame.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(frame.len() + PAYLOAD, 0x5a);
    let mut header = [0; HEADER];
    // NEEDS_CSUM, TCPv4, headers of 54 bytes, pieces of 1448, checksum at 34 + 16.
    for (to, from) in header.iter_mut().zip([1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]) {
        *to = from;
    }
    (header, frame)
}

/// A request that the host's own stack answers.
pub(crate) fn echo_request() -> Vec<u8> {
    let mut frame = ethernet(HOST, GUEST, [0x08, 0x00]);
    frame.extend(ipv4(1, [192, 0, 2, 2], [192, 0, 2, 1], 16));
    let mut icmp = vec![8, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let sum = checksum(&icmp);
    icmp.splice(2..4, sum.to_be_bytes());
    frame.extend(icmp);
    frame
}
