//! What the launcher knows of its backends, left in the machine's folder for `strata ps` and `strata status`.
//!
//! A file, replaced whole at each change, so that it can be read while the launcher is busy.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

const FILE: &str = "supervision.json";

/// Of each device with a process of the launcher's.
pub(crate) type Record = BTreeMap<String, Entry>;

/// Of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// How often its process died and was started again.
    pub(crate) restarts: u64,
    /// How often it was killed because it hung.
    pub(crate) hangs: u64,
    /// How often it was replaced by another version.
    pub(crate) upgrades: u64,
    /// How it ended last.
    pub(crate) last_death: Option<String>,
    /// It is dead, and is started again after this wait.
    pub(crate) waits_milliseconds: Option<u64>,
}

/// Leaves it in `folder`.
///
/// # Errors
/// The file system's.
pub(crate) fn write(folder: &Path, record: &Record) -> std::io::Result<()> {
    let fresh = folder.join(format!("{FILE}.new"));
    std::fs::write(&fresh, serde_json::to_vec_pretty(record)?)?;
    std::fs::rename(fresh, folder.join(FILE))
}

/// What is there; empty where no launcher left anything (a machine under systemd).
pub(crate) fn read(folder: &Path) -> Record {
    let text = std::fs::read(folder.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}
