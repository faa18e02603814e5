//! What the reaper needs: to wait for its child, pass signals to it, and end as it did.

use std::borrow::Cow;

use nix::unistd::Pid;

use super::rule::{Call, Check, When, allow, is, only};

const STDERR: &[Check] = &[is(0, 2)];

pub(super) fn calls(child: Pid, own: Pid) -> Vec<Call> {
    let targets =
        [child, own].into_iter().filter_map(|pid| u32::try_from(pid.as_raw()).ok()).map(|pid| is(0, pid));
    vec![
        allow(libc::SYS_wait4, "the end of the sandboxed process"),
        allow(libc::SYS_rt_sigtimedwait, "the next signal"),
        allow(libc::SYS_rt_sigaction, "the default action of the signal it ends by"),
        allow(libc::SYS_rt_sigprocmask, "that signal let through"),
        allow(libc::SYS_rt_sigreturn, "end of a handler"),
        allow(libc::SYS_restart_syscall, "the kernel resumes an interrupted wait with it"),
        Call {
            number: libc::SYS_kill,
            when: When::Any(Cow::Owned(targets.collect())),
            why: "signals passed to the sandboxed process, and the one it ends by itself",
        },
        allow(libc::SYS_getpid, "to whom that goes"),
        only(libc::SYS_write, STDERR, "why the sandboxed process was killed"),
        allow(libc::SYS_exit_group, "the end"),
    ]
}
