//! What each command needs before it starts. Called by: all of them.

use strata_rig::Place;

/// Packages, kernels and the rig, for tests.
///
/// # Errors
/// As `strata_rig::setup::setup`.
pub(crate) fn run(place: &Place) -> anyhow::Result<()> {
    strata_rig::setup::setup(place, &[])
}
