//! The vmm's entry: reads the command line, runs the machine, says why it ended.
//!
//! Exit status: 0 the guest powered off (or reset, with no_reboot), 1 the guest or this process failed, 2 the
//! command line or the machine file is wrong.

use std::process::ExitCode;

use anyhow::Error;
use clap::Parser;
use strata_config::ConfigError;
use strata_vmm::args::Args;
use strata_vmm::machine;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("STRATA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
    match machine::run(&args).map_err(Error::from) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::from(if error.chain().any(|cause| cause.is::<ConfigError>()) { 2 } else { 1 })
        }
    }
}
