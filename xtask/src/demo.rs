//! `cargo xtask demo`: a small real Debian on three processes, and what they cost.
//!
//! Called by: `main`. Makes the disk image here, once; the guest itself is run by `guest-demo`, natively or in the rig.

use std::time::Instant;

use anyhow::ensure;
use strata_rig::progress::say;
use strata_rig::{Kvm, Place, Rig, debian, machine, packages, tool};

use crate::{build, setup};

/// Sets up, builds, boots, shows.
///
/// # Errors
/// If any of that fails.
pub(crate) fn run(place: &Place) -> anyhow::Result<()> {
    let start = Instant::now();
    let build = build::start(place, "build", &["build", "--quiet", "--workspace", "--bins"]);
    setup::for_demo(place)?;
    let image = debian::image(place)?;
    build.finish()?;
    let program = build::programs()?.join("guest-demo");
    let kvm = Kvm::probe();
    if kvm.runs_guests() {
        say(&format!("{kvm}: the guest runs on it"));
        let mut command = if packages::is_root() { tool::command("env") } else { tool::command("sudo") };
        if !packages::is_root() {
            command.args(["-n", "env"]);
        }
        tool::visible(command.arg(program).arg(image).current_dir(place.root()))?;
    } else {
        say(&format!(
            "{kvm}: the guest runs in the rig (QEMU emulating a processor with SVM), which is slower"
        ));
        let out = machine::fresh_output(place, "demo-out")?;
        let script = format!("'{}' '{}'", program.display(), image.display());
        let status = Rig::from_environment(place).run(&script, &out, &mut |line| println!("{line}"))?;
        ensure!(status == 0, "the demo failed");
    }
    say(&format!("all of it took {:.0} s", start.elapsed().as_secs_f64()));
    Ok(())
}
