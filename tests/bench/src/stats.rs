//! Numbers: a latency histogram with small buckets, medians with their spread, and ratios of them.

/// Counts of durations by logarithmic bucket, 32 to each power of two: they are compared to within a few per cent.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; 64 * 32], total: 0 }
    }
}

impl Histogram {
    /// Counts one duration in nanoseconds.
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        let value = nanoseconds.max(32);
        let power = value.ilog2() as usize;
        let bucket = power * 32 + ((value >> (power - 5)) & 31) as usize;
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The duration, in microseconds, that `part` (0 to 1) of all did not exceed.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let wanted = (self.total as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                let (power, part) = (index / 32, index % 32);
                return ((1u64 << power) + ((part as u64 + 1) << power) / 32) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// The median of some values, and how far apart their quartiles are in parts of it.
pub(crate) fn median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
        sorted.get(index).copied().unwrap_or(0.0)
    };
    let middle = at(0.5);
    let spread = if middle > 0.0 { (at(0.75) - at(0.25)) / middle } else { 0.0 };
    (middle, spread)
}

/// The median of the ratios within each round, and its spread: what disturbed one run has often disturbed its neighbour.
pub(crate) fn ratio<R>(ours: &[R], theirs: &[R], pick: impl Fn(&R) -> f64) -> (f64, f64) {
    median(&ours.iter().zip(theirs).map(|(a, b)| pick(a) / pick(b)).collect::<Vec<_>>())
}
