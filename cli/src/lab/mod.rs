//! `strata lab`: switches and machines from one file, started together and ended together.

mod run;

use std::path::PathBuf;

use clap::Subcommand;

pub(crate) use run::run;

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab's switches and machines, show what the machines say, and end when all of them have
    ///
    /// SIGTERM and Ctrl-C press all power buttons; a second one kills. Each machine is one of its own besides: `strata
    /// ps`, `console`, `stop` and the others work on it, and `strata switch` on the switches.
    Run {
        /// The lab's file, TOML or JSON
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
