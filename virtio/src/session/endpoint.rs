#![allow(unsafe_code)] // a descriptor number on the command line becomes an owned descriptor
//! Where a backend's frontends come from: a socket of its own, or one that was passed down.
//!
//! Called by a backend's `main` before the sandbox. Refuses a path that is something else than a dead socket,
//! and a descriptor that is no unix stream socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

/// Where frontends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket: one client after another.
    Listener(UnixListener),
    /// One connected client.
    Stream(UnixStream),
}

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Somebody answers there.
    #[error("{} is in use: another process listens on it", .0.display())]
    InUse(PathBuf),
    /// It exists and is not a socket.
    #[error("{} exists and is not a socket; give a path that can be made", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// `--fd` is not what it has to be.
    #[error("--fd {fd}: not an open unix stream socket")]
    Descriptor {
        /// The number.
        fd: RawFd,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl Endpoint {
    /// A socket that was passed down, listening or connected.
    ///
    /// # Errors
    /// It is not a socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(if getsockopt(&fd, sockopt::AcceptConn)? {
            Self::Listener(UnixListener::from(fd))
        } else {
            Self::Stream(UnixStream::from(fd))
        })
    }

    /// Listens on `path`, in place of a socket that a process left behind.
    ///
    /// # Errors
    /// Something else is there, or the system refuses.
    pub fn listen(path: &Path) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Listen { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(EndpointError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(EndpointError::InUse(path.to_owned())),
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        UnixListener::bind(path).map(Self::Listener).map_err(failed)
    }

    /// Takes over a descriptor that the parent left open, by its number on the command line.
    ///
    /// # Errors
    /// It is no unix stream socket.
    pub fn inherit(fd: RawFd) -> Result<Self, EndpointError> {
        let wrong = |source: io::Error| EndpointError::Descriptor { fd, source };
        if fd < 0 {
            return Err(wrong(io::ErrorKind::InvalidInput.into()));
        }
        // SAFETY: nothing else in this process uses the number: it is from the command line and checked below.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let kind = getsockopt(&borrowed, sockopt::SockType).map_err(|errno| wrong(errno.into()))?;
        let address: SockaddrStorage =
            getsockname(borrowed.as_raw_fd()).map_err(|errno| wrong(errno.into()))?;
        if kind != SockType::Stream || address.family() != Some(AddressFamily::Unix) {
            return Err(wrong(io::ErrorKind::InvalidInput.into()));
        }
        // SAFETY: open, as seen, and ours alone.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        Self::from_fd(owned).map_err(wrong)
    }
}
