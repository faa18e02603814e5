//! Ethernet addresses: parsed from the command line, given to a guest, compared in filters. Refuses, on the
//! command line, what no card can have.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is no address for a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six two-digit hexadecimal numbers.
    #[error("{0:?} is no MAC address; six hexadecimal bytes with colons are allowed, like 52:54:00:12:34:56")]
    Form(String),
    /// A group address, which frames cannot come from.
    #[error("{0} is a group address; the first byte must be even")]
    Group(Mac),
    /// All zeros.
    #[error("00:00:00:00:00:00 is no address")]
    Zero,
}

impl Mac {
    /// The address of everyone.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// From its bytes, unchecked.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes in the order of the wire.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether it names a group (broadcast included).
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The IPv6 link-local address a host makes from it (RFC 4291 appendix A).
    #[must_use]
    pub const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// An address for the card behind a tap, always the same for the same name: a backend that is started again
    /// must not give its guest another card. Locally administered, under QEMU's well-known prefix.
    #[must_use]
    pub fn for_tap(name: &str) -> Self {
        // FNV-1a; it only has to spread.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, ..] = (hash ^ (hash >> 32)).to_le_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(form)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() || text.contains('+') {
            return Err(form());
        }
        let mac = Self(bytes);
        match mac {
            Self([0, 0, 0, 0, 0, 0]) => Err(MacError::Zero),
            mac if mac.is_group() => Err(MacError::Group(mac)),
            mac => Ok(mac),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
#[path = "mac_test.rs"]
mod mac_test;
