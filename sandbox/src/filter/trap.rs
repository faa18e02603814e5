//! `STRATA_SECCOMP=trap`: names the forbidden call on standard error and ends. For developers; never installed
//! otherwise, because a handler could be made to go on.
#![allow(unsafe_code)] // a signal handler

use std::io::Write;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::SandboxError;

/// The `_sigsys` view of `siginfo_t` (uapi asm-generic/siginfo.h), x86-64 and other 64-bit layouts.
#[repr(C)]
struct SigsysInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    call_addr: *const libc::c_void,
    syscall: i32,
    arch: u32,
}

pub(super) fn install() -> Result<(), SandboxError> {
    let action = SigAction::new(
        SigHandler::SigAction(name_it),
        SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER,
        SigSet::empty(),
    );
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(Signal::SIGSYS, &action) }
        .map(drop)
        .map_err(SandboxError::errno("install the handler of STRATA_SECCOMP=trap"))
}

extern "C" fn name_it(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo of a SIGSYS, which has this layout.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    let mut text = [0u8; 160];
    let mut rest = text.as_mut_slice();
    let [first, second, third] = arguments(context);
    let _ = writeln!(
        rest,
        "sandbox: system call {} (arguments {first:#x}, {second:#x}, {third:#x}) is not on the list",
        info.syscall
    );
    let left = rest.len();
    let said = text.get(..text.len() - left).unwrap_or_default();
    // SAFETY: a buffer of this length.
    unsafe { libc::write(2, said.as_ptr().cast(), said.len()) };
    // SAFETY: ends the process.
    unsafe { libc::_exit(128 + libc::SIGSYS) };
}

#[cfg(target_arch = "x86_64")]
fn arguments(context: *mut libc::c_void) -> [i64; 3] {
    // SAFETY: the third argument of an SA_SIGINFO handler is a ucontext_t.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|register| {
        usize::try_from(register).ok().and_then(|at| registers.get(at)).copied().unwrap_or_default()
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn arguments(_: *mut libc::c_void) -> [i64; 3] {
    [0; 3]
}
