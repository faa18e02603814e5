//! `cargo xtask bench blk|net|exits`: release builds of a backend and of the bench, then the bench with the words it is
//! given; `exits` runs guests (`bench/exits.rs`).
//!
//! What is measured and how it is shown is the bench's (`tests/bench`); here is only which programs it gets.

mod exits;

use std::process::ExitCode;

use anyhow::{Context, bail};
use strata_rig::progress::step;
use strata_rig::{Place, tool};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// `blk`, `net` or `exits`
    what: String,
    /// For the bench: e.g. `--against qemu-storage-daemon`; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Builds and runs the bench; its exit status is ours.
///
/// # Errors
/// If there is no such bench, or something does not build.
pub(crate) fn run(place: &Place, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.what == "exits" {
        return exits::run(place, &arguments.words);
    }
    let (package, backend) = match arguments.what.as_str() {
        "blk" => ("strata-vhost-blk", "vhost-blk"),
        "net" => ("strata-vhost-net", "vhost-net"),
        other => bail!("there is no bench {other:?}; there are blk, net and exits"),
    };
    step("release build of the bench and the backend", || {
        let mut cargo = tool::command("cargo");
        cargo.args(["build", "--quiet", "--release", "-p", "strata-bench", "-p", package]);
        tool::output(cargo.current_dir(place.root())).map(drop)
    })?;
    let programs = place.root().join("target/release");
    let mut bench = tool::command(&programs.join("strata-bench").to_string_lossy());
    bench.arg(&arguments.what).arg("--backend").arg(programs.join(backend)).args(&arguments.words);
    bench.current_dir(place.root());
    let status = bench.status().context("cannot run the bench")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
