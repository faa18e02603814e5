#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test, without the harness
//! The sandbox, looked at from both sides of its wall.
//!
//! Each case starts this program again as an inmate (`jail inmate ...`, see `inmate`), as root and as an unprivileged
//! user where it can, and looks at it from outside or lets it try what is forbidden. Each has its control: the same
//! look at, or the same try by, a process that was not locked in, which must come out the other way, so that no case
//! passes because nothing was there to be held.
//!
//! Arguments that do not begin with `-` select cases by name.

mod binds;
mod inmate;
mod inside;
mod life;
mod outside;
mod probes;
mod start;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Case = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("inmate", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return inmate::main(rest);
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let cases = [outside::CASES, inside::CASES, life::CASES, binds::CASES].concat();
    let chosen: Vec<Case> = cases
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    start::as_from_a_shell();
    println!("running {} tests", chosen.len());
    let failed: Vec<&str> = chosen.iter().filter(|case| !passes(case)).map(|(name, _)| *name).collect();
    println!("\n{} passed; {} failed: {failed:?}", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes((name, case): &Case) -> bool {
    let passed = catch_unwind(AssertUnwindSafe(case)).is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    passed
}
