//! The second step: nothing is left but open descriptors and a list of system calls.
//!
//! Called through [`crate::Isolated::lock`]. The order matters: each step still needs what the next one takes away.

use nix::sys::stat::{Mode, umask};

use crate::{Isolated, Namespaces, SandboxError, capabilities, filter, landlocked, limits, root, sys};

pub(crate) fn lock(isolated: Isolated) -> Result<(), SandboxError> {
    let Isolated { role, account, mut binds, namespaces } = isolated;
    umask(Mode::from_bits_truncate(0o077));
    match namespaces {
        Namespaces::Own => {
            nix::unistd::sethostname("strata").map_err(SandboxError::errno("set the host name"))?;
            root::enter(&mut binds)?;
            limits::lower(role)?;
            capabilities::drop_all()?;
        }
        Namespaces::Given => {
            limits::lower_if_allowed(role);
            capabilities::give_up()?;
        }
    }
    for bind in &binds {
        bind.check(account)?;
    }
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(SandboxError::system("set no_new_privs"))?;
    landlocked::enter(&binds)?;
    // After the last change of credentials, which would set it again.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(SandboxError::system("forbid core dumps and ptrace"))?;
    filter::enter(role)
}
