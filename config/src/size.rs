//! Sizes (`512M`, `6G`, `1GiB`) and durations (`30`, `500ms`, `2m`) as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A value that may be written as a number or as text with a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A plain number; the key says in which unit.
    Number(i64),
    /// A number with a unit, or a name.
    Text(String),
}

impl fmt::Display for NumberOrText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => fmt::Debug::fmt(text, f),
        }
    }
}

impl NumberOrText {
    /// The text as it would be written on a command line.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

impl From<&str> for NumberOrText {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

// By hand, not `untagged`: an error then names the value instead of "did not match any variant".
impl<'de> Deserialize<'de> for NumberOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = NumberOrText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or text")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<NumberOrText, E> {
                i64::try_from(value)
                    .map(NumberOrText::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A size in bytes, written `512M`, `6G` or `1GiB`. Units are powers of 1024; a plain number means MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// What [`Size`] accepts, for error texts.
pub(crate) const SIZE_FORM: &str = "a whole number with K, M, G or T (or KiB, MiB, GiB, TiB), such as 512M or 6G; without a unit it means MiB";

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "m" | "mib" => 20,
            "k" | "kib" => 10,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(SIZE_FORM),
        };
        let number: u64 = number.parse().map_err(|_| SIZE_FORM)?;
        number.checked_mul(1 << shift).map(Size).ok_or(SIZE_FORM)
    }
}

impl fmt::Display for Size {
    /// The shortest exact form that [`Size::from_str`] reads back to the same size (to a whole KiB).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M')] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}K", self.0 / KIB)
    }
}

impl Size {
    /// From a plain number of MiB or a text with a unit.
    pub(crate) fn read(raw: &NumberOrText) -> Result<Self, &'static str> {
        match raw {
            NumberOrText::Number(mib) => {
                u64::try_from(*mib).ok().and_then(|mib| mib.checked_mul(MIB)).map(Size).ok_or(SIZE_FORM)
            }
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

/// What a duration may look like, for error texts.
pub(crate) const DURATION_FORM: &str = "seconds, or a whole number with ms, s or m, such as 30s";

/// A duration from a plain number of seconds or a text with a unit.
pub(crate) fn read_duration(raw: &NumberOrText) -> Result<Duration, &'static str> {
    let text = raw.plain();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| DURATION_FORM)?;
    match unit {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or(DURATION_FORM),
        _ => Err(DURATION_FORM),
    }
}

/// The inverse of [`read_duration`], exact to the millisecond.
pub(crate) fn write_duration(duration: Duration) -> NumberOrText {
    if duration.subsec_nanos() == 0
        && let Ok(seconds) = i64::try_from(duration.as_secs())
    {
        return NumberOrText::Number(seconds);
    }
    NumberOrText::Text(format!("{}ms", duration.as_millis()))
}
