//! `strata switch`: switches in user space, each a sandboxed process that joins guests without a kernel bridge.

mod folder;
mod plan;
mod show;
mod supervise;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use strata_config::{ConfigError, Name, Switch, SwitchFile};

use crate::args::OutputArgs;
use crate::run_dir::base;

pub(crate) use folder::is_ready;
pub(crate) use show::port_of;

/// Where switches have their files that are started by name.
const FILES: &str = "/etc/strata/switches";

#[derive(Debug, Subcommand)]
pub(crate) enum SwitchCommand {
    /// Start a switch and stay until it is told to end; machines find it by its name
    ///
    /// A machine's NIC is plugged in with `[[net]] switch = "NAME", port = "PORT"`. A switch that dies is started
    /// again, and its guests go on.
    Run {
        /// Its file, TOML or JSON, or the name of one in /etc/strata/switches
        #[arg(value_name = "FILE|NAME")]
        file: PathBuf,
    },
    /// List the running switches
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a switch's ports, their counters, and where it has seen which address
    Show {
        /// The switch
        name: Name,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Plug a port's cable in or out; the guest sees its link go up or down
    Link {
        /// The switch
        name: Name,
        /// The port
        port: Name,
        /// Which
        link: Link,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    Up,
    Down,
}

/// The switch in a file.
///
/// # Errors
/// What is wrong with it, for exit status 2.
pub(crate) fn read(file: &Path) -> Result<Switch, ConfigError> {
    let named = file.to_str().filter(|name| name.parse::<Name>().is_ok()).filter(|_| !file.exists());
    match named.map(|name| Path::new(FILES).join(format!("{name}.toml"))) {
        Some(path) => SwitchFile::from_file(&path)?.try_into(),
        None => SwitchFile::from_file(file)?.try_into(),
    }
}

/// Does what was asked; `Run` is done with the switch that [`read`] gave.
pub(crate) fn run(switch: &Switch) -> anyhow::Result<()> {
    let folder = folder::create(&base(), &switch.name)?;
    let program = plan::program(switch, folder.path())?;
    // Only now: whoever finds it finds the sockets, too.
    let written = folder.path().join(folder::FILE);
    std::fs::write(&written, serde_json::to_vec_pretty(switch)?)
        .with_context(|| format!("cannot write {}", written.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(supervise::run(&folder, program));
    drop(folder);
    folder::remove_if_last(&base());
    Ok(ended?)
}

/// The commands about running switches.
pub(crate) fn about(command: &SwitchCommand) -> anyhow::Result<()> {
    match command {
        SwitchCommand::Run { file } => run(&read(file)?),
        SwitchCommand::Ls { output } => show::ls(output.output),
        SwitchCommand::Show { name, output } => show::show(name, output.output),
        SwitchCommand::Link { name, port, link } => show::link(name, port, *link == Link::Up),
    }
}
