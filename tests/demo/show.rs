//! How the demo looks: headings, tables, the guest's own words set apart.

use std::process::Command;

use strata_tests::exits::Exits;
use strata_tests::locked::{self, Report};
use strata_tests::strata::Running;

/// Before each line of the guest's.
pub(crate) const GUEST: &str = "      | ";

/// A line that begins a part.
pub(crate) fn heading(text: &str) {
    println!("\n== {text}");
}

/// A line about what is done.
pub(crate) fn note(text: &str) {
    println!("   {text}");
}

/// A command as one would type it, paths shortened to their last part.
pub(crate) fn command_line(command: &Command) -> String {
    let word = |word: &std::ffi::OsStr| {
        let text = word.to_string_lossy().into_owned();
        let text = match text.rsplit_once('/') {
            Some((head, tail)) if head.starts_with('/') => tail.to_owned(),
            Some((head, tail)) if head.starts_with("path=/") => format!("path={tail}"),
            _ => text,
        };
        if text.contains(' ') { format!("'{text}'") } else { text }
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(word).collect::<Vec<_>>().join(" ")
}

/// One row per process: who it is, and what it may still do, as `/proc` shows it from outside.
///
/// # Errors
/// If one is not there.
pub(crate) fn processes(vm: &Running, ids: &[&str]) -> anyhow::Result<()> {
    let mut rows =
        vec![["", "PROCESS", "USER", "SECCOMP", "CAPS", "NAMESPACES", "ROOT", "MEMORY"].map(str::to_owned)];
    for id in ids {
        let worker = locked::worker(vm.pid_of(id)?);
        let report = Report::of(worker)?;
        let namespaces = match report.shared_namespaces.as_slice() {
            [] => "6 of its own".to_owned(),
            shared => format!("shares {}", shared.join(",")),
        };
        rows.push([
            (*id).to_owned(),
            format!("{} ({worker})", report.name),
            report.uid.to_string(),
            if report.seccomp == 2 { "filtered" } else { "OFF" }.to_owned(),
            if report.no_capabilities { "none" } else { "SOME" }.to_owned(),
            namespaces,
            if report.root.is_empty() { "empty".to_owned() } else { report.root.join(",") },
            format!("{} KiB", private_kib(worker)),
        ]);
    }
    table(&rows);
    note("MEMORY is what the process has for itself, without the guest's memory");
    Ok(())
}

/// Private memory, shared mappings (the guest's memory) left out.
fn private_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A table of exits, one column per phase.
pub(crate) fn exits(phases: &[(&str, &Exits)]) {
    let mut reasons: Vec<String> = Vec::new();
    for (_, exits) in phases {
        for (reason, _) in exits.by_reason() {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    let count = |exits: &Exits, reason: &str| {
        let rows = exits.by_reason();
        rows.iter().find(|(name, _)| name == reason).map_or(0, |(_, count)| *count)
    };
    let mut rows = vec![["REASON".to_owned(), String::new(), String::new()]];
    for reason in &reasons {
        rows.push([reason.clone(), String::new(), String::new()]);
    }
    rows.push(["all".to_owned(), String::new(), String::new()]);
    for (column, (name, exits)) in phases.iter().enumerate() {
        let values = std::iter::once((*name).to_uppercase())
            .chain(reasons.iter().map(|reason| count(exits, reason).to_string()))
            .chain(std::iter::once(exits.total().to_string()));
        for (row, value) in rows.iter_mut().zip(values) {
            if let Some(cell) = row.get_mut(column + 1) {
                *cell = value;
            }
        }
    }
    table(&rows);
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    for row in rows {
        let cells =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        println!("   {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
