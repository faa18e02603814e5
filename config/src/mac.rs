//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use crate::name::Name;

/// A unicast Ethernet address, written `02:00:00:aa:bb:cc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Checks that the address can be a NIC's: not multicast (bit 0 of the first byte), not zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        (first & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The six bytes in transmission order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address of a machine's NIC that was given none: locally administered, and the same at every start,
    /// so that a guest keeps its leases and its interface names.
    pub fn generated(name: &Name, index: usize) -> Self {
        // FNV-1a: what matters is that it is spread out and never changes, not that it is hard to invert.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in name.as_str().bytes().chain([0xff]).chain((index as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let [a, b, c, d, e, ..] = (hash ^ (hash >> 40)).to_le_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be six bytes in hexadecimal, such as 02:00:00:aa:bb:cc";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(FORM)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(FORM);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| FORM)?;
        }
        if parts.next().is_some() {
            return Err(FORM);
        }
        Self::new(bytes)
            .ok_or("must be a unicast address: the first byte even, not all zero; 02:... is free for own use")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
