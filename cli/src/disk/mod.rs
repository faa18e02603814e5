//! `strata disk`: the disks of running machines, seen and changed while their guests use them.
//!
//! Talks to each disk's vhost-blk over its control socket (`io.strata.Disk`), and to nothing else: the backend tells
//! the guest. Refuses disks that somebody else's backend serves. Nothing here is written to the machine file.

mod stats;
mod words;

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strata_config::{DeviceId, Disk, DiskSource, Machine, Name, Size};

use crate::args::{Output, OutputArgs};
use crate::run_dir::Running;
use crate::say::print;
use crate::served::{Devices, Kind, Served};
pub(crate) use stats::{Format, Metrics, bytes};
pub(crate) use words::words;

/// For what is answered from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what writes to the image.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Make a disk larger while its guest runs; the guest sees it at once
    ///
    /// A file grows; a block device has to be made larger first. The file system in the guest is the guest's to grow.
    Resize {
        #[command(flatten)]
        target: Target,
        /// The new size, such as 20G; without a unit MiB
        size: Size,
    },
    /// Show a disk's limits, or change them while its guest runs
    ///
    /// Limits that are not given stay as they are; 0 removes one. They last until the backend is started again, with
    /// what the machine file says.
    Limit(LimitArgs),
    /// Show what disks are and what they have done since their backends were started
    Stats(stats::StatsArgs),
    /// Try again what has failed, for a disk that stops on errors (on_error = "stop")
    Resume {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The machine
    machine: Name,
    /// The disk: disk0, disk1, ... or its id
    disk: DeviceId,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    target: Target,
    /// Most requests per second
    #[arg(long, value_name = "N")]
    iops: Option<u64>,
    /// Requests that may come at once after a pause [0: a tenth of a second's worth]
    #[arg(long, value_name = "N")]
    iops_burst: Option<u64>,
    /// Most bytes per second, such as 100M; without a unit MiB
    #[arg(long, value_name = "SIZE")]
    bytes_per_second: Option<Size>,
    /// Bytes that may be transferred at once after a pause [0: a tenth of a second's worth]
    #[arg(long, value_name = "SIZE")]
    bytes_burst: Option<Size>,
    /// Remove all limits
    #[arg(long, conflicts_with_all = ["iops", "iops_burst", "bytes_per_second", "bytes_burst"])]
    none: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: &DiskCommand) -> anyhow::Result<()> {
    match command {
        DiskCommand::Resize { target, size } => resize(target, *size),
        DiskCommand::Limit(args) => limit(args),
        DiskCommand::Stats(args) => stats::run(args),
        DiskCommand::Resume { target } => {
            target.find()?.ask("Resume", Value::Null, PATIENCE).map(drop).context("cannot resume")
        }
    }
}

/// Ours answer to `io.strata.Disk`.
const DISK: Kind = Kind { word: "disk", interface: "io.strata.Disk", devices };

fn devices(machine: &Machine) -> Devices<'_> {
    machine.disks.iter().map(|disk| (&disk.id, disk.source.foreign())).collect()
}

impl Target {
    fn find(&self) -> anyhow::Result<Served> {
        DISK.find(&self.machine, &self.disk)
    }
}

fn rates(disk: &Served) -> anyhow::Result<Rates> {
    let mut status = disk.ask("GetStatus", Value::Null, PATIENCE)?;
    let rates = status.get_mut("rates").map(Value::take).context("the backend tells no limits")?;
    serde_json::from_value(rates).context("the backend's limits cannot be read")
}

/// Sets them; what they are then.
fn set_rates(disk: &Served, wanted: Rates) -> anyhow::Result<Rates> {
    disk.ask("SetRates", json!({ "rates": wanted }), PATIENCE).context("cannot set the limits")?;
    rates(disk)
}

/// Sets a running disk's limits to those of its entry; says what they are if they were others. Not for us to set: those
/// of a disk that somebody else serves. The backend alone knows which burst follows from a rate, so it is the one that
/// leaves limits alone that are so already.
pub(crate) fn follow(running: &Running, disk: &Disk) -> anyhow::Result<Option<String>> {
    let DiskSource::File { serving, .. } = &disk.source else { return Ok(None) };
    let wanted = Rates {
        iops: serving.iops.unwrap_or_default(),
        iops_burst: serving.iops_burst.unwrap_or_default(),
        bytes_per_second: serving.bytes_per_second.unwrap_or_default(),
        bytes_burst: serving.bytes_burst.unwrap_or_default(),
    };
    let served = DISK.known(running, &disk.id);
    let before = rates(&served)?;
    let now = set_rates(&served, wanted)?;
    Ok((now != before).then(|| format!("{}: {}", served.id, now.text().trim_end().replace('\n', "; "))))
}

fn resize(target: &Target, size: Size) -> anyhow::Result<()> {
    let disk = target.find()?;
    disk.ask("Resize", json!({ "bytes": size.0 }), LONG_PATIENCE).context("cannot resize")?;
    print(&format!("{} of {} has {size} now\n", disk.id, disk.machine)).map_err(Into::into)
}

/// As `io.strata.Disk` has them: 0 is no limit, or the default for a burst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Rates {
    iops: u64,
    iops_burst: u64,
    bytes_per_second: u64,
    bytes_burst: u64,
}

impl LimitArgs {
    /// What is wanted, from what is; `None`: nothing was asked for.
    fn change(&self, now: Rates) -> anyhow::Result<Option<Rates>> {
        if self.none {
            return Ok(Some(Rates::default()));
        }
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        let pick = |rate: Option<u64>, burst: Option<u64>, (old_rate, old_burst): (u64, u64)| {
            let rate_now = rate.unwrap_or(old_rate);
            // A new rate has a new default burst.
            (rate_now, burst.unwrap_or(if rate.is_none() { old_burst } else { 0 }))
        };
        let (iops, iops_burst) = pick(self.iops, self.iops_burst, (now.iops, now.iops_burst));
        let (bytes_per_second, bytes_burst) = pick(
            bytes(self.bytes_per_second),
            bytes(self.bytes_burst),
            (now.bytes_per_second, now.bytes_burst),
        );
        let wanted = Rates { iops, iops_burst, bytes_per_second, bytes_burst };
        for (rate, burst, names) in [
            (iops, self.iops_burst, ["--iops-burst", "--iops"]),
            (bytes_per_second, bytes(self.bytes_burst), ["--bytes-burst", "--bytes-per-second"]),
        ] {
            if rate == 0 && burst.is_some_and(|burst| burst > 0) {
                anyhow::bail!("{} is nothing without {}; give that too", names[0], names[1]);
            }
        }
        let given = [self.iops, self.iops_burst, bytes(self.bytes_per_second), bytes(self.bytes_burst)];
        Ok(given.iter().any(Option::is_some).then_some(wanted))
    }
}

fn limit(args: &LimitArgs) -> anyhow::Result<()> {
    let disk = args.target.find()?;
    let mut now = rates(&disk)?;
    if let Some(wanted) = args.change(now)? {
        now = set_rates(&disk, wanted)?;
    }
    let text = match args.output.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&now)?),
        Output::Text => now.text(),
    };
    print(&text).map_err(Into::into)
}

impl Rates {
    fn text(&self) -> String {
        let line = |name: &str, rate: u64, burst: u64, show: fn(u64) -> String| match rate {
            0 => format!("{name}: no limit\n"),
            _ => format!("{name}: {} per second, bursts of {}\n", show(rate), show(burst)),
        };
        line("requests", self.iops, self.iops_burst, |count| count.to_string())
            + &line("bytes", self.bytes_per_second, self.bytes_burst, stats::bytes)
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod disk_test;
