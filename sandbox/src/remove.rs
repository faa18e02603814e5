//! Removes a socket's path after the process that made it: the process itself is by then where no path leads.
//!
//! Called by a backend that was given `--socket-path`, before it opens anything else. Under `strata` and systemd,
//! where the socket is passed down, there is no need for it.
//!
//! ```text
//!   launcher -- spawns --> this process --fork--> child: `remove_at_end` returns in it, goes on to `isolate`
//!                             |                     ^  dies (SIGKILL) when this process dies
//!                             +-- signals in, waits, removes the path, exit status out
//! ```
//!
//! It keeps its user, since who may write the directory is whoever made the socket there, and nothing else: no
//! descriptor but standard error, and as root the two capabilities below. It reads nothing from anybody.
#![allow(unsafe_code)] // fork

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, fork};

use crate::sys::CapabilitySets;
use crate::{Role, SandboxError, filter, reaper, sys};

/// Has `path`, a socket that exists, removed when the process that goes on has ended. Returns in a child process;
/// the calling process ends with the child's status.
///
/// # Errors
/// The process cannot fork, or has threads. The path is then left alone.
pub fn remove_at_end(path: &Path, role: Role) -> Result<(), SandboxError> {
    let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let path = path.canonicalize().map_err(SandboxError::system("find the socket just made"))?;
    let made =
        fs::symlink_metadata(&path).map(inode).map_err(SandboxError::system("find the socket just made"))?;
    let threads = fs::read_dir("/proc/self/task")
        .map_err(SandboxError::system("count threads: /proc must be mounted"))?
        .count();
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    let before = reaper::prepare().map_err(SandboxError::errno("block signals"))?;
    // SAFETY: this process has one thread, as just counted.
    match unsafe { fork() }.map_err(SandboxError::errno("fork"))? {
        ForkResult::Child => {
            // `isolate` sees it and passes it on.
            sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
                .map_err(SandboxError::system("die with the process that removes the socket"))?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)
                .map_err(SandboxError::errno("unblock signals"))
        }
        ForkResult::Parent { child } => {
            sys::set_name(match role {
                Role::Vmm => c"vmm-socket",
                Role::Blk => c"blk-socket",
                Role::Net => c"net-socket",
            });
            let _ = sys::close_range(0, 1);
            let _ = sys::close_range(3, libc::c_uint::MAX);
            keep_little();
            let _ = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
            let _ = filter::enter_remover(child);
            let status = reaper::watch(child);
            // Not if somebody has put another one in its place.
            if fs::symlink_metadata(&path).map(inode).is_ok_and(|now| now == made) {
                let _ = fs::remove_file(&path);
            }
            reaper::end_as(status)
        }
    }
}

/// Root keeps what it takes to signal a process that is nobody's by now, and to remove a path in a directory of
/// somebody else.
fn keep_little() {
    const CAP_DAC_OVERRIDE: u64 = 1 << 1;
    const CAP_KILL: u64 = 1 << 5;
    let kept = CAP_DAC_OVERRIDE | CAP_KILL;
    let little = CapabilitySets { effective: kept, permitted: kept, inheritable: 0 };
    if sys::capset(little).is_err() {
        // Not root: it had none.
        let _ = sys::capset(CapabilitySets { effective: 0, permitted: 0, inheritable: 0 });
    }
}
