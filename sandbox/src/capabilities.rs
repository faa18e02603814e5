//! Gives up every capability for good. Called by `lock` and by the reaper.

use std::io;

use crate::SandboxError;
use crate::sys::{self, CapabilitySets};

/// Above any the kernel knows (64 fit the masks).
const END: libc::c_ulong = 64;

/// Empties the bounding, ambient, effective, permitted and inheritable set and locks the rules by which a program
/// could gain some again. Needs CAP_SETPCAP, which [`crate::isolate`] gives in the new user namespace.
pub(crate) fn drop_all() -> Result<(), SandboxError> {
    for capability in 0..END {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            // One beyond the last that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 => break,
            Err(error) => return Err(failed(error)),
        }
    }
    sys::prctl2(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map_err(failed)?;
    let locked = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    sys::prctl(libc::PR_SET_SECUREBITS, locked as libc::c_ulong).map_err(failed)?;
    sys::capset(CapabilitySets { effective: 0, permitted: 0, inheritable: 0 }).map_err(failed)
}

/// For a process that was started without any: makes sure of it. The bounding set, which no_new_privs makes
/// meaningless, is left as it is.
pub(crate) fn give_up() -> Result<(), SandboxError> {
    // Works for whoever has none, and gives up what there is.
    sys::capset(CapabilitySets { effective: 0, permitted: 0, inheritable: 0 }).map_err(failed)
}

fn failed(source: io::Error) -> SandboxError {
    SandboxError::System { doing: "give up capabilities", source }
}
