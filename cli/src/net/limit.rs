//! `strata net limit`.

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strata_config::{Net, NetLimit, Rate};

use super::{NIC, PATIENCE, Target};
use crate::args::{Output, OutputArgs};
use crate::run_dir::Running;
use crate::say::print;
use crate::served::Served;

/// vhost-net's burst in milliseconds where none is given (its `--help`).
const BURST: u64 = 20;

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    target: Target,
    /// Most bits per second from the guest, such as 100M or 2.5G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    tx_rate: Option<u64>,
    /// Most frames per second from the guest, such as 20k
    #[arg(long, value_name = "RATE", value_parser = rate)]
    tx_packets: Option<u64>,
    /// Milliseconds the guest may send at full speed after a pause
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(5..=10_000))]
    tx_burst: Option<u64>,
    /// Most bits per second to the guest
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rx_rate: Option<u64>,
    /// Most frames per second to the guest
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rx_packets: Option<u64>,
    /// Milliseconds the guest may be sent to at full speed after a pause
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(5..=10_000))]
    rx_burst: Option<u64>,
    /// Remove all limits
    #[arg(long, conflicts_with_all = ["tx_rate", "tx_packets", "tx_burst", "rx_rate", "rx_packets", "rx_burst"])]
    none: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// 0 is no limit.
fn rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    text.parse::<Rate>().map(|rate| rate.0).map_err(|allowed| format!("{allowed}; or 0 for no limit"))
}

/// One direction, as `io.strata.Net` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Limit {
    bits: Option<u64>,
    packets: Option<u64>,
    burst: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Limits {
    tx: Limit,
    rx: Limit,
}

pub(super) fn run(args: &LimitArgs) -> anyhow::Result<()> {
    let nic = args.target.find()?;
    let mut now = limits(&nic)?;
    let wanted = args.change(now);
    if wanted != now {
        now = set(&nic, now, wanted)?;
    }
    let text = match args.output.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&now)?),
        Output::Text => line("from the guest", now.tx) + &line("to the guest", now.rx),
    };
    print(&text).map_err(Into::into)
}

fn limits(nic: &Served) -> anyhow::Result<Limits> {
    let mut status = nic.ask("GetStatus", Value::Null, PATIENCE)?;
    let limits = status.get_mut("limits").map(Value::take).context("the backend tells no limits")?;
    serde_json::from_value(limits).context("the backend's limits cannot be read")
}

/// Sets the directions that differ; what they are then.
fn set(nic: &Served, now: Limits, wanted: Limits) -> anyhow::Result<Limits> {
    for (direction, old, new) in [("tx", now.tx, wanted.tx), ("rx", now.rx, wanted.rx)] {
        if old != new {
            let Limit { bits, packets, burst } = new;
            let limit = json!({ "direction": direction, "bits": bits, "packets": packets, "burst": burst });
            nic.ask("SetLimit", limit, PATIENCE).context("cannot set the limit")?;
        }
    }
    limits(nic)
}

/// Sets a running NIC's limits to those of its entry; says what they are if they were others. Not for us to set: those
/// of a NIC that somebody else serves.
pub(crate) fn follow(running: &Running, net: &Net) -> anyhow::Result<Option<String>> {
    let Some(own) = net.source.own() else { return Ok(None) };
    let nic = NIC.known(running, &net.id);
    let now = limits(&nic)?;
    let wanted = Limits { tx: Limit::of(own.tx), rx: Limit::of(own.rx) };
    if wanted == now {
        return Ok(None);
    }
    let now = set(&nic, now, wanted)?;
    let text = line("from the guest", now.tx) + &line("to the guest", now.rx);
    Ok(Some(format!("{}: {}", nic.id, text.trim_end().replace('\n', "; "))))
}

impl Limit {
    /// As the machine file has it; a burst it does not name is the backend's own default.
    fn of(NetLimit { rate, packets, burst }: NetLimit) -> Self {
        let burst = burst.map_or(BURST, |burst| burst.as_millis() as u64);
        Self { bits: rate.map(|rate| rate.0), packets: packets.map(|rate| rate.0), burst }
    }
}

impl LimitArgs {
    /// What is wanted, from what is.
    fn change(&self, now: Limits) -> Limits {
        let none = |rate: Option<u64>| rate.filter(|rate| *rate > 0);
        let pick = |given: Option<u64>, now: Option<u64>| if given.is_some() { none(given) } else { now };
        if self.none {
            let burst = |limit: Limit| Limit { burst: limit.burst, ..Limit::default() };
            return Limits { tx: burst(now.tx), rx: burst(now.rx) };
        }
        let direction = |now: Limit, bits, packets, burst: Option<u64>| Limit {
            bits: pick(bits, now.bits),
            packets: pick(packets, now.packets),
            burst: burst.unwrap_or(now.burst),
        };
        Limits {
            tx: direction(now.tx, self.tx_rate, self.tx_packets, self.tx_burst),
            rx: direction(now.rx, self.rx_rate, self.rx_packets, self.rx_burst),
        }
    }
}

fn line(name: &str, limit: Limit) -> String {
    let mut parts = Vec::new();
    parts.extend(limit.bits.map(|bits| format!("{} bit/s", Rate(bits))));
    parts.extend(limit.packets.map(|packets| format!("{} frames/s", Rate(packets))));
    match parts.as_slice() {
        [] => format!("{name}: no limit\n"),
        parts => format!("{name}: {}, bursts of {} ms\n", parts.join(", "), limit.burst),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::net::NetCommand;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: NetCommand,
    }

    fn limit(words: &str) -> Result<LimitArgs, clap::Error> {
        let words = format!("strata limit web net0 {words}");
        match Line::try_parse_from(words.split_whitespace())?.command {
            NetCommand::Limit(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_limits_that_are_given_change() {
        let now = Limits { tx: Limit { bits: Some(7), packets: Some(8), burst: 20 }, ..Limits::default() };
        let change = |words| limit(words).unwrap().change(now);
        assert_eq!(change(""), now);
        assert_eq!(change("--tx-rate 0"), Limits { tx: Limit { bits: None, ..now.tx }, ..now });
        let rx = Limit { bits: Some(2_500_000_000), packets: Some(20_000), burst: 50 };
        assert_eq!(change("--rx-rate 2.5G --rx-packets 20k --rx-burst 50"), Limits { rx, ..now });
        assert_eq!(change("--none").tx, Limit { bits: None, packets: None, burst: 20 });
        for wrong in ["--none --tx-rate 1M", "--tx-rate fast", "--tx-burst 4", "--rx-packets -1"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_shown() {
        assert_eq!(line("to the guest", Limit::default()), "to the guest: no limit\n");
        let both = Limit { bits: Some(100_000_000), packets: Some(1500), burst: 20 };
        assert_eq!(line("tx", both), "tx: 100M bit/s, 1500 frames/s, bursts of 20 ms\n");
    }
}
