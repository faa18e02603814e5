//! Builds with cargo, beside other work.
//!
//! Called by: `test` and `demo`. The set-up downloads while the compiler runs.

use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use strata_rig::progress::step;
use strata_rig::{Place, tool};

/// A build that is running.
pub(crate) struct Build(JoinHandle<anyhow::Result<()>>);

/// Starts `cargo` with these arguments.
pub(crate) fn start(place: &Place, what: &'static str, args: &'static [&'static str]) -> Build {
    let root = place.root().to_owned();
    Build(std::thread::spawn(move || {
        step(what, || tool::output(tool::command("cargo").args(args).current_dir(root)).map(drop))
    }))
}

impl Build {
    /// Waits for its end.
    ///
    /// # Errors
    /// If it failed, with what the compiler said.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.0.join().map_err(|_| anyhow!("the build's thread panicked"))?
    }
}

/// The folder of the programs: where cargo put this one.
///
/// # Errors
/// If our own path is unknown.
pub(crate) fn programs() -> anyhow::Result<PathBuf> {
    let us = std::env::current_exe().context("our own path is unknown")?;
    Ok(us.parent().context("our own path has no folder")?.to_owned())
}
