//! What of the host stays visible: a few directories and unix sockets, at their own paths, read-only.
//!
//! Checked and, if the process is root, copied by `isolate` (a detached copy needs no path any more, and root can
//! show it with other owners); attached by `lock`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use crate::account::Account;
use crate::sys::{self, MountAttr};
use crate::{SandboxError, idmap};

const ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// One visible path.
#[derive(Debug)]
pub(crate) struct Bind {
    path: PathBuf,
    directory: bool,
    /// A detached copy of the mounts there, if it could be made with the host's rights.
    tree: Option<OwnedFd>,
}

impl Bind {
    /// Checks that the path has the right form, exists, and is a directory or a socket.
    pub(crate) fn new(path: PathBuf) -> Result<Self, SandboxError> {
        let plain = path.is_absolute()
            && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)))
            && path.components().count() > 1;
        if !plain {
            return Err(SandboxError::BadBind {
                path,
                why: "it is not absolute, is the root, or has .. in it",
            });
        }
        let kind = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(source) => return Err(SandboxError::Bind { path, source }),
        };
        if !kind.is_dir() && !kind.is_socket() {
            return Err(SandboxError::BadBind { path, why: "it is neither a directory nor a socket" });
        }
        Ok(Self { path, directory: kind.is_dir(), tree: None })
    }

    /// As root: copies what is there and lets root's files appear as `account`'s, where the file system can.
    /// Does nothing for what it has no right to; `lock` then tries with the rights that are left.
    pub(crate) fn copy_as_root(&mut self, account: Account) {
        let Ok(tree) = self.copy() else { return };
        match idmap::user_namespace(account) {
            Ok(owners) => {
                // Kernels before 6.3 cannot for tmpfs; `check` then tells whether the modes allow enough.
                let attr = MountAttr {
                    set: libc::MOUNT_ATTR_IDMAP,
                    userns_fd: u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&owners)).unwrap_or(u64::MAX),
                    ..MountAttr::default()
                };
                if let Err(error) = sys::mount_setattr(tree.as_fd(), true, &attr) {
                    tracing::debug!("{}: keeps its owners: {error}", self.path.display());
                }
            }
            Err(error) => tracing::debug!("{}: keeps its owners: {error}", self.path.display()),
        }
        self.tree = Some(tree);
    }

    fn copy(&self) -> io::Result<OwnedFd> {
        let tree = sys::clone_tree(&c_path(&self.path)?)?;
        sys::mount_setattr(tree.as_fd(), true, &MountAttr { set: ATTRIBUTES, ..MountAttr::default() })?;
        Ok(tree)
    }

    /// Takes the copy now, unless it was taken as root.
    pub(crate) fn copy_if_needed(&mut self) -> Result<(), SandboxError> {
        if self.tree.is_none() {
            let tree =
                self.copy().map_err(|source| SandboxError::Bind { path: self.path.clone(), source })?;
            self.tree = Some(tree);
        }
        Ok(())
    }

    /// Attaches the copy at its path below `root`, and lets go of it.
    pub(crate) fn attach(&mut self, root: BorrowedFd<'_>) -> Result<(), SandboxError> {
        let Some(tree) = self.tree.take() else { return Ok(()) };
        self.place(root)
            .and_then(|target| sys::attach(tree.as_fd(), std::os::fd::AsRawFd::as_raw_fd(&root), &target))
            .map_err(|source| SandboxError::Bind { path: self.path.clone(), source })
    }

    /// Makes what the copy is attached to: the directories above, and a directory or an empty file.
    fn place(&self, root: BorrowedFd<'_>) -> io::Result<CString> {
        let inside = self.path.strip_prefix("/").map_err(io::Error::other)?;
        let directories = if self.directory { Some(inside) } else { inside.parent() };
        let mut at = PathBuf::new();
        for part in directories.into_iter().flat_map(Path::components) {
            at.push(part);
            match mkdirat(root, &at, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if !self.directory {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(root, inside, flags, Mode::S_IRUSR)?;
        }
        c_path(inside)
    }

    /// Whether the account can use it, now that it has no capabilities and sees only the new root.
    pub(crate) fn check(&self, account: Account) -> Result<(), SandboxError> {
        let wanted = if self.directory { libc::X_OK } else { libc::W_OK };
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        openat(nix::fcntl::AT_FDCWD, &self.path, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| sys::access(&file, wanted))
            .map_err(|source| SandboxError::Unreachable { path: self.path.clone(), uid: account.uid, source })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod bind_test {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_of_directories_and_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(Bind::new(dir.path().to_owned()).is_ok_and(|bind| bind.directory));
        assert!(Bind::new(socket).is_ok_and(|bind| !bind.directory));
        for bad in [PathBuf::from("/"), PathBuf::from("run"), dir.path().join("../etc"), file] {
            assert!(matches!(Bind::new(bad.clone()), Err(SandboxError::BadBind { .. })), "{bad:?}");
        }
        assert!(matches!(Bind::new(dir.path().join("missing")), Err(SandboxError::Bind { .. })));
    }
}
