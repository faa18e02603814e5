//! Why a machine file or a flag is refused. Every text says which key, which value, what is allowed.

use std::fmt::Display;
use std::path::PathBuf;

use serde::de::{Expected, Unexpected};

/// What is wrong with a machine file or a flag.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the machine file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The text is neither valid TOML nor valid JSON.
    #[error("not valid {format}: {reason}")]
    Syntax {
        /// `TOML` or `JSON`.
        format: &'static str,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{}unknown key `{key}`{}; {} are: {allowed}", at(path), suggestion(nearest.as_deref()),
            if path.is_empty() { "the keys" } else { "its keys" })]
    UnknownKey {
        /// Where: empty at the top, else e.g. `disk[0]`.
        path: String,
        /// The key as written.
        key: String,
        /// The existing key that looks most like it.
        nearest: Option<String>,
        /// All keys allowed there, separated by commas.
        allowed: String,
    },
    /// A value outside what is allowed.
    #[error("{key} = {value}: {allowed}")]
    Value {
        /// The key with its path, e.g. `disk[0].serial`.
        key: String,
        /// The value as written, quoted where it is text.
        value: String,
        /// What is allowed, and what to do.
        allowed: String,
    },
    /// A key that must be there is not.
    #[error("{key} is missing: {what}")]
    Missing {
        /// The key with its path.
        key: String,
        /// What to write.
        what: String,
    },
    /// Keys that exclude one another.
    #[error("{path}: {reason}")]
    Conflict {
        /// Where, e.g. `disk[0]`.
        path: String,
        /// Which keys, and which one to drop.
        reason: String,
    },
    /// A flag's `key=value,...` text that cannot be split into keys and values.
    #[error("{text:?}: {reason}")]
    Flag {
        /// The text as written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!(", did you mean `{key}`?"))
}

impl ConfigError {
    pub(crate) fn value(key: impl Into<String>, value: impl Display, allowed: impl Into<String>) -> Self {
        Self::Value { key: key.into(), value: value.to_string(), allowed: allowed.into() }
    }

    pub(crate) fn text(key: impl Into<String>, value: &str, allowed: impl Into<String>) -> Self {
        Self::value(key, format_args!("{value:?}"), allowed)
    }

    /// The same error, one level up: `serial` inside `disk[0]` becomes `disk[0].serial`.
    pub(crate) fn inside(mut self, outer: &str) -> Self {
        let slot = match &mut self {
            Self::UnknownKey { path, .. } | Self::Conflict { path, .. } => path,
            Self::Value { key, .. } | Self::Missing { key, .. } => key,
            Self::Read { .. } | Self::Syntax { .. } | Self::Flag { .. } => return self,
        };
        *slot = match slot.as_str() {
            "" => outer.to_owned(),
            inner if inner.starts_with('[') => format!("{outer}{inner}"),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}

impl serde::de::Error for ConfigError {
    fn custom<T: Display>(message: T) -> Self {
        Self::Conflict { path: String::new(), reason: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::value("", plain(found), format!("must be {}", plain_type(&expected.to_string())))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::UnknownKey {
            path: String::new(),
            key: field.to_owned(),
            nearest: nearest(field, expected).map(str::to_owned),
            allowed: expected.join(", "),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing { key: field.to_owned(), what: "it has no default".to_owned() }
    }
}

/// A found value in the words of the file, not of Rust.
fn plain(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => format!("{text:?}"),
        Unexpected::Seq => "[...]".to_owned(),
        Unexpected::Map => "{...}".to_owned(),
        other => other.to_string(),
    }
}

fn plain_type(expected: &str) -> String {
    match expected {
        "i64" | "u64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" | "a path" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") => "a table of keys".to_owned(),
        other => other.to_owned(),
    }
}

/// The candidate that looks most like `word`, if any is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters missed, added, changed or swapped with their neighbour between two words (optimal string alignment).
/// The words are cut: keys are short, typing errors shorter.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<u8> = left.bytes().take(64).collect();
    let right: Vec<u8> = right.bytes().take(64).collect();
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut before = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut a_before = None;
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut b_before = None;
        for (j, b) in right.iter().enumerate() {
            let changed = at(&row, j) + usize::from(a != b);
            let mut least = changed.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            if a_before == Some(b) && b_before == Some(a) {
                least = least.min(at(&before, j.wrapping_sub(1)) + 1);
            }
            next.push(least);
            b_before = Some(b);
        }
        before = std::mem::replace(&mut row, next);
        a_before = Some(a);
    }
    at(&row, right.len())
}
