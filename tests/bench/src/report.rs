//! Tables for people, JSON lines for programs. Ratios are those of the first backend to each other one.

use std::collections::BTreeMap;

use crate::blk::Run;
use crate::stats::{median, ratio};

type Runs = BTreeMap<usize, Vec<Run>>;

/// One line per backend, then one per comparison.
pub(crate) fn table(title: &str, names: &[&str], runs: &Runs) {
    println!("{title}");
    println!(
        "  {:10} {:>12} {:>7} {:>9} {:>8} {:>8} {:>9} {:>9}",
        "", "IOPS", "spread", "CPU s/M", "p50 us", "p99 us", "kicks/IO", "calls/IO"
    );
    for (index, name) in names.iter().enumerate() {
        let Some(runs) = runs.get(&index) else { continue };
        let (iops, spread) = median(&field(runs, |run| run.iops));
        println!(
            "  {name:10} {iops:>12.0} {:>6.0}% {:>9.2} {:>8.1} {:>8.1} {:>9.4} {:>9.4}",
            spread * 100.0,
            median(&field(runs, |run| run.cpu)).0,
            median(&field(runs, |run| run.p50)).0,
            median(&field(runs, |run| run.p99)).0,
            median(&field(runs, |run| run.kicks)).0,
            median(&field(runs, |run| run.calls)).0,
        );
    }
    for (index, name) in names.iter().enumerate().skip(1) {
        let (Some(ours), Some(theirs)) = (runs.get(&0), runs.get(&index)) else { continue };
        let (iops, iops_spread) = ratio(ours, theirs, |run| run.iops);
        let (cpu, cpu_spread) = ratio(ours, theirs, |run| run.cpu);
        println!(
            "  vs {name:9} IOPS {iops:.2}x (+-{:.0}%), CPU per I/O {cpu:.2}x (+-{:.0}%)",
            iops_spread * 50.0,
            cpu_spread * 50.0
        );
    }
    println!();
}

/// One object per backend.
pub(crate) fn json(title: &str, names: &[&str], runs: &Runs) {
    for (index, name) in names.iter().enumerate() {
        let Some(runs) = runs.get(&index) else { continue };
        let value = |pick: fn(&Run) -> f64| median(&field(runs, pick)).0;
        let line = serde_json::json!({
            "load": title, "backend": name,
            "iops": value(|run| run.iops), "cpu_seconds_per_million": value(|run| run.cpu),
            "p50_us": value(|run| run.p50), "p99_us": value(|run| run.p99),
            "kicks_per_io": value(|run| run.kicks), "calls_per_io": value(|run| run.calls),
            "runs": field(runs, |run| run.iops),
        });
        println!("{line}");
    }
}

fn field(runs: &[Run], pick: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(pick).collect()
}
