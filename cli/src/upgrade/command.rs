//! The command's own side: asks the launcher and shows what became of it.

use anyhow::{Context, bail};
use serde_json::json;
use strata_config::{DeviceId, Name};

use super::{Outcome, Report};
use crate::args::{Output, OutputArgs};
use crate::backend;
use crate::control;
use crate::launcher::{self, PATIENCE};
use crate::list::table;
use crate::say::print;

const HELP: &str = "\
A backend is told to finish what it holds and to end; the installed version takes
its place, and the guest's requests wait that long. A version that offers less than
the running one, or that the vmm refuses, is not kept: the old one runs again.
The vmm itself keeps its version until the machine is started again.

Exit status: 0 all run the installed version, 1 a backend was kept as it was.";

/// What to replace.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct UpgradeArgs {
    /// The machine
    name: Name,
    /// Only this device's backend [default: all the launcher runs]
    device: Option<DeviceId>,
    /// Replace a backend also where the installed version runs already
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks, waits, and prints.
pub(crate) fn run(args: &UpgradeArgs) -> anyhow::Result<()> {
    let name = &args.name;
    let running = control::find(name)?;
    let Some(socket) = launcher::find(&running.path) else {
        bail!(
            "{name} has no launcher that could replace its backends; under systemd: \
             `systemctl restart vhost-blk@{name}-DEVICE` or `vhost-net@{name}-DEVICE`"
        );
    };
    let parameters = json!({ "device": args.device.as_ref().map(ToString::to_string), "again": args.again });
    let answer = backend::call(&socket, "io.strata.Launcher.Upgrade", parameters, PATIENCE)
        .with_context(|| format!("cannot upgrade {name}"))?;
    let devices = answer.get("devices").cloned().unwrap_or_default();
    let reports: Vec<Report> =
        serde_json::from_value(devices).context("the launcher's answer makes no sense")?;
    match args.output.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&reports)?))?,
        Output::Text => print(&text(&reports))?,
    }
    let kept = |report: &&Report| report.outcome == Outcome::Kept;
    let kept: Vec<&str> = reports.iter().filter(kept).map(|report| report.device.as_str()).collect();
    if !kept.is_empty() {
        bail!("not replaced: {}", kept.join(", "));
    }
    Ok(())
}

fn text(reports: &[Report]) -> String {
    let header = ["DEVICE", "OUTCOME", "FROM", "TO", "DRAINED", "STALLED", "REASON"].map(str::to_owned);
    let time =
        |milliseconds: Option<f64>| milliseconds.map_or("-".to_owned(), |time| format!("{time:.1} ms"));
    let row = |report: &Report| {
        let outcome = match report.outcome {
            Outcome::Replaced => "replaced",
            Outcome::Current => "current",
            Outcome::Kept => "kept",
        };
        [
            report.device.clone(),
            outcome.to_owned(),
            report.from.clone(),
            report.to.clone(),
            time(report.drain_milliseconds),
            time(report.stall_milliseconds),
            report.reason.clone().unwrap_or_default(),
        ]
    };
    table(&std::iter::once(header).chain(reports.iter().map(row)).collect::<Vec<_>>())
}
