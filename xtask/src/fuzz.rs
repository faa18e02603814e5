//! `cargo xtask fuzz`: builds the targets of `tests/fuzz` with coverage and address checks, and runs them.
//!
//! libFuzzer is driven directly: the one thing cargo-fuzz would add here is a second toolchain to install. The flags
//! are the ones it passes; they are unstable, which RUSTC_BOOTSTRAP lets the project's own toolchain take. A C++ compiler,
//! for libFuzzer, is installed if there is none. CI calls this for a minute a target.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use strata_rig::progress::step;
use strata_rig::{Place, packages, tool};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address";

/// What to fuzz.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Targets; all without any
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// Targets that run at a time
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: usize,
}

/// Runs the targets, as many at a time as asked for, over a corpus kept under `target/strata/corpus`.
///
/// # Errors
/// A target does not exist, does not build, or found something: where its input lies is said.
pub(crate) fn run(place: &Place, arguments: &Arguments) -> anyhow::Result<()> {
    let package = place.root().join("tests/fuzz");
    let known = targets(&package)?;
    if let Some(unknown) = arguments.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    // The compiler crate `cc` asks for.
    if tool::find("c++").is_none() {
        packages::ensure_one("g++")?;
    }
    let output = place.cache().join("fuzz");
    let mut cargo = tool::command("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--locked", "--target", TRIPLE, "--target-dir"])
        .arg(&output);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS).current_dir(&package);
    step("build of the fuzz targets", || tool::output(&mut cargo).map(drop))?;
    let programs = output.join(TRIPLE).join("release");
    let next = Mutex::new(chosen.iter());
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // A statement of its own: `while let` would keep the lock for as long as the target runs.
                    let Some(target) = lock(&next).next() else { break };
                    match fuzz(place, &programs.join(target), target, arguments.seconds) {
                        Ok(runs) => println!("{target}: {runs} inputs, nothing found"),
                        Err(error) => lock(&found).push(format!("{error:#}")),
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if found.is_empty() { Ok(()) } else { bail!("{}", found.join("; ")) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of the files in `targets/`.
fn targets(package: &Path) -> anyhow::Result<Vec<String>> {
    let folder = package.join("targets");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| PathBuf::from(entry.ok()?.file_name()).file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn fuzz(place: &Place, program: &Path, target: &str, seconds: u64) -> anyhow::Result<String> {
    let corpus = place.cache().join("corpus").join(target);
    let findings = place.cache().join("findings");
    for folder in [&corpus, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = Command::new(program);
    command.arg(format!("-max_total_time={seconds}")).args([
        "-max_len=8192",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]);
    command.arg(format!("-artifact_prefix={}/{target}-", findings.display())).arg(&corpus);
    // What helps it to a start, where a format is too much to guess.
    let seeds = place.root().join("tests/fuzz/seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let tail: Vec<&str> = said.lines().rev().take(40).collect();
        for line in tail.iter().rev() {
            println!("{line}");
        }
        bail!("{target} found something: the input is in {}", findings.display());
    }
    let runs = said.lines().rev().find_map(|line| line.strip_prefix("Done ")?.split(' ').next());
    Ok(runs.unwrap_or("some").to_owned())
}
