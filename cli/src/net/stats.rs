//! `strata net stats`: what NICs are and have done, as a table, as JSON, or as Prometheus text.
//!
//! The JSON is a promise: keys are added, never renamed or taken away.

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use strata_config::{DeviceId, Name};

use super::{NIC, PATIENCE};
use crate::disk::{Format, Metrics, bytes};
use crate::list::table;
use crate::say::{print, say};

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// The machine [default: all that run]
    machine: Option<Name>,
    /// The NIC [default: all of the machine]
    nic: Option<DeviceId>,
    /// For people, for programs, or for a Prometheus server (text format 0.0.4)
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// One NIC.
#[derive(Debug, Serialize)]
struct Shown {
    machine: String,
    id: String,
    /// Null, like `pairs`, when the backend does not answer: it may be about to be started again.
    status: Option<Value>,
    pairs: Option<Value>,
}

pub(super) fn run(args: &StatsArgs) -> anyhow::Result<()> {
    let nics = NIC.chosen(args.machine.as_ref(), args.nic.as_ref())?;
    // One that is named has to answer; of all, those that do not are told.
    let told = |result: anyhow::Result<Value>| match result {
        Err(error) if args.nic.is_none() => {
            say(format_args!("strata: {error:#}"));
            Ok(None)
        }
        result => result.map(Some),
    };
    if let Format::Prometheus = args.output {
        let mut metrics = Metrics::default();
        for nic in &nics {
            if let Some(answer) = told(nic.ask("GetMetrics", Value::Null, PATIENCE))? {
                let text = answer.get("text").and_then(Value::as_str);
                metrics.add(&nic.machine, &nic.id, text.context("the backend tells no metrics")?);
            }
        }
        return print(&metrics.text()).map_err(Into::into);
    }
    let mut shown = Vec::new();
    for nic in nics {
        let status = told(nic.ask("GetStatus", Value::Null, PATIENCE))?;
        let pairs = match &status {
            Some(_) => told(nic.ask("GetStatistics", Value::Null, PATIENCE))?,
            None => None,
        };
        let pairs = pairs.and_then(|mut answer| answer.get_mut("pairs").map(Value::take));
        shown.push(Shown { machine: nic.machine, id: nic.id, status, pairs });
    }
    match args.output {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&shown)?))?,
        _ => print(&text(&shown))?,
    }
    Ok(())
}

fn text(shown: &[Shown]) -> String {
    let mut text = String::new();
    for nic in shown {
        let (Some(status), Some(pairs)) = (&nic.status, &nic.pairs) else { continue };
        text.push_str(&format!("{} of {}: {}\n", nic.id, nic.machine, words(status)));
        let header = ["PAIR", "", "FRAMES", "BYTES", "DROPPED", "KICKS", "CALLS", "POLLS"].map(str::to_owned);
        let pairs = pairs.as_array().into_iter().flatten().filter_map(Value::as_object);
        let rows: Vec<_> = std::iter::once(header)
            .chain(pairs.clone().flat_map(|pair| [row(pair, "tx"), row(pair, "rx")]))
            .collect();
        text.push_str(&table(&rows));
        for (cause, count) in drops(pairs) {
            text.push_str(&format!("  {cause}: {count}\n"));
        }
    }
    text
}

/// A NIC's status in one line.
fn words(status: &Value) -> String {
    let of = |key: &str| status.get(key).cloned().unwrap_or_default();
    let text = |key: &str| of(key).as_str().unwrap_or("?").to_owned();
    let link = if of("link").as_bool().unwrap_or(false) { "link up" } else { "LINK DOWN" };
    let mut words = vec![text("tap"), text("mac"), link.to_owned(), format!("MTU {}", of("mtu"))];
    words.push(format!("{} of {} pairs in use", of("active_pairs"), of("pairs")));
    if of("tap_present").as_bool() == Some(false) {
        words.push("the interface IS GONE".to_owned());
    }
    words.join(", ")
}

fn count(pair: &Map<String, Value>, name: &str) -> u64 {
    pair.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn row(pair: &Map<String, Value>, way: &str) -> [String; 8] {
    let of = |name: &str| count(pair, &format!("{way}_{name}"));
    let dropped: u64 =
        pair.keys().filter(|key| key.starts_with(&format!("{way}_drop_"))).map(|key| count(pair, key)).sum();
    let (hits, misses) = (count(pair, "poll_hits"), count(pair, "poll_misses"));
    let polls = (hits * 100).checked_div(hits + misses).map_or("-".to_owned(), |hits| format!("{hits}%"));
    [
        count(pair, "pair").to_string(),
        way.to_owned(),
        of("frames").to_string(),
        bytes(of("bytes")),
        dropped.to_string(),
        of("kicks").to_string(),
        of("calls").to_string(),
        polls,
    ]
}

/// What frames were dropped for, and how often sending had to wait, over all pairs; only what happened.
fn drops<'a>(pairs: impl Iterator<Item = &'a Map<String, Value>>) -> Vec<(String, u64)> {
    let mut causes: Vec<(String, u64)> = Vec::new();
    for (name, value) in pairs.flatten() {
        let told = name.contains("_drop_") || name.ends_with("_throttled") || name.ends_with("_malformed");
        let Some(value) = value.as_u64().filter(|value| told && *value > 0) else { continue };
        match causes.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => causes.push((name.clone(), value)),
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_nic_is_told_in_a_few_lines() {
        let status = json!({"tap": "tap0", "mac": "02:00:00:00:00:01", "link": false, "mtu": 1500, "pairs": 2,
            "active_pairs": 1, "tap_present": true});
        let pair = json!({"pair": 0, "tx_frames": 7, "tx_bytes": 2048, "tx_drop_link": 2, "tx_drop_guard_ip": 3,
            "tx_calls": 1, "rx_throttled": 4, "rx_frames": 1, "poll_hits": 1, "poll_misses": 3});
        let shown = Shown {
            machine: "web".to_owned(),
            id: "net0".to_owned(),
            status: Some(status),
            pairs: Some(json!([pair])),
        };
        let text = text(&[shown]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(
            text.starts_with(
                "net0 of web: tap0, 02:00:00:00:00:01, LINK DOWN, MTU 1500, 1 of 2 pairs in use\n"
            )
        );
        assert_eq!(words[2], ["0", "tx", "7", "2.0", "KiB", "5", "0", "1", "25%"]);
        assert_eq!(words[3][..3], ["0", "rx", "1"]);
        assert!(text.contains("  tx_drop_guard_ip: 3\n") && text.contains("  rx_throttled: 4\n"), "{text}");
    }
}
