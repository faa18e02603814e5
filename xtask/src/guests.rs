//! The guest cases: where they run, and what they report.
//!
//! Called by: `test`. With hardware behind `/dev/kvm` they run natively; else in the rig, visibly saying so, and one
//! start of the rig serves them all. Cases that want QEMU's interpreter run natively in any case.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use strata_rig::progress::say;
use strata_rig::{Kvm, Place, Rig, machine, packages, tool};

use crate::build;
use crate::counts::Counts;

/// One line of the summary that `guest-cases` writes: a case has begun, or ended.
#[derive(Deserialize)]
struct Entry {
    name: String,
    outcome: String,
    seconds: f64,
    why: String,
}

impl Entry {
    fn is_begun(&self) -> bool {
        self.outcome == "begun"
    }
}

/// Runs those cases whose name contains one of `filters`; all without any.
///
/// # Errors
/// If they cannot be run at all; failing cases are counted.
pub(crate) fn run(place: &Place, filters: &[String]) -> anyhow::Result<Counts> {
    let out = machine::fresh_output(place, "guest-out")?;
    let mut counts = natively(place, &out, "host", filters)?;
    let kvm = Kvm::probe();
    counts.add(if kvm.runs_guests() {
        say(&format!("{kvm}: guests run on it"));
        natively(place, &out, "kvm", filters)?
    } else {
        say(&format!("{kvm}: guests run in the rig (QEMU emulating a processor with SVM), which is slower"));
        in_the_rig(place, &out, filters)?
    });
    Ok(counts)
}

fn natively(place: &Place, out: &Path, needs: &str, filters: &[String]) -> anyhow::Result<Counts> {
    let program = build::programs()?.join("guest-cases");
    let summary = out.join(format!("{needs}.json"));
    // Taps and namespaces take root.
    let mut command = if packages::is_root() { tool::command("env") } else { tool::command("sudo") };
    if !packages::is_root() {
        command.args(["-n", "env"]);
    }
    command.args(passed_on()).arg(program).args(["--on", needs, "--summary"]).arg(&summary).args(filters);
    let ended = tool::visible(command.current_dir(place.root()));
    count(&summary, ended.err().map(|error| format!("{error:#}")))
}

fn in_the_rig(place: &Place, out: &Path, filters: &[String]) -> anyhow::Result<Counts> {
    let program = build::programs()?.join("guest-cases");
    let quoted: Vec<String> = filters.iter().map(|filter| format!("'{filter}'")).collect();
    let env = passed_on().join(" ");
    let script = format!(
        "env {env} '{}' --on kvm --summary /run/out/kvm.json {}",
        program.display(),
        quoted.join(" ")
    );
    let summary = out.join("kvm.json");
    let ended = Rig::from_environment(place).run(&script, out, &mut |line| println!("{line}"));
    let trouble = match ended {
        Ok(0) => None,
        Ok(code) => Some(format!("guest-cases ended with {code}")),
        Err(error) => Some(format!("{error:#}")),
    };
    count(&summary, trouble)
}

/// What cases take from the environment: how often to kill (`cases/faults.rs`).
fn passed_on() -> Vec<String> {
    std::env::var("STRATA_KILLS").map(|kills| format!("STRATA_KILLS={kills}")).into_iter().collect()
}

/// What a summary comes to; `trouble` counts as a failure of its own unless a case's failure explains it.
fn count(summary: &Path, trouble: Option<String>) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    // None if it was never written.
    let text = std::fs::read_to_string(summary).unwrap_or_default();
    let entries = text.lines().map(serde_json::from_str).collect::<Result<Vec<Entry>, _>>();
    let entries = entries.context("the guest cases' summary makes no sense")?;
    for entry in &entries {
        match entry.outcome.as_str() {
            "begun" => {}
            "passed" => counts.passed += 1,
            "skipped" => counts.skipped.push(format!("{}: {}", entry.name, entry.why)),
            _ => counts.failed.push(format!("{} ({:.0} s)", entry.name, entry.seconds)),
        }
    }
    let last = entries.last();
    let explained = !counts.failed.is_empty() && last.is_some_and(|entry| !entry.is_begun());
    if let Some(trouble) = trouble.filter(|_| !explained) {
        let at = last.map_or("the start", |entry| &entry.name);
        counts.failed.push(format!("guest cases, at {at}: {trouble}"));
    }
    Ok(counts)
}

#[cfg(test)]
#[path = "guests_test.rs"]
mod guests_test;
