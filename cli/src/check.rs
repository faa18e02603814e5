//! `strata check`: whether machines can run here, line by line, and what to change.
//!
//! Facts are gathered once ([`gather`], [`probe`]); the lines are pure functions of them. Changes nothing on the
//! host. The JSON is a promise: keys are added, never renamed or taken away.

mod facts;
mod gather;
mod line;
mod machines;
mod pages;
mod probe;
mod processor;
mod walls;

#[cfg(test)]
mod check_test;
#[cfg(test)]
mod gather_test;

use serde::Serialize;
use strata_config::Machine;

use self::facts::Facts;
use self::line::{Level, Line};
use crate::args::{CheckArgs, Output};
use crate::say::print;

/// Exit statuses beside 0.
const WARNINGS: u8 = 1;
const NOT_READY: u8 = 2;

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    /// `ready`, `warnings` or `not_ready`.
    status: &'static str,
    /// `nested` under a hypervisor, else `bare`.
    profile: &'static str,
    lines: Vec<Line>,
}

/// Looks, prints, and returns the exit status.
///
/// # Errors
/// A machine file that is none, or standard output that cannot be written.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    if args.probe {
        probe::probe()?;
        return Ok(0);
    }
    let machines =
        args.machines.iter().map(|path| Machine::from_file(path)).collect::<Result<Vec<_>, _>>()?;
    let facts = gather::facts(&machines);
    let lines = judge(&facts);
    let worst = lines.iter().map(|line| line.level).max().unwrap_or(Level::Ready);
    let profile = if facts.cpu.hypervisor.is_some() { "nested" } else { "bare" };
    let (status, code) = match worst {
        Level::Ready | Level::Info => ("ready", 0),
        Level::Warning => ("warnings", WARNINGS),
        Level::NotReady => ("not_ready", NOT_READY),
    };
    if args.json || args.output.output == Output::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&Report { status, profile, lines })?))?;
    } else {
        print(&text(&lines))?;
    }
    Ok(code)
}

/// Every line, in the order they are shown.
fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![
        machines::programs(facts),
        processor::kvm(facts),
        processor::hardware(facts),
        processor::profile(facts),
        processor::nested(facts),
        processor::paging(facts),
        processor::halt_poll(facts),
        processor::kernel(facts),
    ];
    lines.extend(processor::statistics(facts));
    lines.extend(processor::pre_fault(facts));
    lines.push(pages::shared(facts));
    lines.extend(pages::reserved(facts));
    lines.extend([
        walls::sandbox(facts),
        walls::user_namespaces(facts),
        walls::landlock(facts),
        walls::io_uring(facts),
        walls::tun(facts),
        walls::cgroup(facts),
        walls::nofile(facts),
        walls::memlock(facts),
    ]);
    lines.extend(machines::together(facts));
    lines.extend(machines::each(facts));
    lines
}

/// For people: level, topic, what is there; below it what to change.
fn text(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.topic.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        text.push_str(&format!("{:9}  {:width$}  {}\n", line.level.word(), line.topic, line.found));
        let below = " ".repeat(9 + 2 + width + 2);
        if let Some(change) = &line.change {
            text.push_str(&format!("{below}-> {change}\n"));
        }
        if let Some(command) = &line.command {
            text.push_str(&format!("{below}   # {command}\n"));
        }
    }
    let count = |level| lines.iter().filter(|line| line.level == level).count();
    text.push_str(&match (count(Level::NotReady), count(Level::Warning)) {
        (0, 0) => "\nready\n".to_owned(),
        (0, warnings) => format!("\nready, with {}\n", plural(warnings, "warning")),
        (wrong, warnings) => {
            format!("\nnot ready: {} to change first, {}\n", wrong, plural(warnings, "warning"))
        }
    });
    text
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
