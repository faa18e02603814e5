//! Which ids there are in our user namespace; and a user namespace that says "root is this account", for mounts that
//! are shown in a sandbox (mount_setattr(2), MOUNT_ATTR_IDMAP). Nobody ever runs in that one.
//!
//! The latter is made for `bind` while the process is still root, because the run directory is root's and private (0700), and
//! the sandboxed process, which is not root, must reach the sockets in it.
#![allow(unsafe_code)] // fork

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, read, write};

use crate::account::Account;
use crate::{chroot, sys};

/// The namespace, held by its descriptor alone.
pub(crate) fn user_namespace(account: Account) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread (checked by `isolate`), so the child may do anything; it only makes
    // system calls.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
            let make = || unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let made = make() || (chroot::leave().is_ok() && make());
            let _ = write(&writer, &[u8::from(made)]);
            loop {
                pause();
            }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut made = [0];
            let namespace = match read(&reader, &mut made) {
                Ok(1) if made == [1] => describe(child, account),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            };
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            namespace
        }
    }
}

fn describe(child: Pid, account: Account) -> io::Result<OwnedFd> {
    fs::write(format!("/proc/{child}/uid_map"), format!("0 {} 1", account.uid))?;
    fs::write(format!("/proc/{child}/gid_map"), format!("0 {} 1", account.gid))?;
    fs::File::open(format!("/proc/{child}/ns/user")).map(OwnedFd::from)
}

/// What `id` of our user namespace is one further out, by /proc/self/`map`; `None` if there is no such id.
pub(crate) fn outside(map: &str, id: u32) -> Option<u32> {
    translate(&fs::read_to_string(format!("/proc/self/{map}")).ok()?, id)
}

/// Whether our user namespace has `id`.
pub(crate) fn is_mapped(map: &str, id: u32) -> bool {
    outside(map, id).is_some()
}

/// Lines are `inside outside count` (user_namespaces(7)).
fn translate(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = id.checked_sub(inside)?;
        if offset < count { outside.checked_add(offset) } else { None }
    })
}

#[cfg(test)]
mod idmap_test {
    use super::translate;

    #[test]
    fn an_id_is_looked_up_in_every_line() {
        let all = "         0          0 4294967295\n";
        assert_eq!(translate(all, 0), Some(0));
        assert_eq!(translate(all, 65534), Some(65534));
        let container = "0 1000 1\n1 100000 65536\n";
        assert_eq!(translate(container, 0), Some(1000));
        assert_eq!(translate(container, 65534), Some(165_533));
        assert_eq!(translate(container, 65537), None);
        assert_eq!(translate("0 1000 1\n", 65534), None);
        assert_eq!(translate("", 0), None);
    }
}
