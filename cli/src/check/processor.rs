//! Judges what is under a guest's vCPUs: KVM, the hardware behind it, its parameters, the kernel.

use super::facts::{Facts, Kvm, Module};
use super::line::Line;

/// The module's name where none is loaded, by what the processor shows.
fn module_name(facts: &Facts) -> &'static str {
    match (&facts.module, facts.cpu.vmx) {
        (Some(module), _) => module.name,
        (None, true) => "kvm_intel",
        (None, false) => "kvm_amd",
    }
}

pub(super) fn kvm(facts: &Facts) -> Line {
    const TOPIC: &str = "kvm";
    let load = format!("modprobe {}", module_name(facts));
    match &facts.kvm {
        Kvm::Absent => Line::not_ready(TOPIC, "there is no /dev/kvm")
            .change("load KVM's module; if that fails, switch virtualization on in the firmware")
            .command(load),
        Kvm::NoModule => Line::not_ready(TOPIC, "/dev/kvm is there, but no module answers")
            .change("load KVM's module; if that fails, switch virtualization on in the firmware")
            .command(load),
        Kvm::Forbidden => Line::not_ready(TOPIC, format!("{} may not open /dev/kvm", facts.user.name))
            .change("join the group kvm, then log in again")
            .command(format!("usermod -aG kvm {}", facts.user.name)),
        Kvm::Failed(error) => Line::not_ready(TOPIC, format!("/dev/kvm cannot be opened: {error}")),
        Kvm::Open(kvm) if kvm.api != 12 => {
            Line::not_ready(TOPIC, format!("KVM has API version {}, 12 is needed", kvm.api))
        }
        Kvm::Open(kvm) if !kvm.missing.is_empty() => {
            Line::not_ready(TOPIC, format!("KVM lacks {}", kvm.missing.join(", ")))
                .change("boot a newer kernel; Linux 6.1 is known to work")
        }
        Kvm::Open(kvm) => Line::ready(TOPIC, format!("/dev/kvm opens, up to {} vCPUs", kvm.max_vcpus)),
    }
}

/// vmx or svm: without either, KVM's ioctls may work and even run real-mode programs, but no operating system.
pub(super) fn hardware(facts: &Facts) -> Line {
    const TOPIC: &str = "hardware";
    let what = match (facts.cpu.vmx, facts.cpu.svm) {
        (true, _) => "vmx",
        (_, true) => "svm",
        _ => {
            let line = Line::not_ready(
                TOPIC,
                "the processor shows neither vmx nor svm: tiny programs may run under this KVM, no operating \
                 system does",
            );
            return match &facts.cpu.hypervisor {
                Some(name) => line.change(format!(
                    "this host is itself a virtual machine ({name}): at the host below, load kvm_intel or kvm_amd \
                     with nested=1 and give this machine the host's processor model"
                )),
                None => line.change("switch virtualization (VT-x, AMD-V, SVM) on in the firmware"),
            };
        }
    };
    Line::ready(TOPIC, format!("the processor has {what}"))
}

pub(super) fn profile(facts: &Facts) -> Line {
    match &facts.cpu.hypervisor {
        Some(name) => Line::info(
            "profile",
            format!(
                "nested: this host runs under a hypervisor ({name}); every exit of a guest costs ten to twenty times more"
            ),
        ),
        None => Line::info("profile", "bare: no hypervisor below this host"),
    }
}

pub(super) fn nested(facts: &Facts) -> Line {
    const TOPIC: &str = "nested";
    let Some(Module { name, nested, .. }) = &facts.module else {
        return Line::info(TOPIC, "not known: neither kvm_intel nor kvm_amd is loaded");
    };
    match nested {
        Some(true) => Line::ready(TOPIC, format!("{name} lets guests run guests (nested=1)")),
        Some(false) => {
            let wanting: Vec<&str> = facts
                .machines
                .iter()
                .filter(|machine| machine.nested)
                .map(|machine| machine.name.as_str())
                .collect();
            let whom =
                if wanting.is_empty() { String::new() } else { format!(" ({} could)", wanting.join(", ")) };
            Line::warning(TOPIC, format!("{name} has nested=0: guests cannot run guests of their own{whom}"))
                .change("load the module with nested=1, while no machine runs")
                .command(format!(
                    "echo options {name} nested=1 > /etc/modprobe.d/strata.conf && modprobe -r {name} && modprobe {name}"
                ))
        }
        None => Line::info(TOPIC, format!("{name} does not say whether guests can run guests")),
    }
}

pub(super) fn paging(facts: &Facts) -> Line {
    const TOPIC: &str = "paging";
    let Some(Module { name, paging, .. }) = &facts.module else {
        return Line::info(TOPIC, "not known: neither kvm_intel nor kvm_amd is loaded");
    };
    let kind = if *name == "kvm_intel" { "ept" } else { "npt" };
    match paging {
        Some(true) => Line::ready(TOPIC, format!("{name} uses {kind}")),
        Some(false) => Line::warning(
            TOPIC,
            format!("{name} does without {kind}: every change of a guest's page tables is an exit"),
        )
        .change(format!(
            "load the module with {kind}=1; where it stays off, the processor or the hypervisor below lacks it"
        ))
        .command(format!("modprobe -r {name} && modprobe {name} {kind}=1")),
        None => Line::info(TOPIC, format!("{name} does not say whether it uses {kind}")),
    }
}

pub(super) fn halt_poll(facts: &Facts) -> Line {
    const TOPIC: &str = "halt polling";
    match facts.halt_poll_ns {
        Some(0) => Line::warning(
            TOPIC,
            "off (halt_poll_ns = 0): a vCPU that halts sleeps at once, and waking it costs more than the wait often was",
        )
        .change("let KVM poll up to 200 us, its default")
        .command("echo 200000 > /sys/module/kvm/parameters/halt_poll_ns"),
        Some(ns) => Line::ready(TOPIC, format!("KVM polls up to {} us before a halted vCPU sleeps", ns / 1000)),
        None => Line::info(TOPIC, "not known: no /sys/module/kvm/parameters/halt_poll_ns"),
    }
}

pub(super) fn kernel(facts: &Facts) -> Line {
    const TOPIC: &str = "kernel";
    let release = &facts.kernel.release;
    match facts.kernel.version {
        (0..=4, _) | (5, 0..=10) => Line::not_ready(TOPIC, format!("Linux {release} is too old"))
            .change("boot Linux 5.14 or newer; 6.1 is known to work"),
        (5, 11..=13) => Line::warning(
            TOPIC,
            format!("Linux {release} has no KVM statistics for `strata top` and `exits`"),
        )
        .change("boot Linux 5.14 or newer; 6.1 is known to work"),
        _ => Line::ready(TOPIC, format!("Linux {release}")),
    }
}

pub(super) fn statistics(facts: &Facts) -> Option<Line> {
    const TOPIC: &str = "exit counters";
    let Kvm::Open(kvm) = &facts.kvm else { return None };
    Some(match (kvm.statistics, facts.exit_tracepoint) {
        (true, true) => Line::ready(TOPIC, "KVM counts exits, and by reason"),
        (true, false) => Line::info(
            TOPIC,
            "KVM counts exits; by every single reason only for root, where tracefs is mounted and kvm has its tracepoint",
        ),
        (false, _) => Line::warning(TOPIC, "KVM gives no statistics (KVM_CAP_BINARY_STATS_FD)")
            .change("boot Linux 5.14 or newer"),
    })
}

pub(super) fn pre_fault(facts: &Facts) -> Option<Line> {
    const TOPIC: &str = "pre-fault";
    let Kvm::Open(kvm) = &facts.kvm else { return None };
    if kvm.pre_fault_memory {
        return Some(Line::ready(TOPIC, "KVM maps a guest's memory ahead (KVM_PRE_FAULT_MEMORY)"));
    }
    let found = "KVM does not map a guest's memory ahead (KVM_PRE_FAULT_MEMORY)";
    Some(if facts.machines.iter().any(|machine| machine.prefault) {
        Line::warning(TOPIC, format!("{found}: prefault = true allocates it only"))
            .change("boot Linux 6.11 or newer")
    } else {
        Line::info(TOPIC, format!("{found}; Linux 6.11 has it where EPT or NPT is in use"))
    })
}
