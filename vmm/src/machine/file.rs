#![allow(unsafe_code)] // takes over the descriptor named on the command line
//! Reading the machine file, from a path or from a descriptor the launcher left open for us.
//!
//! `/dev/fd/N` is taken by its number: the folder is not everywhere, and descriptor N is closed afterwards.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{FromRawFd, RawFd};
use std::path::Path;

use strata_config::{ConfigError, Machine};

use super::MachineError;

/// The longest machine file; a pipe from a launcher gone wrong has no end.
const LONGEST: u64 = 1 << 20;

/// The descriptor that `path` names, if it names one.
pub(super) fn descriptor(path: &Path) -> Option<RawFd> {
    let text = path.to_str()?;
    let number = text.strip_prefix("/dev/fd/").or_else(|| text.strip_prefix("/proc/self/fd/"))?;
    number.parse().ok().filter(|fd| *fd > 2)
}

/// Reads and checks the machine file.
///
/// # Errors
/// It cannot be read or is wrong.
pub(super) fn read(path: &Path) -> Result<Machine, MachineError> {
    let wrong = |source: ConfigError| MachineError::Config { path: path.to_owned(), source };
    let Some(fd) = descriptor(path) else { return Machine::from_file(path).map_err(wrong) };
    let failed = MachineError::system(format!("read the machine file from descriptor {fd}"));
    // SAFETY: F_GETFD touches nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the command line gives us this open descriptor, and nothing else in this process has it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    // As opening it would: whoever wrote it may have left it at its end. A pipe has no beginning to go to.
    let _ = file.rewind();
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
    text.parse().map_err(wrong)
}

#[cfg(test)]
#[path = "file_test.rs"]
mod file_test;
