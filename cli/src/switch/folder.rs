//! A running switch's folder: `BASE/.switches/NAME`, 0700, with its control socket, its file as checked, and a folder
//! for each port's socket. Locked by its launcher as a machine's is ([`crate::run_dir`]).

use std::path::{Path, PathBuf};

use strata_config::{Name, SWITCHES};

use crate::run_dir::{RunDir, RunDirError, Running};

/// The switch as it was checked; there once it can be used.
pub(super) const FILE: &str = "switch.json";

/// Why a switch's folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("a switch named {name} runs already (process {pid}); stop that one or give another name")]
    Taken { name: Name, pid: String },
    #[error(transparent)]
    Other(RunDirError),
}

/// Makes and locks the folder of `name`.
pub(super) fn create(base: &Path, name: &Name) -> Result<RunDir, FolderError> {
    let mut tries = 0..3;
    loop {
        match RunDir::create(&base.join(SWITCHES), name) {
            Ok(folder) => return Ok(folder),
            Err(RunDirError::Taken { name, pid }) => return Err(FolderError::Taken { name, pid }),
            // The last of the others has just ended and taken the folder of all switches along.
            Err(RunDirError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && tries.next().is_some() => {}
            Err(other) => return Err(FolderError::Other(other)),
        }
    }
}

/// Removes the folder of all switches if there is none any more.
pub(super) fn remove_if_last(base: &Path) {
    let _ = std::fs::remove_dir(base.join(SWITCHES));
}

/// The folder of a switch whose launcher lives.
pub(super) fn find(base: &Path, name: &str) -> Option<Running> {
    Running::find(&base.join(SWITCHES).join(name))
}

/// All of them, by name.
pub(super) fn all(base: &Path) -> std::io::Result<Vec<Running>> {
    Running::all(&base.join(SWITCHES))
}

/// Whether machines can be plugged into a switch.
pub(crate) fn is_ready(base: &Path, name: &Name) -> bool {
    find(base, name.as_str()).is_some_and(|running| running.path.join(FILE).exists())
}

/// The control socket of its process.
pub(super) fn control(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}
