//! `strata net`: the NICs of running machines, seen and changed while their guests use them.
//!
//! Talks to each NIC's vhost-net over its control socket (`io.strata.Net`), and to nothing else: the backend tells the
//! guest. Refuses NICs that somebody else's backend serves. Nothing here is written to the machine file.

mod capture;
mod limit;
mod stats;

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use strata_config::{DeviceId, Machine, Name};

use crate::served::{Devices, Kind, Served};
pub(crate) use limit::follow;

/// Everything is answered from memory.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Plug a NIC's cable in or out; the guest sees it at once
    Link {
        #[command(flatten)]
        target: Target,
        /// In or out
        #[arg(value_enum)]
        state: Link,
    },
    /// Show what NICs are and what they have done since their backends were started
    Stats(stats::StatsArgs),
    /// Show a NIC's rate limits, or change them while its guest runs
    ///
    /// Limits that are not given stay as they are; 0 removes one. They last until the backend is started again, with
    /// what the machine file says.
    Limit(limit::LimitArgs),
    /// Copy a NIC's frames to a file or a pipe, as pcapng, until Ctrl-C
    ///
    /// The guest does not wait for it: frames there is no room for are missing, and counted. Frames may be larger than
    /// the MTU, and their checksums wrong, where the guest leaves cutting and summing to the host.
    ///
    /// Live: strata net capture web net0 | tshark -r -
    #[command(verbatim_doc_comment)]
    Capture(capture::CaptureArgs),
    /// Have a guest announce its addresses to the switches on the way, as after a move of its cable
    Announce {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    Up,
    Down,
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The machine
    machine: Name,
    /// The NIC: net0, net1, ... or its id
    nic: DeviceId,
}

pub(crate) fn run(command: &NetCommand) -> anyhow::Result<()> {
    match command {
        NetCommand::Link { target, state } => {
            let up = json!({ "up": *state == Link::Up });
            target.find()?.ask("SetLink", up, PATIENCE).map(drop).context("cannot change the link")
        }
        NetCommand::Stats(args) => stats::run(args),
        NetCommand::Limit(args) => limit::run(args),
        NetCommand::Capture(args) => capture::run(args),
        NetCommand::Announce { target } => target
            .find()?
            .ask("Announce", Value::Null, PATIENCE)
            .map(drop)
            .context("cannot ask for an announcement"),
    }
}

/// Ours answer to `io.strata.Net`.
const NIC: Kind = Kind { word: "NIC", interface: "io.strata.Net", devices };

fn devices(machine: &Machine) -> Devices<'_> {
    machine.nets.iter().map(|net| (&net.id, net.source.foreign())).collect()
}

impl Target {
    fn find(&self) -> anyhow::Result<Served> {
        NIC.find(&self.machine, &self.nic)
    }
}
