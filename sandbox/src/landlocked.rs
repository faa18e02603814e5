//! Landlock: a second lock on the file system and on TCP, and one on signals and abstract sockets, that does not
//! depend on the mount namespace. Called by `lock`, after no_new_privs.
//!
//! As far as the kernel goes: each ABI version adds rights, and what it does not know is left out. The reaper is
//! outside of the domain; its signals come in, ours do not reach it.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::SandboxError;
use crate::bind::Bind;

/// The newest set of rights this was tested with.
const KNOWN: ABI = ABI::V9;

pub(crate) fn enter(binds: &[Bind]) -> Result<(), SandboxError> {
    let status = restrict(binds).map_err(SandboxError::Landlock)?;
    if status == RulesetStatus::NotEnforced {
        tracing::debug!("this kernel has no Landlock; the empty root and the filter stand alone");
    }
    Ok(())
}

fn restrict(binds: &[Bind]) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for bind in binds {
        // The one thing a bind is for: to connect to sockets in it. Before ABI 9 Landlock does not ask.
        if let Ok(path) = PathFd::new(bind.path()) {
            rules = rules.add_rule(PathBeneath::new(path, AccessFs::ResolveUnix))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
