//! A user without rights, for running things as.
//!
//! Owns: copies of programs and kernel that such a user may read, in the case's folder. Called by: cases. The user is
//! a number without an entry in passwd, as in a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::case::Context;

/// The user and group number; nobody's.
pub const USER: u32 = 64123;

/// A user in no group but those named.
pub struct Outsider {
    groups: String,
    /// The programs, where the user may run them.
    pub programs: PathBuf,
}

/// Prepares the case's folder for the user: it owns the run and temporary folders, and may run the programs.
///
/// # Errors
/// If files cannot be copied or given away (needs root).
pub fn outsider(context: &Context, groups: &[u32]) -> anyhow::Result<Outsider> {
    let programs = context.file("programs");
    fs::create_dir_all(&programs)?;
    for name in ["strata", "vmm", "vhost-blk", "vhost-net"] {
        let copy = programs.join(name);
        fs::copy(context.programs.path(name), &copy).with_context(|| format!("cannot copy {name}"))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    for dir in [context.run_dir(), context.temporary()] {
        give(&dir)?;
    }
    // The folders above are a tempdir of ours, 0700.
    for dir in programs.ancestors().skip(1).take(2) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    let groups = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(Outsider { groups, programs })
}

/// Makes the user the owner of a file or folder.
///
/// # Errors
/// If it cannot be given away.
pub fn give(path: &std::path::Path) -> anyhow::Result<()> {
    chown(path, Some(USER), Some(USER)).with_context(|| format!("cannot give {} away", path.display()))
}

/// The group that may use `/dev/kvm`. In the rig, on a host without a group kvm, it is made one.
///
/// # Errors
/// If `/dev/kvm` cannot be looked at.
pub fn kvm_group() -> anyhow::Result<u32> {
    let kvm = fs::metadata("/dev/kvm").context("no /dev/kvm")?;
    if kvm.gid() == 0 && std::env::var_os("IN_RIG").is_some() {
        chown("/dev/kvm", None, Some(USER + 1))?;
        return Ok(USER + 1);
    }
    Ok(kvm.gid())
}

impl Outsider {
    /// `strata` as this user, without arguments yet.
    pub(crate) fn strata(&self, context: &Context) -> Command {
        let user = USER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user]);
        match self.groups.as_str() {
            "" => command.arg("--clear-groups"),
            groups => command.args(["--groups", groups]),
        };
        command.arg("--").arg(self.programs.join("strata"));
        command.env("STRATA_RUN_DIR", context.run_dir()).env("TMPDIR", context.temporary());
        command.env("STRATA_LIBEXEC", &self.programs).env_remove("XDG_RUNTIME_DIR");
        command
    }
}
