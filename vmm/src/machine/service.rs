//! What a launcher does and, under a service manager, this process does itself: holding the machine's folder, so that
//! `strata ps`, `console` and `stop` find the machine, and taking guest memory from a tmpfs that was mounted for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use strata_config::Machine;

use super::MachineError;

/// Names the folder of the tmpfs; set by the unit that mounts it.
const MEMORY_DIR: &str = "STRATA_MEMORY_DIR";

/// Locks the machine's folder as a launcher does (its lock file holds the process id) and leaves the machine in it.
/// The folder is ours for as long as the result lives.
///
/// # Errors
/// Another process has it, or it cannot be written.
pub(super) fn hold(run_dir: &Path, machine: &Machine) -> Result<Flock<File>, MachineError> {
    let failed = |source| MachineError::System { doing: format!("use {}", run_dir.display()), source };
    let open = |name: &str| {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(run_dir.join(name))
    };
    let file = open("lock").map_err(failed)?;
    let mut lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| failed(errno.into()))?;
    let write = |file: &mut File, text: &str| {
        file.set_len(0)?;
        file.write_all(text.as_bytes())
    };
    write(&mut lock, &format!("{}\n", std::process::id())).map_err(failed)?;
    let json = serde_json::to_string(machine).map_err(|error| failed(io::Error::other(error)))?;
    open("machine.json").and_then(|mut file| write(&mut file, &json)).map_err(failed)?;
    Ok(lock)
}

/// A file for guest memory, with huge pages: on the tmpfs the service manager mounted, else on one of our own.
pub(super) fn memory_file(size: u64) -> io::Result<OwnedFd> {
    match std::env::var_os(MEMORY_DIR) {
        Some(folder) => strata_sandbox::tmpfs_in(Path::new(&folder), size),
        None => strata_sandbox::private_tmpfs_huge(size),
    }
}

#[cfg(test)]
mod service_test {
    use super::*;

    #[test]
    fn a_machines_folder_is_held_once_and_freed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let machine: Machine = "name = 'web'\nkernel = '/k'\n".parse().unwrap();
        let held = hold(dir.path(), &machine).unwrap();
        assert!(hold(dir.path(), &machine).is_err());
        let pid = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        assert_eq!(Machine::from_file(&dir.path().join("machine.json")).unwrap(), machine);
        drop(held);
        hold(dir.path(), &machine).unwrap();
    }
}
