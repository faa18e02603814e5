//! `cargo xtask faults`: things broken around running machines, from a seed. See docs/reliability.md.
//!
//! The campaign is a program of its own (`tests/faults`); here it is built and started with the rights it needs. Also
//! called by: `test`, for a minute.

use std::path::Path;

use anyhow::Context;
use strata_rig::progress::say;
use strata_rig::{Place, packages, tool};

use crate::build;
use crate::counts::Counts;

/// How the short campaign is called among the tests.
const NAME: &str = "faults::a_minute_of_campaign";

/// What to break, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// A number that all faults follow from [default: a new one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// More for the campaign itself, after `--`: see `-- --help`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Builds, and runs it to its end.
///
/// # Errors
/// Something was lost or left behind; what, and the seed, have been printed.
pub(crate) fn run(place: &Place, arguments: &Arguments) -> anyhow::Result<()> {
    packages::ensure(&[])?;
    let programs =
        ["-p", "strata-cli", "-p", "strata-vhost-blk", "-p", "strata-vhost-net", "-p", "strata-faults"];
    tool::output(tool::command("cargo").args(["build", "--quiet"]).args(programs).current_dir(place.root()))?;
    let mut words = vec!["--minutes".to_owned(), arguments.minutes.to_string()];
    words.extend(arguments.seed.iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
    words.extend(arguments.more.iter().cloned());
    start(place.root(), &words)
}

/// A minute of it, as one test.
///
/// # Errors
/// If it cannot be started at all.
pub(crate) fn short(place: &Place, filters: &[String]) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter.as_str())) {
        return Ok(counts);
    }
    say("a minute of faults under verified load");
    match start(place.root(), &["--minutes".to_owned(), "1".to_owned()]) {
        Ok(()) => counts.passed += 1,
        Err(error) => counts.failed.push(format!("{NAME}: {error:#}")),
    }
    Ok(counts)
}

fn start(root: &Path, words: &[String]) -> anyhow::Result<()> {
    let program = build::programs()?.join("fault-campaign");
    // Taps, mounts and namespaces take root.
    let mut command = if packages::is_root() { tool::command("env") } else { tool::command("sudo") };
    if !packages::is_root() {
        command.args(["-n", "env"]);
    }
    command.arg(program).args(words);
    tool::visible(command.current_dir(root)).context("the fault campaign")
}
