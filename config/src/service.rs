//! What a machine is to a service manager and to the guest's own: when it counts as ready, the credentials it hands
//! its guest, and the share of the host it gets.
//!
//! Owns these keys' rules, both ways. What they mean is done by systemd (`resources`), the vmm (`ready`, `credentials`)
//! and the guest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::size::{NumberOrText, Size};

/// What vmm, disks and NICs need beside the guest's memory, at the least.
const BESIDE: u64 = 64 << 20;
/// FILENAME_MAX for a credential's name, which is a file's name in the guest.
const LONGEST_NAME: usize = 255;

/// When the machine counts as started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ready {
    /// Its vCPUs run.
    #[default]
    Vmm,
    /// The guest says so, on a console of its own for that (hvc1).
    Guest,
}

impl Ready {
    pub(crate) fn check(text: Option<&str>) -> Result<Self, ConfigError> {
        match text {
            None | Some("vmm") => Ok(Self::Vmm),
            Some("guest") => Ok(Self::Guest),
            Some(other) => Err(ConfigError::text("ready", other, "must be vmm or guest")),
        }
    }

    /// The file's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Guest => "guest",
        }
    }
}

/// Where a credential's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// Here.
    Text(String),
    /// In a file, read when the machine starts.
    File(PathBuf),
}

/// Credentials by their names in the guest.
pub type Credentials = BTreeMap<String, CredentialSource>;

pub(crate) fn credentials(
    texts: BTreeMap<String, String>,
    files: BTreeMap<String, PathBuf>,
) -> Result<Credentials, ConfigError> {
    let texts = texts.into_iter().map(|(name, text)| ("credentials", name, CredentialSource::Text(text)));
    let files =
        files.into_iter().map(|(name, path)| ("credential_files", name, CredentialSource::File(path)));
    let mut all = Credentials::new();
    for (key, name, source) in texts.chain(files) {
        let plain = name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'=' | b'%'));
        if !plain || name.is_empty() || name.len() > LONGEST_NAME || name == "." || name == ".." {
            let allowed = "must be 1 to 255 ASCII characters without space, `/`, `:`, `=` and `%`";
            return Err(ConfigError::text(key, &name, allowed));
        }
        if let CredentialSource::Text(text) = &source
            && text.contains('\0')
        {
            return Err(ConfigError::text(key, &name, "has a NUL in its text; put it into a file"));
        }
        if all.insert(name.clone(), source).is_some() {
            return Err(ConfigError::text(key, &name, "is in `credentials` too; keep one"));
        }
    }
    Ok(all)
}

/// The share of the host as it is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcesEntry {
    /// CPU time relative to other machines and services, 1 to 10000; theirs is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub cpu_weight: Option<i64>,
    /// The most CPU time, in percent of one CPU: 250 is two and a half CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub cpu_quota: Option<i64>,
    /// The most memory of all its processes, guest memory included, which needs 64M beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<NumberOrText>,
    /// Disk time relative to other machines and services, 1 to 10000; theirs is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub io_weight: Option<i64>,
}

/// The share of the host, for the machine with all its disks and NICs. `None`: as systemd has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative CPU time, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// The most CPU time in percent of one CPU.
    pub cpu_quota: Option<u32>,
    /// The most memory in bytes.
    pub memory_max: Option<u64>,
    /// Relative disk time, 1 to 10000.
    pub io_weight: Option<u32>,
}

impl ResourcesEntry {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn overlay(&mut self, over: Self) {
        let Self { cpu_weight, cpu_quota, memory_max, io_weight } = over;
        self.cpu_weight = cpu_weight.or(self.cpu_weight);
        self.cpu_quota = cpu_quota.or(self.cpu_quota);
        self.memory_max = memory_max.or(self.memory_max.take());
        self.io_weight = io_weight.or(self.io_weight);
    }

    /// `memory`: the guest's, in bytes.
    pub(crate) fn check(self, memory: u64) -> Result<Resources, ConfigError> {
        let number = |key, value: Option<i64>, most: i64| {
            let refused = |value| ConfigError::value(key, value, format!("must be 1 to {most}"));
            value
                .map(|value| match u32::try_from(value) {
                    Ok(number @ 1..) if value <= most => Ok(number),
                    _ => Err(refused(value)),
                })
                .transpose()
        };
        let memory_max = match &self.memory_max {
            None => None,
            Some(raw) => {
                let Size(bytes) = Size::read(raw)
                    .map_err(|form| ConfigError::value("memory_max", raw, format!("must be {form}")))?;
                let least = memory.saturating_add(BESIDE);
                if bytes < least {
                    let least = Size(least);
                    let allowed = format!("must be at least {least}: the guest's memory and 64M beside it");
                    return Err(ConfigError::value("memory_max", raw, allowed));
                }
                Some(bytes)
            }
        };
        Ok(Resources {
            cpu_weight: number("cpu_weight", self.cpu_weight, 10_000)?,
            cpu_quota: number("cpu_quota", self.cpu_quota, 100_000)?,
            memory_max,
            io_weight: number("io_weight", self.io_weight, 10_000)?,
        })
    }
}

impl From<Resources> for ResourcesEntry {
    fn from(resources: Resources) -> Self {
        let Resources { cpu_weight, cpu_quota, memory_max, io_weight } = resources;
        Self {
            cpu_weight: cpu_weight.map(i64::from),
            cpu_quota: cpu_quota.map(i64::from),
            memory_max: memory_max.map(|bytes| NumberOrText::Text(Size(bytes).to_string())),
            io_weight: io_weight.map(i64::from),
        }
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
