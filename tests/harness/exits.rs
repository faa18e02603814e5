//! Exits of all guests on this host by reason, from KVM's tracepoint histograms (`kvm:kvm_exit`, `keys=exit_reason`;
//! `kvm:kvm_userspace_exit` for those of them that KVM did not complete itself).
//!
//! Owns: the tracepoints' triggers while counting. Called by: the exit-budget cases and the demo. Reasons are SVM's
//! (AMD APM vol. 2, appendix C) or VMX's (Intel SDM vol. 3, appendix C), as the host has it. Interrupts of the host
//! itself are told apart: they measure time, not the guest.

mod detail;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde::ser::{Serialize, SerializeMap, Serializer};

pub use detail::Detail;

/// (event, its trigger, its key). Signals end KVM_RUN with an error; they are the host's. 0x6e0 is the TSC deadline.
const EVENTS: [(&str, &str, &str); 3] = [
    ("kvm_exit", "hist:keys=exit_reason:size=2048", "exit_reason:"),
    ("kvm_userspace_exit", "hist:keys=reason:size=256 if errno==0", "reason:"),
    ("kvm_msr", "hist:keys=write:size=128 if ecx==0x6e0", "write:"),
];

/// A count that is running.
pub struct Count {
    events: PathBuf,
}

/// Exits by reason.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    by_code: BTreeMap<u64, u64>,
    user: BTreeMap<u64, u64>,
    timer: BTreeMap<u64, u64>,
    vmx: bool,
}

impl Count {
    /// Starts counting from zero.
    ///
    /// # Errors
    /// If the tracepoints are out of reach (needs root and tracefs).
    pub fn start() -> anyhow::Result<Self> {
        let count = Self { events: events()? };
        count.stop();
        for (event, trigger, _) in EVENTS {
            count.trigger(event, trigger)?;
        }
        Ok(count)
    }

    /// Exits since the start.
    ///
    /// # Errors
    /// If the histograms cannot be read.
    pub fn so_far(&self) -> anyhow::Result<Exits> {
        let [by_code, user, timer] = EVENTS.map(|(event, _, key)| -> anyhow::Result<_> {
            let path = self.events.join(event).join("hist");
            let text = fs::read_to_string(path).context("cannot read the exit histogram")?;
            Ok(parse(&text, key))
        });
        Ok(Exits { by_code: by_code?, user: user?, timer: timer?, vmx: has_vmx() })
    }

    fn trigger(&self, event: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.events.join(event).join("trigger"), text).context("cannot set the exit histogram")
    }

    fn stop(&self) {
        for (event, trigger, _) in EVENTS {
            let _ = self.trigger(event, &format!("!{trigger}"));
        }
    }
}

fn has_vmx() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" vmx"))
}

/// The folder of KVM's tracepoints.
fn events() -> anyhow::Result<PathBuf> {
    let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let mut events = roots.iter().map(|root| PathBuf::from(root).join("events/kvm"));
    events
        .find(|path| path.join("kvm_exit").exists())
        .context("no tracepoint kvm_exit (needs root, kvm loaded)")
}

impl Drop for Count {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Serialize for Exits {
    /// `{"total", "user_space", "timer", "reasons": {NAME: COUNT}}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("total", &self.total())?;
        map.serialize_entry("user_space", &self.user_space())?;
        map.serialize_entry("timer", &self.timer())?;
        map.serialize_entry("reasons", &self.by_reason().into_iter().collect::<BTreeMap<_, _>>())?;
        map.end()
    }
}

impl Exits {
    /// From a histogram of `kvm_exit` that was read in a guest of this host, of its own guests.
    pub fn of_histogram(text: &str) -> Self {
        Self { by_code: parse(text, "exit_reason:"), vmx: has_vmx(), ..Self::default() }
    }

    /// Exits that the guest caused.
    pub fn total(&self) -> u64 {
        self.by_code.iter().filter(|(code, _)| **code != self.host_interrupt()).map(|(_, count)| count).sum()
    }

    /// Accesses to memory that had no mapping yet, or to a device.
    pub fn nested_page_faults(&self) -> u64 {
        let codes: &[u64] = if self.vmx { &[48, 49] } else { &[0x400] };
        codes.iter().filter_map(|code| self.by_code.get(code)).sum()
    }

    /// Those that went on to a vmm's user space.
    pub fn user_space(&self) -> u64 {
        self.user.values().sum()
    }

    /// Writes of the timer's deadline (they are also among [`Exits::total`]): one for each tick of a busy guest, so in a
    /// boot they measure time.
    pub fn timer(&self) -> u64 {
        self.timer.values().sum()
    }

    /// What came after `earlier` was taken.
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: &BTreeMap<u64, u64>, before: &BTreeMap<u64, u64>| {
            let less = |(code, count): (&u64, &u64)| {
                (*code, count.saturating_sub(before.get(code).copied().unwrap_or(0)))
            };
            now.iter().map(less).filter(|(_, count)| *count > 0).collect()
        };
        let (by_code, user) = (less(&self.by_code, &earlier.by_code), less(&self.user, &earlier.user));
        let timer = less(&self.timer, &earlier.timer);
        Self { by_code, user, timer, vmx: self.vmx }
    }

    /// (reason, count), most frequent first, host interrupts left out.
    pub fn by_reason(&self) -> Vec<(String, u64)> {
        let guest = self.by_code.iter().filter(|(code, _)| **code != self.host_interrupt());
        let mut rows: Vec<_> = guest.map(|(code, count)| (self.reason(*code), *count)).collect();
        rows.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
        rows
    }

    /// Those of the reason [`Exits::by_reason`] names so.
    pub fn of(&self, reason: &str) -> u64 {
        self.by_reason().into_iter().filter(|(name, _)| name == reason).map(|(_, count)| count).sum()
    }

    /// All in one line, for messages.
    pub fn line(&self) -> String {
        let rows = self.by_reason().into_iter().map(|(name, count)| format!("{name} {count}"));
        let rows = rows.collect::<Vec<_>>().join(", ");
        format!("{} exits, {} of them the timer's: {rows}", self.total(), self.timer())
    }

    fn host_interrupt(&self) -> u64 {
        if self.vmx { 1 } else { 0x60 }
    }

    fn reason(&self, code: u64) -> String {
        let names: &[(u64, &str)] = if self.vmx { VMX } else { SVM };
        let name = names.iter().find(|(known, _)| *known == code).map(|(_, name)| (*name).to_owned());
        name.unwrap_or_else(|| format!("reason {code:#x}"))
    }
}

const SVM: &[(u64, &str)] = &[
    (0x10, "CR0 write"),
    (0x14, "CR4 write"),
    (0x4e, "page fault"),
    (0x61, "NMI"),
    (0x64, "interrupt window"),
    (0x65, "CR0 selective write"),
    (0x72, "CPUID"),
    (0x76, "INVD"),
    (0x77, "PAUSE"),
    (0x78, "HLT"),
    (0x7b, "port I/O"),
    (0x7c, "MSR"),
    (0x7f, "shutdown"),
    (0x80, "VMRUN"),
    (0x81, "hypercall"),
    (0x82, "VMLOAD"),
    (0x83, "VMSAVE"),
    (0x84, "STGI"),
    (0x85, "CLGI"),
    (0x89, "WBINVD"),
    (0x8d, "XSETBV"),
    (0x400, "nested page fault"),
];

const VMX: &[(u64, &str)] = &[
    (0, "exception or NMI"),
    (2, "triple fault"),
    (7, "interrupt window"),
    (10, "CPUID"),
    (12, "HLT"),
    (18, "hypercall"),
    (28, "control register"),
    (30, "port I/O"),
    (31, "MSR read"),
    (32, "MSR write"),
    (40, "PAUSE"),
    (48, "nested page fault"),
    (49, "nested page fault (device)"),
    (52, "preemption timer"),
    (55, "XSETBV"),
];

fn parse(hist: &str, key: &str) -> BTreeMap<u64, u64> {
    let row = |line: &str| {
        let key = line.split_once(key)?.1.split('}').next()?.trim();
        let count = line.split_once("hitcount:")?.1.split_whitespace().next()?;
        let code = match key.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => key.parse().ok()?,
        };
        Some((code, count.parse().ok()?))
    };
    hist.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIST: &str = "# event histogram\n#\n\n{ exit_reason:        120 } hitcount:          7\n\
        { exit_reason:         96 } hitcount:        500\n{ exit_reason:       1024 } hitcount:         31\n\nTotals:\n    Hits: 538\n";

    #[test]
    fn host_interrupts_are_not_the_guests() {
        let exits = Exits { by_code: parse(HIST, "exit_reason:"), ..Exits::default() };
        assert_eq!(exits.total(), 38);
        assert_eq!(exits.nested_page_faults(), 31);
        assert_eq!(exits.by_reason(), [("nested page fault".to_owned(), 31), ("HLT".to_owned(), 7)]);
        assert_eq!((exits.of("HLT"), exits.of("CPUID")), (7, 0));
        assert_eq!(exits.since(&exits).total(), 0);
    }
}
