//! The exit bench: what a boot, an idle second and each kind of I/O cost a guest in exits, by reason.
//!
//! Where `/dev/kvm` has hardware behind it, or in the rig; `cargo xtask bench exits` sees to that. The same
//! measurements as the gates of `tests/cases/budget.rs`, with more operations and all settings.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use strata_rig::Place;
use strata_tests::exits::Exits;
use strata_tests::measure::{self, Amount, Setting};
use strata_tests::programs::Programs;
use strata_tests::{Context, net};

/// What to count.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these: boot, event, default, polling, queues
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Reads of each disk load; depth 32 does four times as many
    #[arg(long, default_value_t = 2000)]
    requests: u32,
    /// Packets of each network load; streams have a MiB for each hundred
    #[arg(long, default_value_t = 5000)]
    packets: u32,
    /// Seconds to watch an idle guest
    #[arg(long, default_value_t = 15)]
    idle: u64,
    /// Also print what the exits of a boot were about: leaves, registers, pages
    #[arg(long)]
    detail: bool,
    /// Also write everything to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| what.contains(only.as_str()))
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    net::own_namespace()?;
    let place = Place::of_this_clone();
    let dir = tempfile::Builder::new().prefix("strata-exits-").tempdir()?;
    let context = Context::new(&place, &Programs::beside_us()?, dir.path())?;
    let amount = Amount {
        requests: options.requests,
        packets: options.packets,
        idle: Duration::from_secs(options.idle),
    };
    println!("one vCPU, 512 MiB, a 64 MiB raw disk, a NIC; host interrupts are left out\n");
    let mut report = serde_json::Map::new();
    if options.wants("boot") {
        for (what, flags) in [("boot", [].as_slice()), ("boot, prefault", &["--prefault"])] {
            let boot = measure::boot(&context, flags, options.detail && flags.is_empty())?;
            println!("{what}, to the first line of init: {}", boot.to_init.line());
            println!("{what}, to disk and NIC in use: {}\n", boot.to_devices.line());
            report.insert(what.to_owned(), serde_json::to_value(&boot)?);
        }
    }
    for setting in Setting::ALL.into_iter().filter(|setting| options.wants(setting.name())) {
        let measured = measure::loads(&context, setting, amount)?;
        println!(
            "{}:\n  {:18} {:>9}  {:>10}  by reason, for each",
            setting.name(),
            "",
            "exits",
            "user space"
        );
        for one in &measured {
            println!(
                "  {:18} {:>9.3}  {:>10.4}  {}",
                format!("{} ({})", one.load, one.unit),
                one.each(),
                one.user_each(),
                reasons(&one.exits, one.operations)
            );
        }
        println!();
        let each = |one: &measure::Measured| {
            let mut value = json!(one);
            if let Some(object) = value.as_object_mut() {
                object.insert("exits_each".to_owned(), json!(one.each()));
            }
            value
        };
        report.insert(setting.name().to_owned(), measured.iter().map(each).collect());
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn reasons(exits: &Exits, operations: f64) -> String {
    let each = exits.by_reason().into_iter().map(|(name, count)| (name, count as f64 / operations));
    let shown: Vec<String> =
        each.filter(|(_, each)| *each >= 0.0005).map(|(name, each)| format!("{name} {each:.3}")).collect();
    shown.join(", ")
}
