//! `cargo xtask bench exits`: the exit bench where guests run, natively or in the rig.
//!
//! The programs are those of the tests, since what is counted does not depend on how fast they are.

use std::process::ExitCode;

use strata_rig::progress::say;
use strata_rig::{Kvm, Place, Rig, machine, packages, tool};

use crate::{build, setup};

/// Sets up, builds, and runs the bench with `words`; its exit status is ours.
///
/// # Errors
/// If any of that fails.
pub(super) fn run(place: &Place, words: &[String]) -> anyhow::Result<ExitCode> {
    let build = build::start(place, "build", &["build", "--quiet", "--workspace", "--bins"]);
    setup::for_rig(place)?;
    build.finish()?;
    let bench = build::programs()?.join("strata-bench");
    let kvm = Kvm::probe();
    if kvm.runs_guests() {
        say(&format!("{kvm}: guests run on it"));
        let mut command = if packages::is_root() { tool::command("env") } else { tool::command("sudo") };
        if !packages::is_root() {
            command.args(["-n", "env"]);
        }
        tool::visible(command.arg(bench).arg("exits").args(words).current_dir(place.root()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let out = machine::fresh_output(place, "bench-out")?;
    say(&format!("{kvm}: guests run in the rig; what is written to /run/out is in {}", out.display()));
    let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
    let script = format!("'{}' exits {}", bench.display(), quoted.join(" "));
    let status = Rig::from_environment(place).run(&script, &out, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}
