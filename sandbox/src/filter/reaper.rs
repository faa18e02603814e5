//! What the processes outside of the pid namespace need: to wait for their child, pass signals to it, and end as it
//! did. One of them removes a socket in between.

use std::borrow::Cow;
use std::os::fd::RawFd;

use nix::unistd::Pid;

use super::rule::{Call, Check, When, allow, is, only};

const STDERR: &[Check] = &[is(0, 2)];
const LOOK: &[Check] = &[is(1, libc::F_GETFD as u32)];

/// The reaper's list; `own` is its pid, `confined` the one descriptor it still closes.
pub(super) fn calls(child: Pid, own: Pid, confined: Option<RawFd>) -> Vec<Call> {
    let number = |number: i32| u32::try_from(number).ok().map(|number| is(0, number));
    let targets = [child, own].into_iter().filter_map(|pid| number(pid.as_raw())).collect();
    let mut calls = vec![
        allow(libc::SYS_wait4, "the end of the sandboxed process"),
        allow(libc::SYS_rt_sigtimedwait, "the next signal"),
        allow(libc::SYS_rt_sigaction, "the default action of the signal it ends by"),
        allow(libc::SYS_rt_sigprocmask, "that signal let through"),
        allow(libc::SYS_rt_sigreturn, "end of a handler"),
        allow(libc::SYS_restart_syscall, "the kernel resumes an interrupted wait with it"),
        allow(libc::SYS_getpid, "by which process it ends"),
        only(libc::SYS_write, STDERR, "why the sandboxed process was killed"),
        allow(libc::SYS_exit_group, "the end"),
        Call {
            number: libc::SYS_kill,
            when: When::Any(Cow::Owned(targets)),
            why: "signals passed to the sandboxed process, and the one it ends by itself",
        },
    ];
    if let Some(check) = confined.and_then(number) {
        let why = "the sandboxed process waits for it: the reaper is confined";
        calls.push(Call { number: libc::SYS_close, when: When::Any(Cow::Owned(vec![check])), why });
        calls.push(only(libc::SYS_fcntl, LOOK, "std looks, in debug builds, before it closes"));
    }
    calls
}

/// What the process that removes a socket needs beyond that.
pub(super) const REMOVER: &[Call] = &[
    allow(libc::SYS_statx, "whether it is still the socket that was made"),
    allow(libc::SYS_newfstatat, "the same, by glibc"),
    allow(libc::SYS_unlink, "the socket is removed"),
    allow(libc::SYS_brk, "its path, as a C string"),
];
