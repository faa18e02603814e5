//! What happened on a disk's queues, counted.
//!
//! One [`Tally`] per queue, for as long as the disk lives; written by the queue's thread alone, read at any time
//! by [`crate::control`]. Counting is a load and a store, never an atomic read-modify-write.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use strata_virtio::vring::{Counter, QueueStats};
use strata_virtio::worker::WorkerStats;

use crate::request::Op;

/// Upper bounds of the latency buckets: 1 us, 2 us, 4 us ... 8.4 s; one more holds the rest.
pub const BUCKETS: usize = 24;

/// One queue's counters.
#[derive(Debug, Default)]
pub struct Tally {
    /// Read requests.
    pub reads: Counter,
    /// Write requests.
    pub writes: Counter,
    /// Flush requests.
    pub flushes: Counter,
    /// Discard requests.
    pub discards: Counter,
    /// Write-zeroes requests.
    pub zeroes: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Bytes written.
    pub written_bytes: Counter,
    /// Requests that failed below us.
    pub failed: Counter,
    /// Requests that were refused.
    pub refused: Counter,
    /// Requests done without io_uring.
    pub inline: Counter,
    /// Times the queue had to wait for its rate limit.
    pub throttled: Counter,
    /// From being taken off the ring to being shown in it.
    pub latency: Latency,
    /// The ring's counters.
    pub ring: Arc<QueueStats>,
    /// The thread's counters.
    pub thread: Arc<WorkerStats>,
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Counter; BUCKETS + 1],
    nanoseconds: Counter,
}

impl Latency {
    /// Counts `count` requests that took `time` each.
    #[inline]
    pub fn add(&self, time: Duration, count: u64) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (nanoseconds.saturating_sub(1) / 1000).checked_ilog2().map_or(0, |log| log as usize + 1);
        if let Some(bucket) = self.buckets.get(bucket.min(BUCKETS)) {
            bucket.add(count);
        }
        self.nanoseconds.add(nanoseconds.saturating_mul(count));
    }
}

impl Tally {
    /// Counts a request that ended well.
    #[inline]
    pub fn done(&self, op: Op, bytes: u64) {
        match op {
            Op::Read { .. } => {
                self.reads.add(1);
                self.read_bytes.add(bytes);
            }
            Op::Write { .. } => {
                self.writes.add(1);
                self.written_bytes.add(bytes);
            }
            Op::Flush => self.flushes.add(1),
            Op::Discard => self.discards.add(1),
            Op::WriteZeroes => self.zeroes.add(1),
            Op::GetId => {}
        }
    }

    /// The counts now.
    #[must_use]
    pub fn snapshot(&self, queue: usize) -> QueueCounts {
        QueueCounts {
            queue,
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            discards: self.discards.get(),
            write_zeroes: self.zeroes.get(),
            read_bytes: self.read_bytes.get(),
            written_bytes: self.written_bytes.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            malformed: self.ring.malformed.get(),
            inline: self.inline.get(),
            throttled: self.throttled.get(),
            kicks: self.ring.kicks.get(),
            calls: self.ring.calls.get(),
            poll_hits: self.thread.poll_hits.get(),
            poll_misses: self.thread.poll_misses.get(),
            sleeps: self.thread.sleeps.get(),
            latency_nanoseconds: self.latency.nanoseconds.get(),
            latency_buckets: self.latency.buckets.iter().map(Counter::get).collect(),
        }
    }
}

/// A queue's counts at one moment. Names are those of the control interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // as in `Tally`
pub struct QueueCounts {
    pub queue: usize,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub write_zeroes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub failed: u64,
    pub refused: u64,
    pub malformed: u64,
    pub inline: u64,
    pub throttled: u64,
    pub kicks: u64,
    pub calls: u64,
    pub poll_hits: u64,
    pub poll_misses: u64,
    pub sleeps: u64,
    pub latency_nanoseconds: u64,
    pub latency_buckets: Vec<u64>,
}

/// The counts as Prometheus text (exposition format 0.0.4).
#[must_use]
pub fn prometheus(disk: &str, counts: &[QueueCounts]) -> String {
    type Pick = fn(&QueueCounts) -> u64;
    let disk = disk.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut text = String::new();
    let mut family = |name: &str, help: &str, series: &[(&str, Pick)]| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for count in counts {
            for (label, pick) in series {
                let queue = count.queue;
                let _ = writeln!(text, "{name}{{disk=\"{disk}\",queue=\"{queue}\"{label}}} {}", pick(count));
            }
        }
    };
    let requests: &[(&str, Pick)] = &[
        (",op=\"read\"", |c| c.reads),
        (",op=\"write\"", |c| c.writes),
        (",op=\"flush\"", |c| c.flushes),
        (",op=\"discard\"", |c| c.discards),
        (",op=\"write_zeroes\"", |c| c.write_zeroes),
    ];
    family("strata_disk_requests_total", "Requests that ended well.", requests);
    let bytes: &[(&str, Pick)] =
        &[(",op=\"read\"", |c| c.read_bytes), (",op=\"write\"", |c| c.written_bytes)];
    family("strata_disk_bytes_total", "Bytes transferred.", bytes);
    let errors: &[(&str, Pick)] =
        &[(",cause=\"image\"", |c| c.failed), (",cause=\"guest\"", |c| c.refused + c.malformed)];
    family("strata_disk_errors_total", "Requests that failed, by whose fault.", errors);
    family("strata_disk_inline_total", "Requests done without io_uring.", &[("", |c| c.inline)]);
    family("strata_disk_throttled_total", "Waits for the rate limit.", &[("", |c| c.throttled)]);
    family("strata_disk_kicks_total", "Doorbells that woke the queue.", &[("", |c| c.kicks)]);
    family("strata_disk_calls_total", "Interrupts sent.", &[("", |c| c.calls)]);
    let polls: &[(&str, Pick)] = &[(",found=\"yes\"", |c| c.poll_hits), (",found=\"no\"", |c| c.poll_misses)];
    family("strata_disk_polls_total", "Rounds of polling.", polls);
    family("strata_disk_sleeps_total", "Times the queue slept.", &[("", |c| c.sleeps)]);
    histogram(&mut text, &disk, counts);
    text
}

fn histogram(text: &mut String, disk: &str, counts: &[QueueCounts]) {
    const NAME: &str = "strata_disk_latency_seconds";
    let _ = writeln!(text, "# HELP {NAME} From the ring to the answer.\n# TYPE {NAME} histogram");
    for count in counts {
        let labels = format!("disk=\"{disk}\",queue=\"{}\"", count.queue);
        let mut total = 0;
        for (index, bucket) in count.latency_buckets.iter().enumerate() {
            total += bucket;
            let bound = if index < BUCKETS { (1u64 << index) as f64 / 1e6 } else { f64::INFINITY };
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(text, "{NAME}_sum{{{labels}}} {}", count.latency_nanoseconds as f64 / 1e9);
        let _ = writeln!(text, "{NAME}_count{{{labels}}} {total}");
    }
}

#[cfg(test)]
#[path = "tally_test.rs"]
mod tally_test;
