#![allow(unsafe_code)] // a descriptor that came with the process is only a number
//! An image that somebody else has opened: systemd's `OpenFile=`, as root and before the service's sandbox, so that the
//! process needs no right to its path, and sees none.
//!
//! It comes as two open files, because one cannot be made of the other here: opening it again through `/proc` asks for
//! the rights that this process is to do without. Called by `main`. Refuses two descriptors of different files, one that
//! cannot be written if the disk is to be, and all that is not a regular file: only who opens a block device can ask
//! whether it is mounted (O_EXCL), and systemd does not.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{ImageError, ImageOptions};

/// The two open files.
#[derive(Debug)]
pub struct Given {
    pub(super) buffered: File,
    pub(super) direct: File,
}

impl Given {
    /// Takes over what came with the process: the file for the page cache, and the one for direct I/O.
    ///
    /// # Errors
    /// A number is not that of an open descriptor.
    pub fn inherit(buffered: RawFd, direct: RawFd) -> io::Result<Self> {
        if buffered == direct {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { buffered: inherit(buffered)?, direct: inherit(direct)? })
    }

    /// Sees whether they are what was asked for.
    pub(super) fn check(&self, options: &ImageOptions) -> Result<(), ImageError> {
        let refused = |why| Err(ImageError::Given { path: options.path.clone(), why });
        let at = |source| ImageError::from_open(&options.path, options.read_only, source);
        let (one, other) = (self.buffered.metadata().map_err(at)?, self.direct.metadata().map_err(at)?);
        if !one.is_file() {
            return refused("is not of a regular file; a block device is opened by its path");
        }
        if (one.dev(), one.ino()) != (other.dev(), other.ino()) {
            return refused("and the one for direct I/O are of different files");
        }
        for file in [&self.buffered, &self.direct] {
            let mode = flags(file).map_err(at)? & OFlag::O_ACCMODE;
            if mode == OFlag::O_WRONLY {
                return refused("cannot be read");
            }
            if !options.read_only && mode != OFlag::O_RDWR {
                return refused("cannot be written; use --read-only if the guest need not write");
            }
        }
        Ok(())
    }
}

/// Has a file bypass the page cache from now on.
pub(super) fn bypass(file: File) -> io::Result<File> {
    let wanted = flags(&file)? | OFlag::O_DIRECT;
    fcntl(&file, FcntlArg::F_SETFL(wanted))?;
    Ok(file)
}

fn flags(file: &File) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?))
}

fn inherit(fd: RawFd) -> io::Result<File> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: not negative, and only asked whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    // Not for a program of ours, which there is none of; and an error if it is not open.
    fcntl(borrowed, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, as seen, and nothing else in this process uses the number: it is from the command line.
    let owned = unsafe { OwnedFd::from_raw_fd(borrowed.as_raw_fd()) };
    Ok(File::from(owned))
}
