//! `cargo xtask check`: what a reviewer need not look for.

use strata_rig::Place;
use strata_rig::progress::step;
use strata_rig::tool;

const FUZZ: &str = "tests/fuzz/Cargo.toml";
const CHECKS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("formatting of the fuzz targets", &["fmt", "--manifest-path", FUZZ, "--check"]),
    // Outside the workspace, so nothing else compiles them without a sanitizer; in the same target folder, so that what
    // they build on is checked once.
    (
        "lints of the fuzz targets",
        &[
            "clippy",
            "--quiet",
            "--locked",
            "--manifest-path",
            FUZZ,
            "--target-dir",
            "target",
            "--no-default-features",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("documentation", &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]),
    ("the workspace's shape", &["test", "--quiet", "--package", "xtask", "workspace_test"]),
];

/// Runs all checks, each with warnings denied.
///
/// # Errors
/// At the first that fails, with what it said.
pub(crate) fn run(place: &Place) -> anyhow::Result<()> {
    for (what, args) in CHECKS {
        step(what, || {
            let mut cargo = tool::command("cargo");
            cargo.args(*args).env("RUSTDOCFLAGS", "-D warnings").current_dir(place.root());
            tool::output(&mut cargo).map(drop)
        })?;
    }
    Ok(())
}
