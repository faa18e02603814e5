//! Judges the machines that are to run here: what each one names, and what all of them take together.

use strata_config::Size;

use super::facts::{Facts, Kvm};
use super::line::Line;

pub(super) fn programs(facts: &Facts) -> Line {
    const TOPIC: &str = "programs";
    match facts.programs_missing.as_slice() {
        [] => Line::ready(TOPIC, "vmm, vhost-blk and vhost-net are there"),
        [first, ..] => Line::not_ready(TOPIC, first.clone()),
    }
}

/// What the machine files name.
pub(super) fn each(facts: &Facts) -> Vec<Line> {
    let lines = facts.machines.iter().map(|machine| {
        let topic = format!("machine {}", machine.name);
        let most = match &facts.kvm {
            Kvm::Open(kvm) => kvm.max_vcpus,
            _ => u64::MAX,
        };
        let memory = Size(machine.memory);
        if let Some(lacking) = &machine.lacking {
            return Line::not_ready(&topic, lacking.clone());
        }
        if machine.cpus > most {
            return Line::not_ready(&topic, format!("{} vCPUs; KVM here has at most {most}", machine.cpus));
        }
        if machine.memory > facts.memory.total {
            let total = mib(facts.memory.total);
            return Line::not_ready(&topic, format!("{memory} of memory; this host has {total} MiB in all"))
                .change("give it less memory, or the host more");
        }
        if machine.cpus > facts.cpus {
            return Line::warning(
                &topic,
                format!("{} vCPUs on {} CPUs: they wait for each other", machine.cpus, facts.cpus),
            )
            .change(format!("give it at most {}", facts.cpus));
        }
        Line::ready(
            &topic,
            format!("{} vCPUs, {memory}; the files and interfaces it names are there", machine.cpus),
        )
    });
    lines.collect()
}

/// What all of them need at once.
pub(super) fn together(facts: &Facts) -> Vec<Line> {
    let vcpus: u64 = facts.machines.iter().map(|machine| machine.cpus).sum();
    let memory = facts
        .machines
        .iter()
        .filter(|machine| machine.hugetlbfs.is_none())
        .fold(0_u64, |sum, machine| sum.saturating_add(machine.memory));
    let (cpus, available) = (facts.cpus, facts.memory.available);
    if facts.machines.is_empty() {
        return vec![
            Line::info("cpus", format!("{cpus} for vCPUs and backends")),
            Line::info(
                "memory",
                format!("{} MiB of {} are available", mib(available), mib(facts.memory.total)),
            ),
        ];
    }
    let count = facts.machines.len();
    let whom = if count == 1 { "the machine".to_owned() } else { format!("{count} machines") };
    // A backend that polls is a CPU's worth of work while there is I/O.
    let backends = facts.machines.iter().any(|machine| machine.disks || machine.taps);
    let found = format!("{vcpus} vCPUs of {whom} on {cpus} CPUs");
    let cpus = if vcpus > cpus {
        Line::warning("cpus", format!("{found}: they steal from each other under load"))
            .change("plan fewer vCPUs, or give the host more CPUs")
    } else if vcpus == cpus && backends {
        Line::info("cpus", format!("{found}: none is left to the backends when all vCPUs are busy"))
    } else {
        Line::ready("cpus", found)
    };
    let found = format!("{} MiB for {whom}, {} MiB are available", mib(memory), mib(available));
    let memory = if memory > available {
        Line::warning("memory", format!("{found}: guests that use theirs bring the host's OOM killer"))
            .change("plan less, or end what uses it")
    } else {
        Line::ready("memory", found)
    };
    vec![cpus, memory]
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}
