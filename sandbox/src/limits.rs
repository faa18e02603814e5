//! Resource limits of a locked process. Called by `isolate` (to raise, as root) and by `lock` (to lower).
//!
//! Not set: FSIZE, because standard error may be a log file and a disk image certainly is one; AS, because guest
//! memory is mapped, mostly unused; MEMLOCK beyond what the process was started with, except for a disk as root.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::{Role, SandboxError};

/// Descriptors a role can ever need: memory slots, rings (kick, call, err per queue), connections, and room.
fn descriptors(role: Role) -> u64 {
    match role {
        Role::Vmm => 8192,
        Role::Blk | Role::Net => 4096,
    }
}

/// Memory of its own, in bytes: heap, stacks and all other private writable mappings (setrlimit(2), since Linux 4.7).
/// Guest memory is shared and does not count; memory files that it makes do not either, those only a cgroup bounds.
fn memory(role: Role) -> u64 {
    match role {
        Role::Vmm => 4 << 30,
        Role::Blk | Role::Net => 1 << 30,
    }
}

/// Threads: vCPUs and workers. Counted for our uid in our own user namespace only (Linux 5.14), so other sandboxes of
/// the same account do not count.
fn threads(role: Role) -> u64 {
    match role {
        Role::Vmm => 1024,
        Role::Blk | Role::Net => 512,
    }
}

/// io_uring counts what it pins against MEMLOCK on older kernels, and a user's limit is small; root may lift it.
pub(crate) fn raise_as_root(role: Role) {
    if role == Role::Blk && nix::unistd::geteuid().is_root() {
        // Not fatal: without it io_uring may be refused, and the disk says so.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    }
}

pub(crate) fn lower(role: Role) -> Result<(), SandboxError> {
    set(Resource::RLIMIT_NPROC, threads(role))?;
    lower_common(role)
}

/// What does not depend on the user: processes of one user in the host's user namespace are counted together.
fn lower_common(role: Role) -> Result<(), SandboxError> {
    set(Resource::RLIMIT_CORE, 0)?; // a core would hold guest memory
    set(Resource::RLIMIT_MSGQUEUE, 0)?;
    set(Resource::RLIMIT_DATA, memory(role))?;
    set(Resource::RLIMIT_NOFILE, descriptors(role))
}

/// Where a service manager made the sandbox: it may forbid `setrlimit` (SystemCallFilter=~@resources) and gives limits
/// itself (LimitCORE=, TasksMax= and their like).
pub(crate) fn lower_if_allowed(role: Role) {
    if let Err(error) = lower_common(role) {
        tracing::debug!("resource limits stay as the service manager set them: {error}");
    }
}

fn set(resource: Resource, wanted: u64) -> Result<(), SandboxError> {
    let (_, hard) = getrlimit(resource).map_err(SandboxError::errno("read resource limits"))?;
    let limit = wanted.min(hard);
    setrlimit(resource, limit, limit).map_err(SandboxError::errno("set resource limits"))
}
