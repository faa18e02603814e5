//! Makes the root directory the root of the mount namespace, because the kernel makes no user namespace for a process
//! in a chroot (it could escape it with the rights it has inside).
//!
//! Called by `isolate` when that is what stands in the way, as on a node that never left its initramfs. Needs
//! CAP_SYS_ADMIN and CAP_SYS_CHROOT, so only what was started as root gets this far. Changes nothing outside: it works
//! on a copy of the mounts.

use std::fs::File;
use std::os::fd::AsFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::SandboxError;
use crate::sys;

/// What was below the chroot, and nothing else of the host's, is the whole tree afterwards. The working directory is
/// `/`.
pub(crate) fn leave() -> Result<(), SandboxError> {
    let doing = "leave the chroot this was started in";
    let none: Option<&std::ffi::CStr> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(SandboxError::errno(doing))?;
    let own = File::open("/proc/self/ns/mnt").map_err(SandboxError::system(doing))?;
    let tree = sys::clone_tree(c"/").map_err(SandboxError::system(doing))?;
    // Entering a mount namespace, even one's own, makes its topmost root the root directory.
    setns(&own, CloneFlags::CLONE_NEWNS).map_err(SandboxError::errno(doing))?;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(SandboxError::errno(doing))?;
    sys::attach(tree.as_fd(), libc::AT_FDCWD, c"/").map_err(SandboxError::system(doing))?;
    setns(&own, CloneFlags::CLONE_NEWNS).map_err(SandboxError::errno(doing))
}
