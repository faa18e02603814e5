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

/// One case of the summary that `guest-cases` writes.
#[derive(Deserialize)]
struct Entry {
    name: String,
    outcome: String,
    seconds: f64,
    why: String,
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
    let ended = Rig::from_environment(place).run(&script, out, &mut |line| println!("{line}"));
    count(&out.join("kvm.json"), ended.err().map(|error| format!("{error:#}")))
}

/// What cases take from the environment: how often to kill (`cases/faults.rs`).
fn passed_on() -> Vec<String> {
    std::env::var("STRATA_KILLS").map(|kills| format!("STRATA_KILLS={kills}")).into_iter().collect()
}

fn count(summary: &Path, trouble: Option<String>) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let Ok(text) = std::fs::read_to_string(summary) else {
        let trouble = trouble.unwrap_or_else(|| "no reason given".into());
        println!("{trouble}");
        counts.failed.push(format!("guest cases: no summary: {trouble}"));
        return Ok(counts);
    };
    let entries: Vec<Entry> =
        serde_json::from_str(&text).context("the guest cases' summary makes no sense")?;
    for entry in entries {
        match entry.outcome.as_str() {
            "passed" => counts.passed += 1,
            "skipped" => counts.skipped.push(format!("{}: {}", entry.name, entry.why)),
            _ => counts.failed.push(format!("{} ({:.0} s)", entry.name, entry.seconds)),
        }
    }
    Ok(counts)
}
