//! Everything a fresh Debian 12 or 13 lacks, in one call that takes no time when it is there already.
//!
//! Called by: `xtask`. Works as root or with `sudo`; without either it does what needs neither and names the rest.

use std::fs;

use anyhow::Context;

use crate::guest::Kernel;
use crate::place::Place;
use crate::{initramfs, kernel, packages};

/// Packages, kernels, initramfs.
///
/// # Errors
/// If something cannot be had, with what to do about it.
pub fn setup(place: &Place, extra_packages: &[&str]) -> anyhow::Result<()> {
    fs::create_dir_all(place.cache()).with_context(|| format!("cannot make {}", place.cache().display()))?;
    packages::ensure(extra_packages)?;
    packages::ensure_lists()?;
    kernel::for_guests(place)?;
    kernel::for_rig(place)?;
    initramfs::for_rig(place)?;
    // Here and not where they are first read: the rig would make them in software, at each of its starts.
    Kernel::ALL.into_iter().try_for_each(|kernel| kernel.base(place).map(drop))
}
