//! Exits by reason from KVM's tracepoint: a histogram the kernel keeps (Documentation/trace/histogram.rst), in a
//! tracing instance of its own, so that whatever else traces on this host is left alone.
//!
//! For root, where tracefs is mounted. The instance goes with its owner; one that a killed owner left is removed by the
//! next with the same process id, or with `rmdir`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::reason::Isa;

/// A filter on more threads than fit into one is left to us.
const LONGEST_FILTER: usize = 3000;

/// Why there are no reasons.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("tracefs is not mounted, or not ours to use (root only)")]
    NoTracefs,
    #[error("this kernel has no tracepoint kvm:kvm_exit")]
    NoTracepoint,
    #[error("the kernel keeps no histogram of kvm:kvm_exit ({0})")]
    Refused(#[source] io::Error),
    #[error("the histogram cannot be read ({0})")]
    Read(#[source] io::Error),
}

/// (table, code, thread) and how often.
pub(crate) type Counts = BTreeMap<(Isa, u32, u32), u64>;

/// A histogram that counts.
#[derive(Debug)]
pub(crate) struct Histogram {
    instance: PathBuf,
    trigger: String,
}

fn root() -> Option<PathBuf> {
    let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(PathBuf::from);
    roots.into_iter().find(|root| access(&root.join("instances"), AccessFlags::W_OK).is_ok())
}

/// Whether a histogram could be had.
pub(crate) fn possible() -> bool {
    root().is_some_and(|root| event(&root).join("hist").exists())
}

fn event(root: &Path) -> PathBuf {
    root.join("events/kvm/kvm_exit")
}

impl Histogram {
    /// Counts the exits of these threads from now on.
    pub(crate) fn start(threads: &[u32]) -> Result<Self, TraceError> {
        let root = root().ok_or(TraceError::NoTracefs)?;
        if !event(&root).exists() {
            return Err(TraceError::NoTracepoint);
        }
        let instance = root.join(format!("instances/strata-exits-{}", std::process::id()));
        let _ = fs::remove_dir(&instance);
        fs::create_dir(&instance).map_err(TraceError::Refused)?;
        let histogram = Self { instance, trigger: trigger(threads) };
        let file = event(&histogram.instance).join("trigger");
        fs::write(file, &histogram.trigger).map_err(TraceError::Refused)?;
        Ok(histogram)
    }

    /// What it counted.
    pub(crate) fn counts(&self) -> Result<Counts, TraceError> {
        fs::read_to_string(event(&self.instance).join("hist"))
            .map(|text| parse(&text))
            .map_err(TraceError::Read)
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        // An instance in use cannot be removed; without its trigger it is not.
        let _ = fs::write(event(&self.instance).join("trigger"), format!("!{}", self.trigger));
        let _ = fs::remove_dir(&self.instance);
    }
}

fn trigger(threads: &[u32]) -> String {
    let keys = "hist:keys=exit_reason,isa,common_pid:size=8192";
    let each: Vec<String> = threads.iter().map(|thread| format!("common_pid == {thread}")).collect();
    let filter = each.join(" || ");
    if filter.is_empty() || filter.len() > LONGEST_FILTER {
        keys.to_owned()
    } else {
        format!("{keys} if {filter}")
    }
}

/// Lines are `{ exit_reason: 1024, isa: 2, common_pid: 77 } hitcount: 10`, with spaces before each number.
pub(crate) fn parse(text: &str) -> Counts {
    let mut counts = Counts::new();
    for line in text.lines() {
        if let Some((key, count)) = entry(line) {
            *counts.entry(key).or_default() += count;
        }
    }
    counts
}

fn entry(line: &str) -> Option<((Isa, u32, u32), u64)> {
    let (keys, count) = line.trim().strip_prefix('{')?.split_once('}')?;
    let value = |name: &str| {
        let field = keys.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix(':'));
        field.and_then(|value| value.trim().parse::<u64>().ok())
    };
    // KVM's reasons are 32 bits; the kernel may print -1 as 64.
    let narrow = |value: u64| u32::try_from(value & 0xffff_ffff).ok();
    let key =
        (Isa::of(narrow(value("isa")?)?), narrow(value("exit_reason")?)?, narrow(value("common_pid")?)?);
    Some((key, count.trim().strip_prefix("hitcount:")?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_line_by_line() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=exit_reason,isa,common_pid [active]\n#\n\n\
            { exit_reason:        120, isa:          2, common_pid:         77 } hitcount:          9\n\
            { exit_reason:       1024, isa:          2, common_pid:         77 } hitcount:         40\n\
            { exit_reason:       1024, isa:          2, common_pid:         78 } hitcount:          2\n\
            \nTotals:\n    Hits: 51\n    Entries: 3\n    Dropped: 0\n";
        let expected = [((Isa::Svm, 120, 77), 9), ((Isa::Svm, 1024, 77), 40), ((Isa::Svm, 1024, 78), 2)];
        assert_eq!(parse(text), Counts::from(expected));
        assert_eq!(parse("{ nonsense } hitcount: x\n{"), Counts::new());
    }

    #[test]
    fn the_filter_names_the_threads_unless_there_are_too_many() {
        assert_eq!(
            trigger(&[7, 8]),
            "hist:keys=exit_reason,isa,common_pid:size=8192 if common_pid == 7 || common_pid == 8"
        );
        let many: Vec<u32> = (1_000_000..1_000_255).collect();
        assert_eq!(trigger(&many), "hist:keys=exit_reason,isa,common_pid:size=8192");
    }
}
