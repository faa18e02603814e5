//! Why an image cannot be served. One line each, for the person who started the process.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing is there.
    #[error("{} does not exist; give an existing file or block device (`truncate -s 10G FILE` makes an empty disk)", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// A directory.
    #[error("{} is a directory; give a file or a block device", path.display())]
    Directory {
        /// The image.
        path: PathBuf,
    },
    /// A FIFO, a socket, a character device.
    #[error("{} is neither a file nor a block device", path.display())]
    NotAnImage {
        /// The image.
        path: PathBuf,
    },
    /// Who opened it for us did it otherwise.
    #[error("{}: the descriptor passed for it {why}", path.display())]
    Given {
        /// The image.
        path: PathBuf,
        /// How.
        why: &'static str,
    },
    /// Not even one block.
    #[error("{} holds {bytes} bytes, less than one block; give it a size (`truncate -s 10G FILE`)", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The permission bits, or a read-only file system, say no.
    #[error("no permission to {} {}{}", if *read_only { "read" } else { "write to" }, path.display(),
            if *read_only { "" } else { "; use --read-only if the guest need not write" })]
    Permission {
        /// The image.
        path: PathBuf,
        /// Whether it was to be opened for reading only.
        read_only: bool,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody holds a lock on it.
    #[error("{} is in use by {holder}; {}", path.display(),
            if *read_only { "it can be shared only while nobody writes to it" } else { "a disk that is written to has one user" })]
    InUse {
        /// The image.
        path: PathBuf,
        /// Whether it was to be opened for reading only.
        read_only: bool,
        /// Who holds it, as far as it can be known.
        holder: String,
    },
    /// The file system does not know locks.
    #[error("{} cannot be locked, so it could be given to two guests at once", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A qcow2 header in a file whose format was not stated.
    #[error("{} begins like a qcow2 image and its format was not stated; say --format qcow2, or raw to serve these bytes as they are", path.display())]
    LooksLikeQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// Direct I/O was asked for and is not to be had.
    #[error("{}: the file system has no direct I/O; use --cache writeback", path.display())]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot open {}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Sorts a failed open by its cause.
    pub(super) fn from_open(path: &Path, read_only: bool, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::Missing { path },
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Self::Permission { path, read_only, source },
            Some(libc::EBUSY) => {
                Self::InUse { path, read_only, holder: "a mounted file system or another kernel user".into() }
            }
            _ => Self::Io { path, source },
        }
    }
}
