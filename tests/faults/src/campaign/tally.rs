//! What a campaign did and saw.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use strata_faults::Report;

/// Sums over all rounds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) seed: u64,
    pub(crate) rounds: u64,
    pub(crate) seconds: u64,
    /// Faults by kind.
    pub(crate) struck: BTreeMap<String, u64>,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    /// Answered with an error, as full disks are, and done again.
    pub(crate) errors: u64,
    pub(crate) compared: u64,
    pub(crate) stream_bytes: u64,
    pub(crate) frames: u64,
    pub(crate) losses: u64,
    pub(crate) resets: u64,
    /// Pauses that the load saw, microseconds.
    gaps: Vec<u64>,
    /// How long `strata upgrade` says that a backend was gone, milliseconds.
    pub(crate) upgrade_stalls: Vec<f64>,
    /// From the stop of a process that hangs to its successor's first answer, milliseconds.
    pub(crate) hang_recoveries: Vec<f64>,
}

impl Tally {
    pub(crate) fn count(&mut self, fault: &str) {
        *self.struck.entry(fault.to_owned()).or_default() += 1;
    }

    /// How many there were.
    pub(crate) fn faults(&self) -> u64 {
        self.struck.values().sum()
    }

    pub(crate) fn add(&mut self, report: Report) {
        for disk in report.disks {
            self.reads += disk.reads;
            self.writes += disk.writes;
            self.flushes += disk.flushes;
            self.errors += disk.errors;
            self.compared += disk.compared;
            self.losses += disk.losses;
            self.resets += disk.resets;
            self.gaps.extend(disk.gaps);
        }
        for nic in report.nics {
            self.frames += nic.sent + nic.received;
            self.losses += nic.losses;
            self.resets += nic.resets;
        }
    }
}

/// Count, median, 90th, 99th percentile and largest of some numbers.
fn spread(numbers: &[f64]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    };
    let (count, least, median, most) = (sorted.len(), at(0.0), at(0.5), at(1.0));
    format!(
        "{count}: least {least:.1}, median {median:.1}, p90 {:.1}, p99 {:.1}, most {most:.1}",
        at(0.9),
        at(0.99)
    )
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} rounds, {} s", self.seed, self.rounds, self.seconds)?;
        for (fault, count) in &self.struck {
            writeln!(f, "  {fault}: {count}")?;
        }
        writeln!(
            f,
            "disks: {} reads, {} writes, {} flushes answered; {} errors, made again; {} blocks compared",
            self.reads, self.writes, self.flushes, self.errors, self.compared
        )?;
        writeln!(f, "streams: {} MiB compared in {} frames", self.stream_bytes >> 20, self.frames)?;
        writeln!(
            f,
            "backends lost {} times, devices reset {} times by their drivers",
            self.losses, self.resets
        )?;
        let milliseconds: Vec<f64> = self.gaps.iter().map(|gap| *gap as f64 / 1e3).collect();
        writeln!(f, "pauses of 5 ms and more, ms: {}", spread(&milliseconds))?;
        writeln!(f, "stalls of upgrades, ms: {}", spread(&self.upgrade_stalls))?;
        write!(f, "recoveries from hangs, ms: {}", spread(&self.hang_recoveries))
    }
}
