//! The project's own commands: `cargo xtask demo | test | faults | fuzz | check | bench | deb | setup | rig`.
//!
//! Owns: the order in which a fresh machine is made ready, things are built, and tests run. Each command does all of
//! its own set-up and is quick the second time.

mod bench;
mod build;
mod check;
mod counts;
mod deb;
mod demo;
mod faults;
mod fuzz;
mod guests;
mod native;
mod setup;
mod test;

#[cfg(test)]
mod workspace_test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use strata_rig::{Place, Rig, progress::say};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Strata's own commands", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Debian guest on three processes and show where its exits went
    Demo,
    /// Run every test, guests included
    Test(test::Arguments),
    /// Formatting, lints, documentation, the workspace's shape
    Check,
    /// Measure: a backend beside others, without a guest; or the exits of guests
    Bench(bench::Arguments),
    /// Break things around running machines, and check that nothing is lost
    Faults(faults::Arguments),
    /// Feed the parsers of guests' and peers' bytes with what libFuzzer thinks of
    Fuzz(fuzz::Arguments),
    /// Build the Debian package
    Deb(deb::Arguments),
    /// Install and download what tests and demo need (they do it themselves too)
    Setup,
    /// Run a shell command in the rig, a machine with KVM in software
    Rig {
        /// The command, given to bash in the clone's top folder
        command: String,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let place = Place::of_this_clone();
    match command {
        Command::Demo => demo::run(&place).map(|()| ExitCode::SUCCESS),
        Command::Test(arguments) => test::run(&place, &arguments),
        Command::Check => check::run(&place).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::run(&place, &arguments),
        Command::Faults(arguments) => faults::run(&place, &arguments).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(arguments) => fuzz::run(&place, &arguments).map(|()| ExitCode::SUCCESS),
        Command::Deb(arguments) => deb::run(place.root(), &arguments).map(|()| ExitCode::SUCCESS),
        Command::Setup => setup::for_tests(&place).map(|()| ExitCode::SUCCESS),
        Command::Rig { command } => {
            setup::for_rig(&place)?;
            let out = strata_rig::machine::fresh_output(&place, "rig-out")?;
            say(&format!("results written to /run/out are in {}", out.display()));
            let status = Rig::from_environment(&place).run(&command, &out, &mut |line| println!("{line}"))?;
            Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
        }
    }
}
