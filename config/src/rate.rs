//! Rates as people write them: `100M`, `2.5G`, `20k`.

use std::fmt;
use std::str::FromStr;

/// So many per second, at least one. Units are powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// What a [`Rate`] accepts, for error texts.
const FORM: &str =
    "must be a number per second, 1 to 1000G, with k, M or G for powers of 1000, such as 100M or 2.5G";
const MOST: u64 = 1_000_000_000_000;

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale: u64 = match unit {
            "" => 1,
            "k" | "K" => 1_000,
            "m" | "M" => 1_000_000,
            "g" | "G" => 1_000_000_000,
            _ => return Err(FORM),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if fraction.is_empty() || fraction.len() > 9 {
            return Err(FORM);
        }
        let whole: u64 = whole.parse().map_err(|_| FORM)?;
        let parts: u64 = fraction.parse().map_err(|_| FORM)?;
        let parts = scale.checked_mul(parts).map(|parts| parts / 10_u64.pow(fraction.len() as u32));
        let rate = whole.checked_mul(scale).zip(parts).and_then(|(whole, parts)| whole.checked_add(parts));
        rate.filter(|rate| (1..=MOST).contains(rate)).map(Self).ok_or(FORM)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (scale, unit) in [(1_000_000_000, 'G'), (1_000_000, 'M'), (1_000, 'k')] {
            if self.0.is_multiple_of(scale) {
                return write!(f, "{}{unit}", self.0 / scale);
            }
        }
        write!(f, "{}", self.0)
    }
}
