//! What a launcher does and, under a service manager, this process does itself: holding the machine's folder, so that
//! `strata ps`, `console` and `stop` find the machine, and taking guest memory from a tmpfs that was mounted for it.
//! Also where the guest's credentials come from: the machine file, files it names, or the service manager's copies.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use strata_config::{CredentialSource, Machine};

use super::MachineError;

/// Names the folder of the tmpfs; set by the unit that mounts it.
const MEMORY_DIR: &str = "STRATA_MEMORY_DIR";

/// Where a service manager puts credentials (systemd.exec(5)); ours for the guest have [`FOR_THE_GUEST`] before their name.
const CREDENTIALS_DIR: &str = "CREDENTIALS_DIRECTORY";
const FOR_THE_GUEST: &str = "guest.";
/// systemd's own limit.
const LARGEST_CREDENTIAL: u64 = 1 << 20;

/// The guest's credentials, name and content.
///
/// # Errors
/// A file is not there, is not for us to read, or is too large.
pub(super) fn credentials(machine: &Machine) -> Result<Vec<(String, Vec<u8>)>, MachineError> {
    let given = std::env::var_os(CREDENTIALS_DIR).map(PathBuf::from);
    let read = |(name, source): (&String, &CredentialSource)| {
        let content = match source {
            CredentialSource::Text(text) => text.clone().into_bytes(),
            CredentialSource::File(path) => {
                let copy = given.as_ref().map(|folder| folder.join(format!("{FOR_THE_GUEST}{name}")));
                let path = copy.filter(|copy| copy.exists()).unwrap_or_else(|| path.clone());
                let failed = |source| MachineError::System {
                    doing: format!("read the credential {name} from {}", path.display()),
                    source,
                };
                let mut content = Vec::new();
                let file = File::open(&path).map_err(failed)?;
                file.take(LARGEST_CREDENTIAL + 1).read_to_end(&mut content).map_err(failed)?;
                if content.len() as u64 > LARGEST_CREDENTIAL {
                    return Err(failed(io::Error::other("it is larger than 1 MiB")));
                }
                content
            }
        };
        Ok((name.clone(), content))
    };
    machine.credentials.iter().map(read).collect()
}

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
    fn credentials_come_from_the_file_and_from_files_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let (here, gone) = (dir.path().join("here"), dir.path().join("gone"));
        std::fs::write(&here, [0, 1]).unwrap();
        let machine = |path: &Path| -> Machine {
            let path = path.display();
            format!("kernel = '/k'\ncredentials.a = 'text'\ncredential_files.b = '{path}'\n").parse().unwrap()
        };
        let read = credentials(&machine(&here)).unwrap();
        assert_eq!(read, [("a".to_owned(), b"text".to_vec()), ("b".to_owned(), vec![0, 1])]);
        let error = credentials(&machine(&gone)).unwrap_err().to_string();
        assert!(error.contains("credential b") && error.contains("gone"), "{error}");
    }

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
