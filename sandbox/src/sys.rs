//! System calls that neither std nor nix offers, each with owned descriptors and `io::Result`.
#![allow(unsafe_code)] // raw system calls: the new mount API, capset, prctl

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_uint, c_ulong};

/// `mount_setattr(2)`, kernel uapi `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

fn done(returned: c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor(returned: c_long) -> io::Result<OwnedFd> {
    done(returned)?;
    let fd = RawFd::try_from(returned).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A configuration context for a file system of kind `fs`.
pub(crate) fn fsopen(fs: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `fs` is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fs.as_ptr(), libc::FSOPEN_CLOEXEC) })
}

/// Sets `key` to `value`.
pub(crate) fn fsconfig_string(context: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    // SAFETY: both strings outlive the call; the last argument is unused by FSCONFIG_SET_STRING.
    done(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_SET_STRING,
            key.as_ptr(),
            value.as_ptr(),
            0,
        )
    })
}

/// Makes the file system.
pub(crate) fn fsconfig_create(context: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes no key, value or number.
    done(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), libc::FSCONFIG_CMD_CREATE, none, none, 0)
    })
}

/// Mounts it, attached to nothing; it goes when its last user goes.
pub(crate) fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    descriptor(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes)
    })
}

/// A copy of the mounts at and below `path`, attached to nothing.
pub(crate) fn clone_tree(path: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_RECURSIVE as c_uint
        | libc::AT_SYMLINK_NOFOLLOW as c_uint;
    // SAFETY: `path` is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Changes the attributes of the mount `tree`, of all mounts below it too if `recursive`.
pub(crate) fn mount_setattr(tree: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` has the layout and the size that are passed with it.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
}

/// Attaches the detached `tree` at `target` (relative to `dir`).
pub(crate) fn attach(tree: BorrowedFd<'_>, dir: RawFd, target: &CStr) -> io::Result<()> {
    // SAFETY: both strings outlive the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            dir,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

/// `prctl` with numbers only.
pub(crate) fn prctl(option: c_int, argument: c_ulong) -> io::Result<c_int> {
    let zero: c_ulong = 0;
    // SAFETY: only called with options whose argument is a number, never a pointer.
    let returned = unsafe { libc::prctl(option, argument, zero, zero, zero) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// `prctl` with two numbers.
pub(crate) fn prctl2(option: c_int, first: c_ulong, second: c_ulong) -> io::Result<c_int> {
    let zero: c_ulong = 0;
    // SAFETY: only called with options whose arguments are numbers, never pointers.
    let returned = unsafe { libc::prctl(option, first, second, zero, zero) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// The signal the calling thread gets when its parent dies, 0 if none.
pub(crate) fn parent_death_signal() -> io::Result<c_int> {
    let mut signal: c_int = 0;
    // SAFETY: PR_GET_PDEATHSIG writes one int to the address given.
    let returned = unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, std::ptr::from_mut(&mut signal)) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(signal) }
}

/// Names the calling thread; at most 15 bytes are kept.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: PR_SET_NAME reads a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// One of the three capability sets of a thread, as a mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets the capabilities of the calling thread (`capset(2)`).
pub(crate) fn capset(sets: CapabilitySets) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads a header and two data structures, both of the kernel's layout.
    done(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) })
}

/// A descriptor for a process; readable once it has ended.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Closes every descriptor from `first` to `last`, both included.
pub(crate) fn close_range(first: c_uint, last: c_uint) -> io::Result<()> {
    // SAFETY: plain numbers. That nothing still uses these descriptors is the caller's promise.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Whether the descriptor is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no third argument and changes nothing.
    (unsafe { libc::fcntl(fd, libc::F_GETFD) }) >= 0
}

/// Whether the caller may `mode` the file behind an O_PATH descriptor, by its effective ids.
pub(crate) fn access(fd: impl AsFd, mode: c_int) -> io::Result<()> {
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH makes mean the descriptor.
    done(unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EMPTY_PATH | libc::AT_EACCESS,
        )
    })
}
