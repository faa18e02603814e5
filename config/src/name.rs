//! Names of machines and devices. They become folders and sockets, so they can hold nothing that means
//! anything to a path: no slash, no leading dot.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

/// Names the launcher and the vmm use inside a machine's folder.
const RESERVED_IDS: [&str; 5] = ["vmm", "control", "console", "launcher", "lock"];

fn check(text: &str, limit: usize) -> bool {
    text.len() <= limit
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
}

/// A machine's name: 1 to 64 of `a-z 0-9 - _ .`, first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// A device's id within its machine: 1 to 32 of `a-z 0-9 - _ .`, first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DeviceId(String);

impl FromStr for Name {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !check(text, 64) {
            return Err(
                "must be 1 to 64 characters of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for DeviceId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if RESERVED_IDS.contains(&text) {
            return Err(
                "is taken by Strata's own files; the reserved ids are vmm, control, console, launcher, lock",
            );
        }
        if !check(text, 32) {
            return Err(
                "must be 1 to 32 characters of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// The name of what is in a file: the file's without `.toml` or `.json`, if that can be one.
    pub(crate) fn of_file(path: &Path) -> Option<String> {
        let suffix = path.extension()?.to_str()?;
        let stem = path.file_stem()?.to_str()?;
        (matches!(suffix, "toml" | "json") && stem.parse::<Self>().is_ok()).then(|| stem.to_owned())
    }
}

impl DeviceId {
    /// The id of a device that was given none: `disk0`, `net1`, `dev0`.
    pub(crate) fn numbered(prefix: &'static str, index: usize) -> Self {
        Self(format!("{prefix}{index}"))
    }
}

macro_rules! text_of {
    ($($type:ty),*) => {$(
        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}
text_of!(Name, DeviceId);
