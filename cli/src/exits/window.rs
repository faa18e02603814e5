//! What happened between two readings of a machine: pure arithmetic, and its JSON and text.
//!
//! The JSON is a promise: keys are added, never renamed or taken away.

use std::collections::BTreeMap;

use serde::Serialize;
use strata_ipc::Counters;

use super::reason::words;
use super::trace::Counts;
use crate::list::table;
use crate::meter::{Reading, all_since, packets, requests};

/// KVM's counters of exits, in its own names and in words. They overlap, and do not add up to all exits.
const KINDS: [(&str, &str); 15] = [
    ("io_exits", "port I/O"),
    ("mmio_exits", "memory of an emulated device"),
    ("halt_exits", "halt: nothing to do"),
    ("irq_exits", "interrupt of the host"),
    ("irq_window_exits", "the guest can take an interrupt now"),
    ("nmi_window_exits", "the guest can take a non-maskable interrupt now"),
    ("signal_exits", "signal to the vCPU's thread"),
    ("request_irq_exits", "interrupt window for user space"),
    ("pf_taken", "page fault, nested ones included"),
    ("insn_emulation", "instruction emulated"),
    ("hypercalls", "hypercall"),
    ("nested_run", "entry into the guest's own guest"),
    ("user_ports", "port I/O that reached the vmm"),
    ("user_mmio", "device memory that reached the vmm"),
    ("user_signals", "kick that reached the vmm"),
];

/// A window over a machine.
#[derive(Debug, Serialize)]
pub(crate) struct Window {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// The guest rebooted meanwhile; the counts are from the last reboot on.
    pub(crate) rebooted: bool,
    /// Null where KVM counts nothing.
    pub(crate) exits: Option<u64>,
    pub(crate) exits_per_second: Option<f64>,
    /// KVM's counters; those that are zero are left out.
    pub(crate) kinds: Vec<Kind>,
    /// Null where the tracepoint cannot be used; then `reasons_unavailable` says why.
    pub(crate) reasons: Option<Vec<Reason>>,
    pub(crate) reasons_unavailable: Option<String>,
    /// How long the tracepoint counted: within `seconds`.
    pub(crate) reasons_seconds: Option<f64>,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Null where no disk's backend counts.
    pub(crate) io: Option<Share>,
    /// Null where no NIC's backend or tap counts.
    pub(crate) packets: Option<Share>,
    pub(crate) devices: BTreeMap<String, Counters>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Kind {
    pub(crate) counter: &'static str,
    pub(crate) words: &'static str,
    pub(crate) count: u64,
    pub(crate) per_second: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Reason {
    /// `svm` or `vmx`.
    pub(crate) isa: String,
    pub(crate) code: u32,
    pub(crate) name: String,
    pub(crate) words: String,
    pub(crate) count: u64,
    pub(crate) per_second: f64,
    /// By vCPU.
    pub(crate) vcpus: BTreeMap<u32, u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Vcpu {
    pub(crate) index: u32,
    pub(crate) counters: Counters,
}

/// Exits per thing done. All exits of the window are counted, whatever they were for.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) count: u64,
    pub(crate) per_second: f64,
    /// Null where nothing was done or exits are not counted.
    pub(crate) exits_each: Option<f64>,
}

/// Compares. `reasons` are the histogram's counts and its seconds, or why there are none; `threads` says which vCPU a
/// thread is.
pub(crate) fn compare(
    before: &Reading,
    after: &Reading,
    reasons: Result<(Counts, f64), String>,
    threads: &BTreeMap<u32, u32>,
) -> Window {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    let per_second = |count| rate(count, seconds);
    let earlier = |index| before.statistics.vcpus.iter().find(|vcpu| vcpu.index == index);
    let vcpus: Vec<Vcpu> = after
        .statistics
        .vcpus
        .iter()
        .map(|vcpu| Vcpu {
            index: vcpu.index,
            counters: all_since(earlier(vcpu.index).map(|vcpu| &vcpu.counters), &vcpu.counters),
        })
        .collect();
    let all = |name: &str| {
        vcpus.iter().filter_map(|vcpu| vcpu.counters.get(name)).copied().reduce(u64::wrapping_add)
    };
    let exits = all("exits");
    let kind = |(counter, words): &(&'static str, &'static str)| {
        let count = all(counter).filter(|count| *count > 0)?;
        Some(Kind { counter, words, count, per_second: per_second(count) })
    };
    let mut kinds: Vec<Kind> = KINDS.iter().filter_map(kind).collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
    let devices: BTreeMap<String, Counters> =
        after.devices.iter().map(|(id, now)| (id.clone(), all_since(before.devices.get(id), now))).collect();
    let share = |of: fn(&Counters) -> Option<u64>| {
        let count = devices.values().filter_map(of).reduce(u64::wrapping_add)?;
        let exits_each = exits.filter(|_| count > 0).map(|exits| round(exits as f64 / count as f64, 1000.0));
        Some(Share { count, per_second: per_second(count), exits_each })
    };
    let (io, packets) = (share(requests), share(packets));
    let (reasons, reasons_seconds, reasons_unavailable) = match reasons {
        Ok((counts, seconds)) => {
            (Some(by_reason(&counts, threads, seconds)), Some(round(seconds, 1000.0)), None)
        }
        Err(why) => (None, None, Some(why)),
    };
    Window {
        name: after.status.name.clone(),
        seconds: round(seconds, 1000.0),
        rebooted: before.status.reboots != after.status.reboots,
        exits,
        exits_per_second: exits.map(per_second),
        kinds,
        reasons,
        reasons_unavailable,
        reasons_seconds,
        vcpus,
        io,
        packets,
        devices,
    }
}

fn by_reason(counts: &Counts, threads: &BTreeMap<u32, u32>, seconds: f64) -> Vec<Reason> {
    let mut found: BTreeMap<_, BTreeMap<u32, u64>> = BTreeMap::new();
    for ((isa, code, thread), count) in counts {
        // Without a filter in the kernel there are others' threads here.
        if let Some(vcpu) = threads.get(thread) {
            *found.entry((*isa, *code)).or_default().entry(*vcpu).or_default() += count;
        }
    }
    let reason = |((isa, code), vcpus): (_, BTreeMap<u32, u64>)| {
        let (name, words) = words(isa, code);
        let count = vcpus.values().sum();
        Reason { isa: isa.word(), code, name, words, count, per_second: rate(count, seconds), vcpus }
    };
    let mut reasons: Vec<Reason> = found.into_iter().map(reason).collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    reasons
}

/// Per second, to a tenth.
pub(crate) fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { round(count as f64 / seconds, 10.0) } else { 0.0 }
}

pub(crate) fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// For people.
pub(crate) fn text(window: &Window) -> String {
    let mut text = format!("{} over {:.1} s: ", window.name, window.seconds);
    match (window.exits, window.exits_per_second) {
        (Some(exits), Some(rate)) => text.push_str(&format!("{exits} exits, {rate:.1} per second\n")),
        _ => text.push_str("this host's KVM does not count exits (Linux 5.14 does)\n"),
    }
    if window.rebooted {
        text.push_str("the guest rebooted meanwhile: counted from the reboot on\n");
    }
    let row = |words: &str, count: u64, rate: f64, name: String| {
        [words.to_owned(), count.to_string(), format!("{rate:.1}"), name]
    };
    let header = |name: &str| [name, "COUNT", "PER SECOND", "NAME"].map(str::to_owned);
    match (&window.reasons, &window.reasons_unavailable) {
        (Some(reasons), _) if reasons.is_empty() && window.exits.is_some_and(|exits| exits > 0) => text.push_str(
            "\nby reason: the tracepoint saw none of them; in a PID namespace of its own strata cannot tell threads\n",
        ),
        (Some(reasons), _) => {
            let rows = reasons.iter().map(|reason| {
                let name = format!("{} {} {:#x}", reason.isa, reason.name, reason.code);
                row(&reason.words, reason.count, reason.per_second, name)
            });
            let head = format!("BY REASON, {:.1} S", window.reasons_seconds.unwrap_or_default());
            let rows: Vec<_> = std::iter::once(header(&head)).chain(rows).collect();
            text.push_str(&format!("\n{}", table(&rows)));
        }
        (None, why) => {
            let why = why.as_deref().unwrap_or("no tracepoint");
            text.push_str(&format!("\nby reason: not available: {why}\n"));
        }
    }
    if !window.kinds.is_empty() {
        let rows = window
            .kinds
            .iter()
            .map(|kind| row(kind.words, kind.count, kind.per_second, kind.counter.to_owned()));
        let rows: Vec<_> = std::iter::once(header("KVM'S COUNTERS")).chain(rows).collect();
        text.push_str(&format!("\n{}", table(&rows)));
    }
    if window.vcpus.len() > 1 {
        let exits = window.vcpus.iter().map(|vcpu| {
            let count = vcpu.counters.get("exits").map_or_else(|| "-".to_owned(), u64::to_string);
            format!("vcpu{} {count}", vcpu.index)
        });
        text.push_str(&format!("\nby vCPU: {}\n", exits.collect::<Vec<_>>().join(", ")));
    }
    text.push('\n');
    text.push_str(&share_text(window.io.as_ref(), "per I/O", "requests", "no disk's backend counts"));
    text.push_str(&share_text(
        window.packets.as_ref(),
        "per packet",
        "packets",
        "no NIC's backend or tap counts",
    ));
    text
}

fn share_text(share: Option<&Share>, per: &str, things: &str, absent: &str) -> String {
    let Some(share) = share else { return format!("{per}: not available: {absent}\n") };
    let each = match share.exits_each {
        Some(each) => format!("{each:.3} exits"),
        None if share.count == 0 => "none was done".to_owned(),
        None => "exits are not counted".to_owned(),
    };
    format!("{per}: {each} ({} {things}, {:.1} per second)\n", share.count, share.per_second)
}
