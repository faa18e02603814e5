//! What each command needs before it starts.
//!
//! Called by: all of them. `strata_rig::setup` does the work; here is what the tests and the demo need on top.

use strata_rig::debian::{self, Release};
use strata_rig::progress::step;
use strata_rig::{Place, stamp, tool};

/// A vhost-user device of another project, from crates.io: shows that a generic device attaches.
const RNG: &str = "vhost-device-rng";
const RNG_VERSION: &str = "0.1.0";

/// Packages, kernels and the rig.
///
/// # Errors
/// As `strata_rig::setup::setup`.
pub(crate) fn for_rig(place: &Place) -> anyhow::Result<()> {
    strata_rig::setup::setup(place, &[])
}

/// Also what the guest cases start that is not ours: another project's device, and Debians whose systemd runs machines.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn for_tests(place: &Place) -> anyhow::Result<()> {
    strata_rig::setup::setup(place, &["fio", "mmdebstrap"])?;
    Release::ALL.into_iter().try_for_each(|release| debian::node(place, release).map(drop))?;
    let program = place.crates().join("bin").join(RNG);
    if stamp::fresh(&program, RNG_VERSION) {
        return Ok(());
    }
    step(&format!("cargo install {RNG} {RNG_VERSION}, to test with"), || {
        let mut install = tool::command("cargo");
        install.args(["install", "--quiet", "--locked", "--debug", "--version", RNG_VERSION, "--root"]);
        install.arg(place.crates()).arg(RNG).env("CARGO_TARGET_DIR", place.cache().join("crates-build"));
        tool::output(&mut install)?;
        stamp::write(&program, RNG_VERSION)
    })
}

/// Also what makes a Debian root file system.
///
/// # Errors
/// As [`for_rig`].
pub(crate) fn for_demo(place: &Place) -> anyhow::Result<()> {
    strata_rig::setup::setup(place, &["mmdebstrap"])
}
