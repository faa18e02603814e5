//! The vmm's command line. It is written by the launcher or a service unit, so it is short: everything about the
//! machine is in the machine file.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Parser;
use strata_sandbox::Namespaces;

/// Runs one virtual machine. Its devices are served by other processes, over sockets in the run folder.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmm", version)]
pub struct Args {
    /// The machine file, TOML or JSON; /dev/fd/N works.
    #[arg(long, value_name = "FILE")]
    pub machine: PathBuf,
    /// The machine's folder: its devices' sockets are looked for here, its control socket is made here.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// An open descriptor that the console (or the serial port) talks to instead of standard input and output.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    pub console_fd: Option<RawFd>,
    /// Who makes the sandbox's namespaces: own, this process; given, the service manager that started it has. With
    /// `given` there is no launcher either, and the machine's folder is held by this process.
    #[arg(long, value_name = "own|given", default_value = "own", conflicts_with = "no_sandbox")]
    pub namespaces: Namespaces,
    /// Run without the sandbox. For debugging only.
    #[arg(long)]
    pub no_sandbox: bool,
}
