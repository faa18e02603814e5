//! Who the guest is to itself and to the host's registers: a UUID, in SMBIOS and at machined.

use std::fmt;
use std::str::FromStr;

use crate::name::Name;

/// A UUID (RFC 9562), written in lower case with hyphens. Never all zero: in SMBIOS that means that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

/// Where the hyphens are.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl Uuid {
    /// The 16 bytes in the order they are written in.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The UUID of a machine that was given none: the same at every start on this host, another on every other.
    /// `host` is what tells the host from others, such as the text of /etc/machine-id.
    #[must_use]
    pub fn generated(host: &str, name: &Name) -> Self {
        // FNV-1a of 128 bits: spread out and never changing is enough, and the host's id cannot be read off it.
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for byte in host.trim().bytes().chain([0xff]).chain(name.as_str().bytes()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        // Version 8, "custom", and the variant (RFC 9562, 5.8).
        let version = 0xf << 76;
        let variant = 0x3 << 62;
        Self(((hash & !version & !variant) | 0x8 << 76 | 0x2 << 62).to_be_bytes())
    }
}

impl FromStr for Uuid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be a UUID such as 6ba7b810-9dad-41d1-80b4-00c04fd430c8, not all zero";
        let hyphens = text.match_indices('-').map(|(at, _)| at);
        if text.len() != 36 || !hyphens.eq(HYPHENS) {
            return Err(FORM);
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FORM);
        }
        match u128::from_str_radix(&digits, 16) {
            Ok(number @ 1..) => Ok(Self(number.to_be_bytes())),
            _ => Err(FORM),
        }
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod identity_test {
    use super::*;

    #[test]
    fn a_uuid_is_read_and_written() {
        let text = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
        let uuid: Uuid = text.to_uppercase().parse().unwrap();
        assert_eq!(uuid.to_string(), text);
        assert_eq!(uuid.bytes()[..4], [0x6b, 0xa7, 0xb8, 0x10]);
        let wrong = [
            "",
            "6ba7b8109dad41d180b400c04fd430c8",
            "6ba7b810-9dad-41d1-80b4-00c04fd430c",
            "00000000-0000-0000-0000-000000000000",
            "6ba7b810-9dad-41d1-80b4-00c04fd430cg",
            "+ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "6ba7b8109-dad-41d1-80b4-00c04fd430c8",
        ];
        for text in wrong {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_generated_one_depends_on_host_and_name_and_nothing_else() {
        let of = |host: &str, name: &str| Uuid::generated(host, &name.parse().unwrap());
        assert_eq!(of("a", "web"), of("a\n", "web"));
        assert_ne!(of("a", "web"), of("b", "web"));
        assert_ne!(of("a", "web"), of("a", "db"));
        let text = of("a", "web").to_string();
        assert_eq!((&text[14..15], text.parse()), ("8", Ok(of("a", "web"))));
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
