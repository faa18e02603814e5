//! Runs cases one after another and says how they went: cargo-test-like lines, and a summary for `xtask`.
//!
//! Called by: `guest-cases`. One case at a time, because exits are counted for the whole host and the rig has two
//! processors. The summary is a line of JSON as a case begins and one as it ends, so that it survives the machine the
//! cases run on: a second call with the same summary goes on after what ended.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use strata_rig::Place;

use crate::case::{Case, Context, Skipped};
use crate::leftovers::Before;
use crate::programs::Programs;

/// How far a case is, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What is known of cases: in a file, or nowhere.
#[derive(Debug)]
pub struct Summary {
    file: Option<File>,
    ended: Vec<String>,
}

impl Summary {
    /// The summary in `path`, with what it says already; without a path one that is not kept.
    ///
    /// # Errors
    /// If the file cannot be read or written, or a whole line of it makes no sense.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { file: None, ended: Vec::new() }) };
        let read = std::fs::read_to_string(path).unwrap_or_default();
        let entries = parse(&read).with_context(|| format!("{}", path.display()))?;
        let ended = entries.into_iter().filter(|entry| entry.outcome != Outcome::Begun);
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file: Some(file), ended: ended.map(|entry| entry.name).collect() })
    }

    /// True if the case has ended, however.
    pub fn knows(&self, case: &Case) -> bool {
        self.ended.iter().any(|name| name == case.name)
    }

    fn add(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let line = serde_json::to_string(entry)? + "\n";
        file.write_all(line.as_bytes()).context("cannot write the summary")
    }
}

/// The lines of a summary in their order.
fn parse(summary: &str) -> anyhow::Result<Vec<Entry>> {
    let lines = summary.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context("a line of the guest cases' summary makes no sense")
}

/// Runs `cases` with their files below `dir`; true if none failed.
///
/// # Errors
/// If the case folders cannot be made or the summary cannot be written; a failing case is no error.
pub fn run(
    cases: &[Case],
    place: &Place,
    programs: &Programs,
    dir: &Path,
    summary: &mut Summary,
) -> anyhow::Result<bool> {
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
