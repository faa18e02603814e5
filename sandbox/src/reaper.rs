//! The process that stays outside of the pid namespace: it is what the launcher started and knows the pid of.
//!
//! Called by `isolate` in the parent. Passes signals on to the sandboxed process, waits for it, and ends as it did.
//! Refuses everything else: no descriptor but standard error, no capability, a filter of a dozen system calls.
#![allow(unsafe_code)] // sigwaitinfo, _exit: nothing here may run destructors of the program it was

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use crate::{Role, SandboxError, capabilities, descriptors, filter, sys};

/// Passed on to the sandboxed process.
const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// What ends a process that does not say otherwise, and that it might be sent.
const DEADLY: [Signal; 8] = [
    Signal::SIGABRT,
    Signal::SIGALRM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Plus a signal's number: the status of a sandboxed process that such a signal ended, as a shell has it.
const DIED_OF: i32 = 128;

/// What the reaper waits for.
fn signals() -> SigSet {
    let mut signals: SigSet = FORWARDED.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals
}

/// Makes those signals wait, and makes the kernel keep the status of a child (which an inherited, ignored SIGCHLD would
/// throw away). Returns the mask there was. Called before the fork.
pub(crate) fn prepare() -> nix::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals()), Some(&mut before))?;
    // SAFETY: the default action is no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(before)
}

/// Watches `child`, ends with its status. `confined` is closed once the reaper can do nothing else any more.
pub(crate) fn run(child: Pid, role: Role, was_root: bool, confined: OwnedFd) -> ! {
    let refused = format!(
        "{}: killed by its own system call filter (SIGSYS): it, or a guest that broke into it, made a call its sandbox \
         does not allow; the kernel's audit log (dmesg: type=1326) names it\n",
        role.program()
    );
    if let Err(error) = confine(child, role, was_root, confined) {
        say(&format!("{}: {error}\n", role.program()));
        let _ = kill(child, Signal::SIGKILL);
        exit(1);
    }
    let status = watch(child);
    if matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)) {
        say(&refused);
    }
    end_as(status)
}

/// Ends as the watched process did.
pub(crate) fn end_as(status: WaitStatus) -> ! {
    match status {
        WaitStatus::Exited(_, code) => match Signal::try_from(code - DIED_OF) {
            Ok(signal) if DEADLY.contains(&signal) => die_of(signal),
            _ => exit(code),
        },
        WaitStatus::Signaled(_, signal, _) => die_of(signal),
        _ => exit(1),
    }
}

/// In the child: the first process of a pid namespace ignores signals that have no handler and come from itself or
/// its namespace's parent, so neither abort nor SIGTERM would end it before it has set up its own. With a handler they
/// do, and the reaper ends by the same signal for it.
pub(crate) fn default_actions_end() -> nix::Result<()> {
    extern "C" fn end(signal: i32) {
        exit(DIED_OF + signal)
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in DEADLY {
        // SAFETY: the handler makes one async-signal-safe call.
        let before = unsafe { sigaction(signal, &action) }?;
        if before.handler() != SigHandler::SigDfl {
            // SAFETY: what was in force before.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Lets go of all but standard error, of capabilities, and of all system calls but a few.
fn confine(child: Pid, role: Role, was_root: bool, confined: OwnedFd) -> Result<(), SandboxError> {
    sys::set_name(match role {
        Role::Vmm => c"vmm-reaper",
        Role::Blk => c"blk-reaper",
        Role::Net => c"net-reaper",
    });
    sys::close_range(0, 1).map_err(SandboxError::system("close the reaper's descriptors"))?;
    descriptors::close_others(&[confined.as_raw_fd()])?;
    let _ = nix::unistd::chdir(c"/");
    capabilities::drop_all()?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(SandboxError::system("set no_new_privs"))?;
    // Started by a user, it stays that user's to look at (`audit`); started by root, it is root's alone.
    if was_root {
        sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(SandboxError::system("forbid ptrace"))?;
    }
    filter::enter_reaper(child, confined.as_raw_fd())?;
    drop(confined);
    Ok(())
}

/// Passes signals on to `child` until it ends; says how. [`prepare`] came before.
pub(crate) fn watch(child: Pid) -> WaitStatus {
    let wanted = signals();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return status,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return WaitStatus::StillAlive,
        }
        // SAFETY: an all-zero siginfo_t is a valid one; the kernel fills it in.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live values of the right type.
        let number = unsafe { libc::sigwaitinfo(wanted.as_ref(), &mut info) };
        // A terminal's signal goes to its whole foreground group, so the sandboxed process has it already.
        let from_terminal = info.si_code == libc::SI_KERNEL;
        if let Ok(signal) = Signal::try_from(number)
            && signal != Signal::SIGCHLD
            && !from_terminal
        {
            let _ = kill(child, signal);
        }
    }
}

/// Ends by the signal that ended the sandboxed process, so that the launcher sees the same.
fn die_of(signal: Signal) -> ! {
    // SAFETY: the default action is no handler.
    let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    let one: SigSet = [signal].into_iter().collect();
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&one), None);
    let _ = kill(getpid(), signal);
    // It was one that does not kill.
    exit(128 + signal as i32)
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of the program it was a copy of.
    unsafe { libc::_exit(code) }
}

fn say(text: &str) {
    let _ = nix::unistd::write(std::io::stderr(), text.as_bytes());
}
