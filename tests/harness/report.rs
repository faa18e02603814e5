//! Runs cases one after another and says how they went: cargo-test-like lines, and a summary for `xtask`.
//!
//! Called by: `guest-cases`. One case at a time, because exits are counted for the whole host and the rig has two
//! processors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use strata_rig::Place;

use crate::case::{Case, Context, Skipped};
use crate::leftovers::Before;
use crate::programs::Programs;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should.
    Failed,
    /// What it tests is not here.
    Skipped,
}

/// One case's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The case.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// Why it was skipped or failed.
    pub why: String,
}

/// Runs `cases` with their files below `dir` and gives a result for each.
///
/// # Errors
/// If the case folders cannot be made; a failing case is no error.
pub fn run(cases: &[Case], place: &Place, programs: &Programs, dir: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for case in cases {
        let start = Instant::now();
        let result = one(case, place, programs, &dir.join(case.name.replace("::", "-")));
        let seconds = start.elapsed().as_secs_f64();
        let (outcome, why) = match &result {
            Ok(()) => (Outcome::Passed, String::new()),
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(skipped) => (Outcome::Skipped, skipped.to_string()),
                None => (Outcome::Failed, format!("{error:#}")),
            },
        };
        match outcome {
            Outcome::Passed => println!("test {} ... ok ({seconds:.1} s)", case.name),
            Outcome::Failed => println!("test {} ... FAILED ({seconds:.1} s)\n{why}", case.name),
            Outcome::Skipped => println!("test {} ... {why}", case.name),
        }
        entries.push(Entry { name: case.name.to_owned(), outcome, seconds, why });
    }
    Ok(entries)
}

fn one(case: &Case, place: &Place, programs: &Programs, dir: &Path) -> anyhow::Result<()> {
    let context = Context::new(place, programs, dir)?;
    let before = Before::now();
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&context)));
    let result = result.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", text_of(panic.as_ref()))));
    // A failed case is cleaned up by dropping; only one that passed promises to leave nothing.
    let result = result.and_then(|()| {
        let left = before.left(&context);
        anyhow::ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    });
    std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    result
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
