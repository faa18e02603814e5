//! Lists of host CPUs, as the machine file writes them: `[2, 3]`, `3`, `"2-3,8"`.
//!
//! Owns how such a list is read, for every key that takes one: [`crate::vcpu`] for vCPUs, [`crate::serving`] for a disk's
//! queues, which also say how many there may be. Refuses everything that is not CPU numbers below a bound.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Host CPUs: a list of numbers, or text as the kernel writes such lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum CpuList {
    /// `[2, 3]`.
    Numbers(Vec<i64>),
    /// `"2-3,8"`.
    Text(String),
}

// By hand, not `untagged`: an error then names the value instead of "did not match any variant".
impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = CpuList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of CPU numbers, or text such as \"0-3,8\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<CpuList, E> {
                Ok(CpuList::Numbers(vec![value]))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<CpuList, E> {
                Ok(CpuList::Text(value.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<CpuList, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = seq.next_element()? {
                    numbers.push(number);
                }
                Ok(CpuList::Numbers(numbers))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(numbers) => write!(f, "{numbers:?}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl CpuList {
    /// The CPUs in the order given: each below `below`, and at most `most`.
    pub(crate) fn read(&self, below: u16, most: usize) -> Option<Vec<u16>> {
        match self {
            Self::Text(text) => parse(text, below, most),
            Self::Numbers(numbers) if numbers.len() > most => None,
            Self::Numbers(numbers) => {
                numbers.iter().map(|cpu| u16::try_from(*cpu).ok().filter(|cpu| *cpu < below)).collect()
            }
        }
    }
}

/// A list as in `/sys/devices/system/cpu/online`, or with blanks: `0-3, 8`.
pub(crate) fn parse(text: &str, below: u16, most: usize) -> Option<Vec<u16>> {
    let cpu = |text: &str| {
        let text = text.trim();
        // `parse` alone would take a sign.
        let number = text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)?;
        number.parse::<u16>().ok().filter(|cpu| *cpu < below)
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        // Before it is made: what a few bytes ask for is bounded.
        if first > last || cpus.len() + usize::from(last - first) >= most {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_numbers_and_ranges_below_a_bound() {
        let read = |text: &str| parse(text, 100, 4);
        assert_eq!(read("7"), Some(vec![7]));
        assert_eq!(read("0-1,8"), Some(vec![0, 1, 8]));
        assert_eq!(read(" 8 , 0 - 1,99"), Some(vec![8, 0, 1, 99]));
        for refused in [
            "",
            ",",
            "1,",
            "4-",
            "-4",
            "+4",
            "5-2",
            "1-2-3",
            "0x1",
            "100",
            "0-100",
            "99999999999",
            "0-4",
            "0-3,4",
        ] {
            assert_eq!(read(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn numbers_are_held_to_the_same_bounds() {
        let read = |numbers: &[i64]| CpuList::Numbers(numbers.to_vec()).read(100, 2);
        assert_eq!(read(&[99, 0]), Some(vec![99, 0]));
        for refused in [&[100][..], &[-1], &[65_536], &[1, 2, 3]] {
            assert_eq!(read(refused), None, "{refused:?}");
        }
    }
}
