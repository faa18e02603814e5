//! Whom a process that was started as root becomes.
//!
//! Called by `isolate`. `CAP_SYS_ADMIN` is kept for the one call that makes the namespaces, so that hosts that
//! forbid user namespaces to the unprivileged still give root's guests their sandbox, and with it `CAP_SYS_CHROOT` to
//! leave a chroot, where there are none either; both are void in the new one.

use nix::unistd::{Gid, Uid};

use crate::SandboxError;
use crate::idmap;
use crate::sys::{self, CapabilitySets};

/// An unprivileged user and group, by number: a sandbox has no passwd to look names up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// User id on the host, not 0.
    pub uid: u32,
    /// Group id on the host, not 0.
    pub gid: u32,
}

impl Account {
    /// 65534, `nobody` and `nogroup` everywhere.
    pub const NOBODY: Account = Account { uid: 65534, gid: 65534 };

    /// The account the calling process has.
    pub(crate) fn current() -> Self {
        Self { uid: Uid::effective().as_raw(), gid: Gid::effective().as_raw() }
    }
}

// uapi linux/capability.h.
const CAP_SYS_CHROOT: u32 = 18;
const CAP_SYS_ADMIN: u32 = 21;

/// Gives up root for `account`; does nothing if the process is not root. Returns who it is now.
pub(crate) fn leave_root(account: Account) -> Result<Account, SandboxError> {
    if !Uid::effective().is_root() && !Uid::current().is_root() {
        return Ok(Account::current());
    }
    if account.uid == 0 || account.gid == 0 {
        return Err(SandboxError::System {
            doing: "run a sandbox as uid or gid 0: name an unprivileged account",
            source: std::io::ErrorKind::InvalidInput.into(),
        });
    }
    if !idmap::is_mapped("uid_map", account.uid) || !idmap::is_mapped("gid_map", account.gid) {
        // Root of a user namespace, as in a rootless container, that has no such account: there we are, for the host,
        // an unprivileged user already.
        tracing::debug!("stays who it is: uid {} is not mapped in this user namespace", account.uid);
        return Ok(Account::current());
    }
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let dropping = "become an unprivileged user";
    // A root without CAP_SYS_ADMIN (in a container) does not keep what it does not have: capset fails below.
    sys::prctl(libc::PR_SET_KEEPCAPS, 1).map_err(SandboxError::system(dropping))?;
    nix::unistd::setgroups(&[]).map_err(SandboxError::errno(dropping))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(SandboxError::errno(dropping))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(SandboxError::errno(dropping))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0).map_err(SandboxError::system(dropping))?;
    let kept = (1 << CAP_SYS_ADMIN) | (1 << CAP_SYS_CHROOT);
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: 0 };
    if sys::capset(kept).is_err() {
        sys::capset(CapabilitySets { effective: 0, permitted: 0, inheritable: 0 })
            .map_err(SandboxError::system("give up capabilities"))?;
    }
    // Changing the user id made /proc/self root's; the id maps are written there.
    sys::prctl(libc::PR_SET_DUMPABLE, 1).map_err(SandboxError::system(dropping))?;
    Ok(account)
}
