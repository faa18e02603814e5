//! The `strata` command: reads the command line, does what it says, and ends with 0, 1 or 2.

mod args;
mod attach;
mod backend;
mod check;
mod child;
mod control;
mod device;
mod disk;
mod escape;
mod exits;
mod image;
mod lab;
mod launcher;
mod list;
mod meter;
mod net;
mod orphans;
mod owner;
mod plan;
mod preflight;
#[cfg(test)]
mod preflight_test;
mod profile;
mod programs;
mod reload;
mod restarts;
mod run;
mod run_dir;
#[cfg(test)]
mod run_dir_test;
mod say;
mod served;
mod shuttle;
mod signals;
mod supervise;
mod switch;
mod terminal;
mod threads;
mod top;
mod unit;
mod upgrade;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use strata_config::{ConfigError, Lab};

use crate::args::{Cli, Command};
use crate::lab::LabCommand;
use crate::say::say;
use crate::switch::SwitchCommand;

/// The machine, or the command, failed.
const FAILED: u8 = 1;
/// The command line or the machine file is wrong.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    // clap ends the process itself, with 2, when the command line is wrong.
    let command = Cli::parse().command;
    let result = match command {
        Command::Run(args) => {
            let machine = match run::machine(*args) {
                Ok(machine) => machine,
                Err(error) => return fail(&error.into(), WRONG),
            };
            run::run(&machine)
        }
        Command::Switch(SwitchCommand::Run { file }) => match switch::read(&file) {
            Ok(switch) => switch::run(&switch),
            Err(error) => return fail(&error.into(), WRONG),
        },
        Command::Switch(command) => switch::about(&command),
        Command::Lab(LabCommand::Run { file }) => match Lab::from_file(&file, &run_dir::base()) {
            Ok(lab) => lab::run(&lab),
            Err(error) => return fail(&error.into(), WRONG),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "strata", &mut script);
            say::print(&String::from_utf8_lossy(&script)).map_err(Into::into)
        }
        Command::Unit(args) => unit::run(&args),
        Command::Man { folder } => clap_mangen::generate_to(Cli::command(), folder).map_err(Into::into),
        Command::Check(args) => match check::run(&args) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => return fail(&error, WRONG),
        },
        Command::Exits(args) => block_on(exits::run(&args)),
        Command::Top(args) => block_on(top::run(&args)),
        Command::Device(command) => device::run(&command),
        Command::Disk(command) => disk::run(&command),
        Command::Net(command) => net::run(&command),
        Command::Image(command) => image::run(&command),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Reload(args) => match reload::run(&args) {
            Err(error) if error.is::<ConfigError>() => return fail(&error, WRONG),
            result => result,
        },
        Command::Ps { output } => block_on(list::ps(output.output)),
        Command::Status { name, output } => block_on(list::status(&name, output.output)),
        Command::Console { name } => block_on(control::console(&name)),
        Command::Stop(args) => block_on(control::stop(&args)),
        Command::Pause { name } => block_on(control::pause(&name)),
        Command::Resume { name } => block_on(control::resume(&name)),
        Command::Reboot { name } => block_on(control::reboot(&name)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, FAILED),
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Prints the error with its causes, once.
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    say(format_args!("strata: {error:#}"));
    ExitCode::from(status)
}
