//! System call filters (seccomp): one allow-list per role, one line and one reason per call.
//!
//! Owns the lists and how they become a program for the kernel; called by `lock` and the reaper, last of all. What is
//! not on the list kills the process. A few calls are answered with an error instead, because libraries make them
//! unasked and go on without ([`base::REFUSED`]).
//!
//! `STRATA_SECCOMP=log` lets forbidden calls pass and has the kernel log them, `STRATA_SECCOMP=trap` ends the process
//! with a line that names the call. Both are for finding out what a list lacks, and say so.

mod base;
mod blk;
mod net;
mod reaper;
mod rule;
mod trap;
mod vmm;

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use nix::unistd::{Pid, getpid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::{Role, SandboxError};
use rule::{Call, When};

/// What happens to a call that is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Kill,
    Log,
    Trap,
}

impl Mode {
    fn from_environment(role: Role) -> Self {
        let mode = match std::env::var("STRATA_SECCOMP").as_deref() {
            Ok("log") => Self::Log,
            Ok("trap") => Self::Trap,
            _ => return Self::Kill,
        };
        tracing::warn!(
            "{} runs with STRATA_SECCOMP={}: for debugging only, a guest that breaks into it is NOT held by the \
             system call filter",
            role.program(),
            if mode == Self::Log { "log" } else { "trap" },
        );
        mode
    }

    fn action(self) -> SeccompAction {
        match self {
            Self::Kill => SeccompAction::KillProcess,
            Self::Log => SeccompAction::Log,
            Self::Trap => SeccompAction::Trap,
        }
    }
}

/// Enters the filter of `role`, for the calling thread and all it starts.
pub(crate) fn enter(role: Role) -> Result<(), SandboxError> {
    let mode = Mode::from_environment(role);
    if mode == Mode::Trap {
        trap::install()?;
    }
    // In a filter an errno is stronger than an allow, so what is refused is allowed by the list itself.
    for errno in [libc::ENOSYS, libc::EACCES] {
        let calls = base::REFUSED.iter().filter(|refused| refused.errno == errno).map(|refused| refused.call);
        install(&refuse(calls, errno)?)?;
    }
    install(&compile(&calls(role, getpid()), mode.action())?)
}

/// Enters the filter of the process that watches `child` and has only `confined` left to close.
pub(crate) fn enter_reaper(child: Pid, confined: RawFd) -> Result<(), SandboxError> {
    install(&compile(&reaper::calls(child, getpid(), Some(confined)), SeccompAction::KillProcess)?)
}

/// Enters the filter of the process that watches `child` and then removes a socket.
pub(crate) fn enter_remover(child: Pid) -> Result<(), SandboxError> {
    let mut calls = reaper::calls(child, getpid(), None);
    calls.extend(reaper::REMOVER.iter().cloned());
    install(&compile(&calls, SeccompAction::KillProcess)?)
}

/// Everything `role` may call.
fn calls(role: Role, own: Pid) -> Vec<Call> {
    let special = match role {
        Role::Vmm => vmm::CALLS,
        Role::Blk => blk::CALLS,
        Role::Net => net::CALLS,
    };
    let refused = base::REFUSED.iter().map(|refused| rule::allow(refused.call, refused.why));
    base::CALLS.iter().chain(special).cloned().chain(refused).chain(base::to_itself(own)).collect()
}

fn refuse(calls: impl Iterator<Item = i64>, errno: i32) -> Result<BpfProgram, SandboxError> {
    let rules = calls.map(|call| (call, Vec::new())).collect();
    program(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

fn compile(calls: &[Call], otherwise: SeccompAction) -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always = Vec::new();
    for call in calls {
        let alternatives = rules.entry(call.number).or_default();
        match &call.when {
            When::Always => always.push(call.number),
            When::Any(checks) => {
                for check in checks.iter() {
                    alternatives.push(check.rule().map_err(SandboxError::Compile)?);
                }
            }
        }
    }
    // No alternatives means: whatever the arguments.
    for number in always {
        rules.insert(number, Vec::new());
    }
    program(rules, otherwise, SeccompAction::Allow)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(SandboxError::Compile)?;
    SeccompFilter::new(rules, otherwise, matched, arch)
        .and_then(BpfProgram::try_from)
        .map_err(SandboxError::Compile)
}

fn install(program: &BpfProgram) -> Result<(), SandboxError> {
    seccompiler::apply_filter(program).map_err(SandboxError::Seccomp)
}

#[cfg(test)]
mod filter_test;
