//! Gives up every capability for good. Called by `lock` and by the reaper.

use std::io;

use crate::SandboxError;
use crate::sys::{self, CapabilitySets};

/// Above any the kernel knows (64 fit the masks).
const END: libc::c_ulong = 64;

/// Empties the bounding, ambient, effective, permitted and inheritable set and locks the rules by which a program
/// could gain some again. Needs CAP_SETPCAP, which [`crate::isolate()`] gives in the new user namespace.
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

/// For a process that was started without any: makes sure that it is so. The bounding set, which no_new_privs makes
/// meaningless, is left as it is.
pub(crate) fn give_up() -> Result<(), SandboxError> {
    // Asked first, because a unit's filter may refuse capset even to those who only have something to lose.
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_none(&status)) {
        return Ok(());
    }
    sys::capset(CapabilitySets { effective: 0, permitted: 0, inheritable: 0 }).map_err(failed)
}

/// Whether the permitted, inheritable and ambient sets in /proc/PID/status are empty; the effective set is a part of
/// the first.
fn has_none(status: &str) -> bool {
    ["CapPrm:", "CapInh:", "CapAmb:"].iter().all(|set| {
        let value = status.lines().find_map(|line| line.strip_prefix(set));
        value.is_some_and(|value| u64::from_str_radix(value.trim(), 16) == Ok(0))
    })
}

fn failed(source: io::Error) -> SandboxError {
    SandboxError::System { doing: "give up capabilities", source }
}

#[cfg(test)]
mod capabilities_test {
    use super::has_none;

    #[test]
    fn only_empty_sets_that_are_all_there_are_none() {
        let none = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                    CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";
        assert!(has_none(none));
        assert!(!has_none(&none.replace("CapPrm:\t0000000000000000", "CapPrm:\t0000000000000001")));
        assert!(!has_none(&none.replace("CapAmb:", "CapXxx:")));
        assert!(!has_none(""));
    }
}
