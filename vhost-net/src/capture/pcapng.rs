//! pcapng blocks (draft-ietf-opsawg-pcapng), as far as a capture of one Ethernet interface has them. Little-endian
//! throughout. Called by the module above; whoever reads checks with tshark.

use super::{Direction, Frame};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const MAGIC: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
/// Options, by number.
const END: u16 = 0;
const USER_APPLICATION: u16 = 4;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const RECEIVED: u16 = 4;
const DROPPED: u16 = 5;
/// Times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;

/// A block being written.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Block<'a> {
    fn new(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        let block = Self { out, start };
        block.u32(kind).u32(0)
    }

    fn u16(self, value: u16) -> Self {
        self.out.extend(value.to_le_bytes());
        self
    }

    fn u32(self, value: u32) -> Self {
        self.out.extend(value.to_le_bytes());
        self
    }

    /// The two halves of a time, the upper one first.
    fn time(self, value: u64) -> Self {
        self.u32((value >> 32) as u32).u32(value as u32)
    }

    /// Bytes, filled up to a multiple of four.
    fn padded(self, bytes: &[u8]) -> Self {
        self.out.extend(bytes);
        let fill = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.extend(std::iter::repeat_n(0, fill));
        self
    }

    fn option(self, code: u16, value: &[u8]) -> Self {
        // Names of interfaces and programs, and numbers: never longer.
        let value = value.get(..1024).unwrap_or(value);
        self.u16(code).u16(value.len() as u16).padded(value)
    }

    fn end(self) {
        let length = (self.out.len() + 4 - self.start) as u32;
        let bytes = length.to_le_bytes();
        if let Some(place) = self.out.get_mut(self.start + 4..self.start + 8) {
            place.copy_from_slice(&bytes);
        }
        self.out.extend(bytes);
    }
}

/// The beginning: a section by `program`, and its one interface, `name`, with frames cut to `keep` bytes.
pub fn begin(out: &mut Vec<u8>, program: &str, name: &str, keep: usize) {
    let section = Block::new(out, SECTION).u32(MAGIC).u16(1).u16(0).u32(u32::MAX).u32(u32::MAX);
    section.option(USER_APPLICATION, program.as_bytes()).option(END, &[]).end();
    let interface = Block::new(out, INTERFACE).u16(ETHERNET).u16(0).u32(u32::try_from(keep).unwrap_or(0));
    interface.option(NAME, name.as_bytes()).option(RESOLUTION, &[NANOSECONDS]).option(END, &[]).end();
}

/// A frame.
pub fn packet(out: &mut Vec<u8>, frame: &Frame) {
    let flags: u32 = match frame.direction {
        Direction::Inbound => 1,
        Direction::Outbound => 2,
    };
    let (kept, length) = (frame.data.len() as u32, frame.length as u32);
    let packet = Block::new(out, PACKET).u32(0).time(frame.time).u32(kept).u32(length).padded(&frame.data);
    packet.option(FLAGS, &flags.to_le_bytes()).option(END, &[]).end();
}

/// Frames that passed, and of these the ones that are missing, at `time`.
pub fn statistics(out: &mut Vec<u8>, time: u64, passed: u64, missing: u64) {
    let block = Block::new(out, STATISTICS).u32(0).time(time);
    let block = block.option(RECEIVED, &passed.to_le_bytes()).option(DROPPED, &missing.to_le_bytes());
    block.option(END, &[]).end();
}
