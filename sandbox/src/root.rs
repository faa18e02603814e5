//! A root directory with nothing in it but the binds. Called by `lock`, once.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

use crate::SandboxError;
use crate::bind::Bind;
use crate::sys::{self, MountAttr};

/// What the root appears as in /proc/PID/mountinfo; `audit` looks for it.
pub(crate) const SOURCE: &str = "strata-root";

const OPTIONS: [(&CStr, &CStr); 4] =
    [(c"source", c"strata-root"), (c"mode", c"0755"), (c"size", c"64k"), (c"nr_inodes", c"256")];

/// Leaves the host's file systems for an empty read-only tmpfs in which only `binds` are attached.
pub(crate) fn enter(binds: &mut [Bind]) -> Result<(), SandboxError> {
    let none: Option<&CStr> = None;
    // pivot_root refuses shared mounts, and nothing done here may reach the host.
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(SandboxError::errno("make mounts private"))?;
    for bind in binds.iter_mut() {
        bind.copy_if_needed()?;
    }
    let root = tmpfs().map_err(SandboxError::system("make an empty root"))?;
    sys::attach(root.as_fd(), libc::AT_FDCWD, c"/").map_err(SandboxError::system("attach the empty root"))?;
    for bind in binds.iter_mut() {
        bind.attach(root.as_fd())?;
    }
    fchdir(&root).map_err(SandboxError::errno("enter the empty root"))?;
    // The old root comes to lie on top of the new one at "/", where "." finds it (pivot_root(2), NOTES).
    match pivot_root(c".", c".") {
        Ok(()) => {}
        Err(Errno::EINVAL) => return Err(SandboxError::InitramfsRoot(Errno::EINVAL.into())),
        Err(errno) => return Err(SandboxError::errno("change the root")(errno)),
    }
    umount2(c".", MntFlags::MNT_DETACH).map_err(SandboxError::errno("detach the host's root"))?;
    chdir(c"/").map_err(SandboxError::errno("enter the empty root"))?;
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOSYMFOLLOW,
        ..MountAttr::default()
    };
    sys::mount_setattr(root.as_fd(), false, &attr).map_err(SandboxError::system("make the root read-only"))
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = sys::fsopen(c"tmpfs")?;
    for (key, value) in OPTIONS {
        sys::fsconfig_string(context.as_fd(), key, value)?;
    }
    sys::fsconfig_create(context.as_fd())?;
    sys::fsmount(context.as_fd(), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC)
}
