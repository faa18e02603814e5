//! What processor the guest sees: what KVM supports, with a topology of our own, and less of what costs exits.
//!
//! An APIC id is a number of three fields, thread, core and socket, each as wide as it has to be; so ids have gaps
//! where a count is no power of two.
//!
//! Every CPUID instruction is an exit, and kernels and C libraries walk what they find: a kernel looks at each
//! leaf several times per boot, a program at some per start. So leaves at the end that say nothing are cut
//! and the maxima lowered (AMD APM volume 3 appendix E, Intel SDM volume 2 CPUID). Never shows what KVM does not
//! support. Called once per machine for the template, once per vCPU for its ids.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use strata_config::Topology;

const FLAG_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
const HYPERVISOR: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// VMware's, also understood by BSDs: EAX the TSC's, EBX the local APIC's frequency in kHz.
const TIMING: u32 = 0x4000_0010;
/// KVM's local APICs count nanoseconds.
const APIC_KHZ: u32 = 1_000_000;
/// KVM_HINTS_REALTIME (KVM cpuid.rst): vCPUs are never preempted.
const HINT_REALTIME: u32 = 1;

/// What the guest's processor depends on besides the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// How the vCPUs are arranged; the product is their number.
    pub topology: Topology,
    /// The guest sees vmx or svm where KVM offers it.
    pub nested: bool,
    /// KVM lists the registers that a guest with vmx looks for.
    pub vmx_registers: bool,
    /// Local APIC timers have the TSC deadline mode.
    pub tsc_deadline: bool,
    /// The guest is told that its vCPUs are never preempted, and looks for work itself before it halts.
    pub polls: bool,
}

/// A list no KVM takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} CPUID entries are more than KVM takes")]
pub struct TooMany(usize);

/// The entries all vCPUs share.
#[derive(Debug, Clone)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
}

impl Template {
    /// From what KVM supports.
    #[must_use]
    pub fn new(supported: &[kvm_cpuid_entry2], wanted: Wanted) -> Self {
        let mut entries: Vec<_> = supported.iter().copied().filter(|e| keep(e, wanted)).collect();
        for entry in &mut entries {
            adapt(entry, wanted);
        }
        entries.extend(extended_topology(wanted.topology));
        cut(&mut entries, 0);
        cut(&mut entries, 0x8000_0000);
        entries.sort_by_key(|e| (e.function, e.index));
        Self { entries, topology: wanted.topology }
    }

    /// The same with the frequencies of the guest's timers, which are known only once there is a vCPU. For guests that
    /// would measure them otherwise; Linux has its own ways with KVM.
    #[must_use]
    pub fn with_timing(&self, tsc_khz: u32) -> Self {
        let mut template = self.clone();
        if let Some(root) = template.entries.iter_mut().find(|e| e.function == HYPERVISOR) {
            root.eax = TIMING;
            let entry =
                kvm_cpuid_entry2 { function: TIMING, eax: tsc_khz, ebx: APIC_KHZ, ..Default::default() };
            template.entries.push(entry);
        }
        template
    }

    /// The list for vCPU `index`.
    ///
    /// # Errors
    /// It is longer than KVM takes.
    pub fn of(&self, index: u8) -> Result<CpuId, TooMany> {
        let mut entries = self.entries.clone();
        let id = self.topology.apic_id(index);
        let threads = self.topology.threads;
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
                0xb => entry.edx = id,
                0x8000_001e => {
                    entry.eax = id;
                    // Core id and threads of a core, minus one (AMD APM volume 3, E.4.17); node 0 of one.
                    entry.ebx = (id >> id_bits(threads.into())) & 0xff | (u32::from(threads) - 1) << 8;
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| TooMany(entries.len()))
    }

    /// Physical address bits the guest may use.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        let eax = self.find(0x8000_0008).map_or(36, |e| e.eax);
        let (own, nested) = (eax as u8, (eax >> 16) as u8);
        if nested == 0 { own } else { own.min(nested) }
    }

    /// Whether the guest sees VMX.
    #[must_use]
    pub fn has_vmx(&self) -> bool {
        self.find(1).is_some_and(|e| e.ecx & ecx1::VMX != 0)
    }

    /// Whether the guest can be a hypervisor.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.has_vmx() || self.find(0x8000_0001).is_some_and(|e| e.ecx & SVM != 0)
    }

    fn find(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.iter().find(|e| e.function == function)
    }
}

mod ecx1 {
    pub(super) const VMX: u32 = 1 << 5;
    /// Performance capabilities MSR: there is no PMU.
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
mod edx1 {
    /// Memory type range registers: a kernel reads 33 of them twice and writes them back with caches off, to find all
    /// of RAM write-back. Without them memory has the types of its pages, which is the same here: nothing of the guest
    /// is device memory of this host.
    pub(super) const MTRR: u32 = 1 << 12;
    pub(super) const HTT: u32 = 1 << 28;
}
/// CPUID 0x80000001 ECX.
const SVM: u32 = 1 << 2;
/// CPUID 0x80000001 ECX: core, northbridge and last-level-cache performance counters.
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

fn keep(entry: &kvm_cpuid_entry2, wanted: Wanted) -> bool {
    match entry.function {
        // Topology is ours; what KVM reports is the host's or nothing.
        0xb | 0x1f => false,
        // SVM's own leaf goes with SVM.
        0x8000_000a => wanted.nested,
        // Performance monitoring, AMD's second version; Centaur's leaves.
        0x8000_0022 => false,
        0xc000_0000.. => false,
        _ => true,
    }
}

fn adapt(entry: &mut kvm_cpuid_entry2, wanted: Wanted) {
    let Topology { cores, threads, .. } = wanted.topology;
    let in_socket = u32::from(cores) * u32::from(threads);
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xff00_ffff | in_socket.min(255) << 16;
            entry.ecx = entry.ecx & !(ecx1::PDCM | ecx1::TSC_DEADLINE) | ecx1::HYPERVISOR;
            if wanted.tsc_deadline {
                entry.ecx |= ecx1::TSC_DEADLINE;
            }
            if !(wanted.nested && wanted.vmx_registers) {
                entry.ecx &= !ecx1::VMX;
            }
            entry.edx &= !(edx1::MTRR | edx1::HTT);
            if in_socket > 1 {
                entry.edx |= edx1::HTT;
            }
        }
        4 => {
            let cores = u32::from(cores).min(64);
            entry.eax = shared_by(entry.eax, wanted.topology) & 0x03ff_ffff | (cores - 1) << 26;
        }
        // Architectural performance monitoring: none.
        0xa => clear(entry),
        HYPERVISOR => entry.eax = KVM_FEATURES,
        KVM_FEATURES => entry.edx = if wanted.polls { HINT_REALTIME } else { 0 },
        0x8000_0001 => {
            entry.ecx &= !AMD_COUNTERS;
            if !wanted.nested {
                entry.ecx &= !SVM;
            }
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | socket_bits(wanted.topology) << 12 | (in_socket - 1),
        0x8000_001d => entry.eax = shared_by(entry.eax, wanted.topology),
        _ => {}
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Bits that hold `count` numbers.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Bits of an APIC id below the socket's.
fn socket_bits(topology: Topology) -> u32 {
    id_bits(topology.cores.into()) + id_bits(topology.threads.into())
}

/// Leaf 4 and 0x8000001D, EAX: bits 7:5 the cache's level, bits 25:14 how many threads share it, minus one.
/// Levels 1 and 2 belong to a core, level 3 to a socket.
fn shared_by(eax: u32, topology: Topology) -> u32 {
    let level = eax >> 5 & 7;
    let bits = if level >= 3 { socket_bits(topology) } else { id_bits(topology.threads.into()) };
    let sharing = (1_u32 << bits) - 1;
    if eax & 0x1f == 0 { eax } else { eax & !(0xfff << 14) | sharing << 14 }
}

/// Leaf 0xB: level 0 threads of a core, level 1 cores of the package, level 2 the end.
fn extended_topology(topology: Topology) -> impl Iterator<Item = kvm_cpuid_entry2> {
    let (thread, core) = (1, 2);
    let threads = u32::from(topology.threads);
    let in_socket = threads * u32::from(topology.cores);
    let levels =
        [(thread << 8, id_bits(threads), threads), (core << 8, socket_bits(topology), in_socket), (0, 0, 0)]
            .into_iter()
            .enumerate();
    levels.map(|(index, (kind, eax, ebx))| {
        let index = index as u32;
        kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: FLAG_INDEX,
            eax,
            ebx,
            ecx: kind | index,
            ..Default::default()
        }
    })
}

/// Removes what says nothing from the end of the range that begins at `base`, and lowers its maximum.
fn cut(entries: &mut Vec<kvm_cpuid_entry2>, base: u32) {
    let range = base..base + 0x1000_0000;
    let says = |e: &kvm_cpuid_entry2| e.function > base && e.eax | e.ebx | e.ecx | e.edx != 0;
    let last = entries.iter().filter(|e| range.contains(&e.function) && says(e)).map(|e| e.function).max();
    let last = last.unwrap_or(base);
    entries.retain(|e| !range.contains(&e.function) || e.function <= last);
    if let Some(root) = entries.iter_mut().find(|e| e.function == base) {
        root.eax = root.eax.min(last);
    }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod cpuid_test;
