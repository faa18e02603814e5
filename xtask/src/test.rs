//! `cargo xtask test`: set-up, build, native tests, guest cases, one last line with the sum.

use std::process::ExitCode;
use std::time::Instant;

use strata_rig::Place;
use strata_rig::progress::{say, step};

use crate::counts::Counts;
use crate::{build, deb, faults, guests, native, setup};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only what needs no guest
    #[arg(long, conflicts_with = "guest_only")]
    native_only: bool,
    /// Only the guest cases
    #[arg(long)]
    guest_only: bool,
}

/// Runs the tests. In CI (`CI=true`) a skipped test is a failure: everything must be there.
///
/// # Errors
/// If set-up or build fail.
pub(crate) fn run(place: &Place, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let build = build::start(place, "build", &["build", "--quiet", "--workspace"]);
    setup::for_tests(place)?;
    build.finish()?;
    // What the node under systemd installs, and is upgraded to: the programs under test, twice.
    step("the package", || {
        let later = format!("{}+later", deb::VERSION);
        for (folder, version) in [(place.package(), deb::VERSION), (place.later_package(), &later)] {
            deb::package(place.root(), &build::programs()?, &folder, deb::Packing::Quick, version)?;
        }
        Ok(())
    })?;
    let mut counts = Counts::default();
    if !arguments.guest_only {
        build::start(place, "build of the tests", &["test", "--quiet", "--workspace", "--no-run"])
            .finish()?;
        counts.add(native::run(place, &arguments.filter)?);
        counts.add(faults::short(place, &arguments.filter)?);
    }
    if !arguments.native_only {
        counts.add(guests::run(place, &arguments.filter)?);
    }
    let strictly = std::env::var("CI").is_ok_and(|ci| ci == "true");
    report(&counts, strictly);
    say(&format!("all of it took {:.0} s", start.elapsed().as_secs_f64()));
    println!("{counts}");
    Ok(if counts.green(strictly) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(counts: &Counts, strictly: bool) {
    for line in &counts.skipped {
        let verdict = if strictly { " (a failure here: CI has to have it)" } else { "" };
        println!("{line}{verdict}");
    }
    for line in &counts.failed {
        println!("FAILED: {line}");
    }
}
