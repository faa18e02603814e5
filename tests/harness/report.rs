//! Runs cases one after another and says how they went: cargo-test-like lines, and a summary for `xtask`.
//!
//! Called by: `guest-cases`. One case at a time, because exits are counted for the whole host and the rig has two
//! processors. The summary is a line of JSON as a case begins and one as it ends, so that what is known survives the
//! machine the cases run on.

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use strata_rig::Place;

use crate::case::{Case, Context, Skipped};
use crate::leftovers::{self, Before};
use crate::programs::Programs;

/// How far a case is, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Not at its end yet.
    Begun,
    /// As it should.
    Passed,
    /// Not as it should.
    Failed,
    /// What it tests is not here.
    Skipped,
}

/// One case's result.
#[derive(Clone, Debug, Serialize)]
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

/// What is known of cases: in a file, or nowhere.
#[derive(Debug)]
pub struct Summary(Option<File>);

impl Summary {
    /// A new summary in `path`; without a path one that is not kept.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        Ok(Self(path.map(create).transpose()?))
    }

    fn add(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let line = serde_json::to_string(entry)? + "\n";
        file.write_all(line.as_bytes()).context("cannot write the summary")
    }
}

/// Runs `cases` with their files below `dir`; true if none failed.
///
/// # Errors
/// If orphans cannot be adopted, the case folders cannot be made or the summary cannot be written; a failing case is no error.
pub fn run(
    cases: &[Case],
    place: &Place,
    programs: &Programs,
    dir: &Path,
    summary: &mut Summary,
) -> anyhow::Result<bool> {
    leftovers::adopt()?;
    let mut good = true;
    for case in cases {
        let name = || case.name.to_owned();
        summary.add(&Entry { name: name(), outcome: Outcome::Begun, seconds: 0.0, why: String::new() })?;
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
        match &result {
            Ok(()) => println!("test {} ... ok ({seconds:.1} s)", case.name),
            Err(_) if outcome == Outcome::Skipped => println!("test {} ... {why}", case.name),
            Err(_) => println!("test {} ... FAILED ({seconds:.1} s)\n{why}", case.name),
        }
        good &= outcome != Outcome::Failed;
        summary.add(&Entry { name: name(), outcome, seconds, why })?;
    }
    Ok(good)
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
