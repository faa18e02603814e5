//! The folder of a running machine: `BASE/NAME`, 0700, with its sockets and pid files.
//!
//! Owns who may use it: the launcher holds an flock on `lock` for as long as the machine lives, so a name is
//! taken exactly while its launcher lives, however that ends. Refuses a second machine of the same name. What a
//! dead launcher left is removed when the name is used again.
//!
//! The lock may be held for a moment longer: by whoever looks whether it is held ([`Running::find`]), and by a child that
//! the launcher forked just before it was killed. So one that no living launcher holds is waited for.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use strata_config::{ConfigError, Machine, Name};

use crate::launcher;

/// What the machine is, as its launcher last noted it.
const MACHINE: &str = "machine.json";
/// How long a lock may be held that is no living launcher's.
const PASSING: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(5);

/// Why a machine's folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunDirError {
    #[error("a machine named {name} runs already (process {pid}); stop it or give another --name")]
    Taken { name: Name, pid: String },
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} belongs to user {owner}; remove it or set STRATA_RUN_DIR", path.display())]
    NotOurs { path: PathBuf, owner: u32 },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    move |source| RunDirError::Io { path: path.to_owned(), source }
}

/// Where all machines of this user have their folders.
pub(crate) fn base() -> PathBuf {
    if let Some(path) = std::env::var_os("STRATA_RUN_DIR").filter(|path| !path.is_empty()) {
        return std::path::absolute(&path).unwrap_or_else(|_| path.into());
    }
    let uid = nix::unistd::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        _ if uid.is_root() => PathBuf::from("/run/strata"),
        Some(path) => PathBuf::from(path).join("strata"),
        None => PathBuf::from(format!("/tmp/strata-{uid}")),
    }
}

/// A machine's folder, ours until dropped.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes and locks the folder of `name`, removing what a dead launcher left there.
    pub(crate) fn create(base: &Path, name: &Name) -> Result<Self, RunDirError> {
        DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(at(base))?;
        // In /tmp somebody else could have made it first, to look into our sockets.
        let owner = fs::symlink_metadata(base).map_err(at(base))?.uid();
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(RunDirError::NotOurs { path: base.to_owned(), owner });
        }
        let path = base.join(name.as_str());
        let lock = lock(&path, name)?;
        let run_dir = Self { path, _lock: lock };
        run_dir.clear().map_err(at(&run_dir.path))?;
        Ok(run_dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves what the machine is: for commands about it, and for people. In place of what it was before, whole.
    pub(crate) fn note(&self, machine: &Machine) -> Result<(), RunDirError> {
        let (path, fresh) = (self.path.join(MACHINE), self.path.join(format!("{MACHINE}.new")));
        let json = serde_json::to_vec_pretty(machine).map_err(|error| at(&path)(error.into()))?;
        fs::write(&fresh, json).and_then(|()| fs::rename(&fresh, &path)).map_err(at(&path))
    }

    /// Writes `id.pid`.
    pub(crate) fn write_pid(&self, id: &str, pid: u32) -> io::Result<()> {
        fs::write(self.path.join(format!("{id}.pid")), format!("{pid}\n"))
    }

    /// Removes its launcher's socket, and everything in it but the lock, and the folders of a switch's ports: its guests' vmms have those mounted.
    fn clear(&self) -> io::Result<()> {
        match fs::remove_file(launcher::socket(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == "lock" || entry.file_name() == "ports" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // The lock goes last, with its folder: see `lock` for who comes in between.
        if let Err(error) = self.clear().and_then(|()| fs::remove_dir_all(&self.path)) {
            eprintln!("strata: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn lock(path: &Path, name: &Name) -> Result<Flock<File>, RunDirError> {
    let lock_path = path.join("lock");
    let start = Instant::now();
    loop {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(error)),
            _ => crate::owner::give(path).map_err(at(path))?,
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path);
        let file = match opened {
            Ok(file) => file,
            // Its launcher removed the folder between the two steps.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&lock_path)(error)),
        };
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                if start.elapsed() >= PASSING || is_alive(&pid) {
                    return Err(RunDirError::Taken { name: name.clone(), pid });
                }
                std::thread::sleep(LOOK);
                continue;
            }
            Err((_, errno)) => return Err(at(&lock_path)(errno.into())),
        };
        // The lock counts only on the file that is there now: its last owner may have removed it meanwhile.
        let ours = lock.metadata().map_err(at(&lock_path))?;
        if fs::metadata(&lock_path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        {
            lock.set_len(0).map_err(at(&lock_path))?;
            writeln!(lock, "{}", std::process::id()).map_err(at(&lock_path))?;
            return Ok(lock);
        }
    }
}

/// Whether there is such a process, and it is no zombie. Nothing stands for one that has yet to write its number.
fn is_alive(pid: &str) -> bool {
    let stat = pid.parse::<u32>().ok().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stat.is_some_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

/// The socket of the vmm of the machine in this folder.
pub(crate) fn control(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// A running machine as its folder shows it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) path: PathBuf,
    /// The launcher.
    pub(crate) pid: u32,
}

impl Running {
    /// The machine in this folder, if its launcher lives.
    pub(crate) fn find(path: &Path) -> Option<Self> {
        let mut file = File::open(path.join("lock")).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        // A shared lock can be had only when nobody holds the exclusive one: then the launcher is dead.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => {}
            _ => return None,
        }
        Some(Self { path: path.to_owned(), pid: text.trim().parse().ok()? })
    }

    /// All of them, by name.
    pub(crate) fn all(base: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths.iter().filter_map(|path| Self::find(path)).collect())
    }

    pub(crate) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(crate) fn control(&self) -> PathBuf {
        control(&self.path)
    }

    /// What the machine is, as its launcher last noted it.
    pub(crate) fn machine(&self) -> Result<Machine, ConfigError> {
        Machine::from_file(&self.path.join(MACHINE))
    }

    /// The pid in `id.pid`.
    pub(crate) fn pid_of(&self, id: &str) -> Option<u32> {
        fs::read_to_string(self.path.join(format!("{id}.pid"))).ok()?.trim().parse().ok()
    }

    /// The processes the launcher started: id and pid, the vmm first.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut ids: Vec<String> = names
            .filter_map(|name| name.to_str().and_then(|name| name.strip_suffix(".pid")).map(str::to_owned))
            .collect();
        ids.sort_by_key(|id| (id != "vmm", id.clone()));
        ids.into_iter().filter_map(|id| self.pid_of(&id).map(|pid| (id, pid))).collect()
    }
}
