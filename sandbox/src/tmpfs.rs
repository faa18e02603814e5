//! Guest memory that is shared, has huge pages, and has no name.
//!
//! Called by the vmm between `isolate` and `lock`. Shared memory gets no huge pages unless the host says so for
//! everything (`shmem_enabled`); a tmpfs of one's own may ask for them (`huge=always`, Documentation/admin-guide/mm/
//! transhuge.rst). It is never attached to any path, and goes with the last descriptor of its one file.

use std::ffi::{CStr, CString};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::sys;

/// Why there is no private tmpfs; travels inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
enum TmpfsError {
    #[error("this kernel refuses huge pages for tmpfs (huge=always): {0}")]
    HugeRefused(String),
    #[error("cannot {doing} a private tmpfs: {source}{log}")]
    Step { doing: &'static str, source: io::Error, log: String },
}

/// A file of `size` bytes, readable and writable, on a tmpfs of its own with `huge=always`.
///
/// Works inside [`crate::isolate()`], or as root outside of it. `size` should be a multiple of the huge page size.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if the kernel has no huge pages for tmpfs: the caller decides what to do instead.
/// Any other kind if the tmpfs or the file could not be made; the text says which.
pub fn private_tmpfs_huge(size: u64) -> io::Result<OwnedFd> {
    let context = sys::fsopen(c"tmpfs").map_err(|source| step("open", source, None))?;
    let text = CString::new(size.to_string()).map_err(io::Error::other)?;
    if let Err(source) = sys::fsconfig_string(context.as_fd(), c"huge", c"always") {
        let why = format!("{source}{}", log(context.as_fd()));
        return Err(io::Error::new(ErrorKind::Unsupported, TmpfsError::HugeRefused(why)));
    }
    let options: [(&CStr, &CStr); 3] =
        [(c"size", text.as_c_str()), (c"mode", c"0700"), (c"source", c"strata-memory")];
    for (key, value) in options {
        sys::fsconfig_string(context.as_fd(), key, value)
            .map_err(|source| step("configure", source, Some(context.as_fd())))?;
    }
    sys::fsconfig_create(context.as_fd()).map_err(|source| step("create", source, Some(context.as_fd())))?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let mount = sys::fsmount(context.as_fd(), attributes)
        .map_err(|source| step("mount", source, Some(context.as_fd())))?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(&mount, c".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| step("make a file on", errno.into(), None))?;
    let length = libc::off_t::try_from(size).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
    nix::unistd::ftruncate(&file, length).map_err(|errno| step("size the file on", errno.into(), None))?;
    Ok(file)
}

/// The same on a tmpfs with `huge=always` that a service manager has mounted at `folder`, because a unit that may mount
/// nothing cannot make one.
///
/// # Errors
/// There is no such folder, or no file can be made there.
pub fn tmpfs_in(folder: &Path, size: u64) -> io::Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(nix::fcntl::AT_FDCWD, folder, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| step("make a file on", errno.into(), None))?;
    let length = libc::off_t::try_from(size).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
    nix::unistd::ftruncate(&file, length).map_err(|errno| step("size the file on", errno.into(), None))?;
    Ok(file)
}

fn step(doing: &'static str, source: io::Error, context: Option<BorrowedFd<'_>>) -> io::Error {
    let kind = source.kind();
    let log = context.map(log).unwrap_or_default();
    // `Unsupported` is the answer "no huge pages" and nothing else.
    let kind = if kind == ErrorKind::Unsupported { ErrorKind::Other } else { kind };
    io::Error::new(kind, TmpfsError::Step { doing, source, log })
}

/// What the kernel says about the last failure, as ` (text)`.
fn log(context: BorrowedFd<'_>) -> String {
    let Ok(context) = context.try_clone_to_owned() else { return String::new() };
    let mut text = vec![0; 256];
    match std::fs::File::from(context).read(&mut text) {
        Ok(length) if length > 2 => {
            text.truncate(length);
            // Messages begin with their severity: "e tmpfs: ...".
            format!(" ({})", String::from_utf8_lossy(&text).trim_end().get(2..).unwrap_or_default())
        }
        _ => String::new(),
    }
}
