//! `strata disk stats`: what disks are and have done, as a table, as JSON, or as Prometheus text.
//!
//! The JSON is a promise: keys are added, never renamed or taken away.

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strata_config::{DeviceId, Name};

use super::{DISK, PATIENCE};
use crate::list::table;
use crate::say::{print, say};

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// The machine [default: all that run]
    machine: Option<Name>,
    /// The disk [default: all of the machine]
    disk: Option<DeviceId>,
    /// For people, for programs, or for a Prometheus server (text format 0.0.4)
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
    Prometheus,
}

/// One disk.
#[derive(Debug, Serialize)]
struct Shown {
    machine: String,
    id: String,
    /// Null, like `queues`, when the backend does not answer: it may be about to be started again.
    status: Option<Value>,
    queues: Option<Value>,
}

/// Of a queue, as `io.strata.Disk` has it: what the table shows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Queue {
    queue: u64,
    reads: u64,
    writes: u64,
    flushes: u64,
    discards: u64,
    write_zeroes: u64,
    read_bytes: u64,
    written_bytes: u64,
    failed: u64,
    kicks: u64,
    calls: u64,
    poll_hits: u64,
    poll_misses: u64,
    latency_buckets: Vec<u64>,
}

pub(super) fn run(args: &StatsArgs) -> anyhow::Result<()> {
    let disks = DISK.chosen(args.machine.as_ref(), args.disk.as_ref())?;
    // One that is named has to answer; of all, those that do not are told.
    let strict = args.disk.is_some();
    let told = |result: anyhow::Result<Value>| match result {
        Err(error) if !strict => {
            say(format_args!("strata: {error:#}"));
            Ok(None)
        }
        result => result.map(Some),
    };
    if let Format::Prometheus = args.output {
        let mut metrics = Metrics::default();
        for disk in &disks {
            if let Some(answer) = told(disk.ask("GetMetrics", Value::Null, PATIENCE))? {
                let text =
                    answer.get("text").and_then(Value::as_str).context("the backend tells no metrics")?;
                metrics.add(&disk.machine, &disk.id, text);
            }
        }
        return print(&metrics.text()).map_err(Into::into);
    }
    let mut shown = Vec::new();
    for disk in disks {
        let status = told(disk.ask("GetStatus", Value::Null, PATIENCE))?;
        let queues = match &status {
            Some(_) => told(disk.ask("GetStatistics", Value::Null, PATIENCE))?,
            None => None,
        };
        let queues = queues.and_then(|mut answer| answer.get_mut("queues").map(Value::take));
        shown.push(Shown { machine: disk.machine, id: disk.id, status, queues });
    }
    match args.output {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&shown)?))?,
        _ => print(&text(&shown)?)?,
    }
    Ok(())
}

fn text(shown: &[Shown]) -> anyhow::Result<String> {
    let mut text = String::new();
    for disk in shown {
        let (Some(status), Some(queues)) = (&disk.status, &disk.queues) else { continue };
        text.push_str(&format!("{} of {}: {}\n", disk.id, disk.machine, words(status)));
        let queues: Vec<Queue> =
            serde_json::from_value(queues.clone()).context("the backend's statistics cannot be read")?;
        let header = [
            "QUEUE", "READS", "WRITES", "FLUSHES", "OTHER", "READ", "WRITTEN", "FAILED", "KICKS", "CALLS",
            "POLLS", "P50", "P99",
        ];
        let rows: Vec<_> = std::iter::once(header.map(str::to_owned)).chain(queues.iter().map(row)).collect();
        text.push_str(&table(&rows));
    }
    Ok(text)
}

/// A disk's status in one line.
fn words(status: &Value) -> String {
    let of = |key: &str| status.get(key).cloned().unwrap_or_default();
    let is = |key: &str| of(key).as_bool().unwrap_or(false);
    let mut words = vec![
        of("path").as_str().unwrap_or("?").to_owned(),
        of("format").as_str().unwrap_or("?").to_owned(),
        bytes(of("bytes").as_u64().unwrap_or(0)),
        if is("direct") { "direct I/O" } else { "page cache" }.to_owned(),
    ];
    words.extend(is("read_only").then(|| "read-only".to_owned()));
    words.extend(is("write_through").then(|| "write-through".to_owned()));
    words.extend(is("halted").then(|| "STOPPED by an error (`strata disk resume`)".to_owned()));
    words.join(", ")
}

fn row(queue: &Queue) -> [String; 13] {
    let polls = queue.poll_hits + queue.poll_misses;
    let percentile = |part| percentile(&queue.latency_buckets, part);
    [
        queue.queue.to_string(),
        queue.reads.to_string(),
        queue.writes.to_string(),
        queue.flushes.to_string(),
        (queue.discards + queue.write_zeroes).to_string(),
        bytes(queue.read_bytes),
        bytes(queue.written_bytes),
        queue.failed.to_string(),
        queue.kicks.to_string(),
        queue.calls.to_string(),
        (queue.poll_hits * 100).checked_div(polls).map_or("-".to_owned(), |hits| format!("{hits}%")),
        percentile(0.50),
        percentile(0.99),
    ]
}

/// The bound of the bucket in which this part of all requests is complete. Bucket n ends at 2^n microseconds, the
/// last one nowhere.
fn percentile(buckets: &[u64], part: f64) -> String {
    let wanted = (buckets.iter().sum::<u64>() as f64 * part).ceil() as u64;
    let mut seen = 0;
    for (index, count) in buckets.iter().enumerate() {
        seen += count;
        if wanted > 0 && seen >= wanted {
            let last = index + 1 == buckets.len();
            let bound = 1u64.checked_shl(index.saturating_sub(usize::from(last)) as u32).unwrap_or(u64::MAX);
            let sign = if last { ">" } else { "<=" };
            return match bound {
                0..10_000 => format!("{sign}{bound}us"),
                _ => format!("{sign}{}ms", bound / 1000),
            };
        }
    }
    "-".to_owned()
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if count >= 1 << shift {
            return format!("{:.1} {unit}", count as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{count} B")
}

/// The texts of several backends as one: each family once, each series with its machine and disk id.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// In order: a family's comments, and its series.
    families: Vec<(String, Vec<String>, Vec<String>)>,
}

impl Metrics {
    pub(crate) fn add(&mut self, machine: &str, id: &str, text: &str) {
        let mut family = 0;
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let name = comment.split(' ').nth(1).unwrap_or_default();
                family = self.family(name);
                if let Some((_, comments, series)) = self.families.get_mut(family)
                    && series.is_empty()
                {
                    comments.push(line.to_owned());
                }
            } else if let Some((_, _, series)) = self.families.get_mut(family) {
                // Names and ids have no character that would have to be escaped.
                let labels = format!("{{machine=\"{machine}\",id=\"{id}\",");
                series.push(line.replacen('{', &labels, 1));
            }
        }
    }

    fn family(&mut self, name: &str) -> usize {
        self.families.iter().position(|(known, _, _)| known == name).unwrap_or_else(|| {
            self.families.push((name.to_owned(), Vec::new(), Vec::new()));
            self.families.len() - 1
        })
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.families.iter().flat_map(|(_, comments, series)| comments.iter().chain(series));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_of_several_disks_are_told_once() {
        let text = |count| {
            format!(
                "# HELP a_total Of a.\n# TYPE a_total counter\na_total{{disk=\"/x\",queue=\"0\"}} {count}\n\
                 # HELP b Of b.\n# TYPE b counter\nb{{disk=\"/x\",queue=\"0\"}} 0\n"
            )
        };
        let mut metrics = Metrics::default();
        metrics.add("web", "disk0", &text(1));
        metrics.add("web", "disk1", &text(2));
        let expected = "# HELP a_total Of a.\n# TYPE a_total counter\n\
            a_total{machine=\"web\",id=\"disk0\",disk=\"/x\",queue=\"0\"} 1\n\
            a_total{machine=\"web\",id=\"disk1\",disk=\"/x\",queue=\"0\"} 2\n\
            # HELP b Of b.\n# TYPE b counter\n\
            b{machine=\"web\",id=\"disk0\",disk=\"/x\",queue=\"0\"} 0\n\
            b{machine=\"web\",id=\"disk1\",disk=\"/x\",queue=\"0\"} 0\n";
        assert_eq!(metrics.text(), expected);
    }

    #[test]
    fn percentiles_are_the_bounds_of_their_buckets() {
        let mut buckets = vec![0; 25];
        assert_eq!(percentile(&buckets, 0.5), "-");
        buckets[2] = 98;
        buckets[15] = 2;
        assert_eq!(
            (percentile(&buckets, 0.5), percentile(&buckets, 0.99)),
            ("<=4us".into(), "<=32ms".into())
        );
        buckets[24] = 100;
        assert_eq!(percentile(&buckets, 0.99), ">8388ms");
    }

    #[test]
    fn a_disk_is_shown_in_a_line_and_a_table() {
        let shown = Shown {
            machine: "web".into(),
            id: "root".into(),
            status: Some(
                json!({"path": "/img", "format": "raw", "bytes": 1 << 30, "direct": true, "halted": true}),
            ),
            queues: Some(
                json!([{"queue": 0, "reads": 5, "read_bytes": 20480, "poll_hits": 3, "poll_misses": 1,
                "latency_buckets": [0, 5, 0]}]),
            ),
        };
        let text = text(&[shown]).unwrap();
        let mut lines = text.lines();
        let first = "root of web: /img, raw, 1.0 GiB, direct I/O, STOPPED by an error (`strata disk resume`)";
        assert_eq!(lines.next(), Some(first));
        assert!(lines.next().unwrap().starts_with("QUEUE  READS"));
        let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            ["0", "5", "0", "0", "0", "20.0", "KiB", "0", "B", "0", "0", "0", "75%", "<=2us", "<=2us"]
        );
    }
}
