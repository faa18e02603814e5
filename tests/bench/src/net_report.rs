//! What the network bench found, as tables for people and JSON lines for programs. Ratios are those of the first backend to
//! each other one.

use std::collections::BTreeMap;

use crate::net::Run;
use crate::stats::{median, ratio};

type Runs = BTreeMap<usize, Vec<Run>>;

/// One line per backend, then one per comparison.
pub(crate) fn table(title: &str, names: &[&str], runs: &Runs) {
    println!("{title}");
    println!(
        "  {:8} {:>10} {:>7} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8}",
        "", "kpps", "spread", "Gbit/s", "CPU s/M", "kicks/f", "calls/f", "p50 us", "p99 us"
    );
    for (index, name) in names.iter().enumerate() {
        let Some(runs) = runs.get(&index) else { continue };
        let (frames, spread) = median(&field(runs, |run| run.frames));
        println!(
            "  {name:8} {:>10.1} {:>6.0}% {:>8.2} {:>8.2} {:>9.5} {:>9.5} {:>8.1} {:>8.1}",
            frames / 1e3,
            spread * 100.0,
            median(&field(runs, |run| run.gbits)).0,
            median(&field(runs, |run| run.cpu)).0,
            median(&field(runs, |run| run.kicks)).0,
            median(&field(runs, |run| run.calls)).0,
            median(&field(runs, |run| run.p50)).0,
            median(&field(runs, |run| run.p99)).0,
        );
    }
    for (index, name) in names.iter().enumerate().skip(1) {
        let (Some(ours), Some(theirs)) = (runs.get(&0), runs.get(&index)) else { continue };
        let (frames, frames_spread) = ratio(ours, theirs, |run| run.frames);
        let (cpu, cpu_spread) = ratio(ours, theirs, |run| run.cpu);
        print!(
            "  vs {name}: frames {frames:.2}x (+-{:.0}%), CPU per frame {cpu:.2}x (+-{:.0}%)",
            frames_spread * 50.0,
            cpu_spread * 50.0
        );
        if ours.iter().all(|run| run.p50 > 0.0) {
            let (p50, p50_spread) = ratio(ours, theirs, |run| run.p50);
            print!(", p50 {p50:.2}x (+-{:.0}%)", p50_spread * 50.0);
        }
        println!();
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
            "frames_per_second": value(|run| run.frames), "gbits": value(|run| run.gbits),
            "cpu_seconds_per_million": value(|run| run.cpu),
            "kicks_per_frame": value(|run| run.kicks), "calls_per_frame": value(|run| run.calls),
            "p50_us": value(|run| run.p50), "p99_us": value(|run| run.p99),
            "runs": field(runs, |run| run.frames),
        });
        println!("{line}");
    }
}

fn field(runs: &[Run], pick: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(pick).collect()
}
