//! Exit reasons in words: AMD's (APM volume 2, appendix C "SVM Intercept Exit Codes") and Intel's (SDM volume 3,
//! appendix C "VMX Basic Exit Reasons").

/// Which table a code is from, as the tracepoint's `isa` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    Vmx,
    Svm,
    Other(u32),
}

impl Isa {
    pub(crate) fn of(number: u32) -> Self {
        match number {
            1 => Self::Vmx,
            2 => Self::Svm,
            other => Self::Other(other),
        }
    }

    pub(crate) fn word(self) -> String {
        match self {
            Self::Vmx => "vmx".to_owned(),
            Self::Svm => "svm".to_owned(),
            Self::Other(number) => format!("isa {number}"),
        }
    }
}

/// The manual's name and what it means; for a code without an entry, the code.
pub(crate) fn words(isa: Isa, code: u32) -> (String, String) {
    let table = match isa {
        Isa::Vmx => VMX,
        Isa::Svm => SVM,
        Isa::Other(_) => &[],
    };
    // Bits 31:16 of a VMX exit reason are flags.
    let code = if isa == Isa::Vmx { code & 0xffff } else { code };
    if let Some((_, name, words)) = table.iter().find(|(known, ..)| *known == code) {
        return ((*name).to_owned(), (*words).to_owned());
    }
    match (isa, code) {
        (Isa::Svm, 0x00..=0x0f) => (format!("CR{code}_READ"), format!("read of control register {code}")),
        (Isa::Svm, 0x10..=0x1f) => {
            (format!("CR{}_WRITE", code - 0x10), format!("write of control register {}", code - 0x10))
        }
        (Isa::Svm, 0x20..=0x2f) => (format!("DR{}_READ", code - 0x20), "read of a debug register".to_owned()),
        (Isa::Svm, 0x30..=0x3f) => {
            (format!("DR{}_WRITE", code - 0x30), "write of a debug register".to_owned())
        }
        (Isa::Svm, 0x40..=0x5f) => (format!("EXCP{}", code - 0x40), format!("exception {}", code - 0x40)),
        _ => (format!("{code:#x}"), format!("reason {code:#x}, without a name here")),
    }
}

type Table = &'static [(u32, &'static str, &'static str)];

const SVM: Table = &[
    (0x41, "EXCP1", "debug exception"),
    (0x43, "EXCP3", "breakpoint"),
    (0x46, "EXCP6", "invalid opcode"),
    (0x4d, "EXCP13", "general protection fault"),
    (0x4e, "EXCP14", "page fault (no NPT, or an asynchronous one)"),
    (0x60, "INTR", "interrupt of the host"),
    (0x61, "NMI", "non-maskable interrupt"),
    (0x62, "SMI", "system management interrupt"),
    (0x63, "INIT", "INIT signal"),
    (0x64, "VINTR", "the guest can take an interrupt now"),
    (0x65, "CR0_SEL_WRITE", "write of CR0 beyond TS and MP"),
    (0x6b, "TR_WRITE", "write of the task register"),
    (0x6e, "RDTSC", "read of the time stamp counter"),
    (0x6f, "RDPMC", "read of a performance counter"),
    (0x72, "CPUID", "CPUID"),
    (0x74, "IRET", "return from an interrupt"),
    (0x75, "SWINT", "software interrupt"),
    (0x76, "INVD", "invalidation of the caches"),
    (0x77, "PAUSE", "spinning on a lock (PAUSE)"),
    (0x78, "HLT", "halt: nothing to do"),
    (0x79, "INVLPG", "invalidation of a page"),
    (0x7a, "INVLPGA", "invalidation of a page of an address space"),
    (0x7b, "IOIO", "port I/O"),
    (0x7c, "MSR", "model-specific register"),
    (0x7d, "TASK_SWITCH", "task switch"),
    (0x7f, "SHUTDOWN", "triple fault"),
    (0x80, "VMRUN", "the guest enters its own guest"),
    (0x81, "VMMCALL", "hypercall"),
    (0x82, "VMLOAD", "VMLOAD for the guest's own guest"),
    (0x83, "VMSAVE", "VMSAVE for the guest's own guest"),
    (0x84, "STGI", "global interrupts on, for the guest's own guest"),
    (0x85, "CLGI", "global interrupts off, for the guest's own guest"),
    (0x86, "SKINIT", "secure start"),
    (0x87, "RDTSCP", "read of the time stamp counter"),
    (0x89, "WBINVD", "write-back of the caches"),
    (0x8a, "MONITOR", "MONITOR"),
    (0x8b, "MWAIT", "waiting for a memory write (MWAIT)"),
    (0x8d, "XSETBV", "write of an extended control register"),
    (0x8e, "RDPRU", "read of a processor register"),
    (0x8f, "EFER_WRITE_TRAP", "write of EFER"),
    (0xa2, "INVPCID", "invalidation of address spaces"),
    (0xa5, "BUS_LOCK", "bus lock"),
    (0xa6, "IDLE_HLT", "halt without an interrupt waiting"),
    (0x400, "NPF", "nested page fault: memory not mapped yet, or a device's"),
    (0x401, "AVIC_INCOMPLETE_IPI", "interrupt to another vCPU that AVIC left to KVM"),
    (0x402, "AVIC_UNACCELERATED", "APIC access that AVIC left to KVM"),
    (0x403, "VMGEXIT", "encrypted guest's call"),
    (0xffff_ffff, "INVALID", "the processor refused the guest's state"),
];

const VMX: Table = &[
    (0, "EXCEPTION_NMI", "exception or non-maskable interrupt"),
    (1, "EXTERNAL_INTERRUPT", "interrupt of the host"),
    (2, "TRIPLE_FAULT", "triple fault"),
    (3, "INIT_SIGNAL", "INIT signal"),
    (4, "SIPI_SIGNAL", "start-up signal"),
    (7, "INTERRUPT_WINDOW", "the guest can take an interrupt now"),
    (8, "NMI_WINDOW", "the guest can take a non-maskable interrupt now"),
    (9, "TASK_SWITCH", "task switch"),
    (10, "CPUID", "CPUID"),
    (12, "HLT", "halt: nothing to do"),
    (13, "INVD", "invalidation of the caches"),
    (14, "INVLPG", "invalidation of a page"),
    (15, "RDPMC", "read of a performance counter"),
    (16, "RDTSC", "read of the time stamp counter"),
    (18, "VMCALL", "hypercall"),
    (19, "VMCLEAR", "VMCLEAR for the guest's own guest"),
    (20, "VMLAUNCH", "the guest enters its own guest"),
    (21, "VMPTRLD", "VMPTRLD for the guest's own guest"),
    (22, "VMPTRST", "VMPTRST for the guest's own guest"),
    (23, "VMREAD", "VMREAD for the guest's own guest"),
    (24, "VMRESUME", "the guest enters its own guest again"),
    (25, "VMWRITE", "VMWRITE for the guest's own guest"),
    (26, "VMXOFF", "the guest ends VMX"),
    (27, "VMXON", "the guest begins VMX"),
    (28, "CR_ACCESS", "control register"),
    (29, "DR_ACCESS", "debug register"),
    (30, "IO_INSTRUCTION", "port I/O"),
    (31, "MSR_READ", "read of a model-specific register"),
    (32, "MSR_WRITE", "write of a model-specific register"),
    (33, "INVALID_STATE", "the processor refused the guest's state"),
    (34, "MSR_LOAD_FAIL", "registers could not be loaded"),
    (36, "MWAIT", "waiting for a memory write (MWAIT)"),
    (37, "MONITOR_TRAP_FLAG", "single step"),
    (39, "MONITOR", "MONITOR"),
    (40, "PAUSE", "spinning on a lock (PAUSE)"),
    (41, "MCE_DURING_VMENTRY", "machine check"),
    (43, "TPR_BELOW_THRESHOLD", "task priority lowered"),
    (44, "APIC_ACCESS", "APIC access"),
    (45, "EOI_INDUCED", "end of an interrupt that KVM must see"),
    (46, "GDTR_IDTR", "descriptor table register"),
    (47, "LDTR_TR", "local descriptor table or task register"),
    (48, "EPT_VIOLATION", "nested page fault: memory not mapped yet"),
    (49, "EPT_MISCONFIG", "access to a device's memory"),
    (50, "INVEPT", "INVEPT for the guest's own guest"),
    (51, "RDTSCP", "read of the time stamp counter"),
    (52, "PREEMPTION_TIMER", "the guest's timer is due"),
    (53, "INVVPID", "INVVPID for the guest's own guest"),
    (54, "WBINVD", "write-back of the caches"),
    (55, "XSETBV", "write of an extended control register"),
    (56, "APIC_WRITE", "APIC write"),
    (57, "RDRAND", "random number"),
    (58, "INVPCID", "invalidation of address spaces"),
    (59, "VMFUNC", "VMFUNC"),
    (60, "ENCLS", "enclave instruction"),
    (61, "RDSEED", "random seed"),
    (62, "PML_FULL", "log of written pages is full"),
    (63, "XSAVES", "XSAVES"),
    (64, "XRSTORS", "XRSTORS"),
    (67, "UMWAIT", "UMWAIT"),
    (68, "TPAUSE", "TPAUSE"),
    (74, "BUS_LOCK", "bus lock"),
    (75, "NOTIFY", "no instruction finished for long"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_and_unknown_ones_stay_numbers() {
        let name = |isa, code| words(isa, code).0;
        assert_eq!(name(Isa::Svm, 0x400), "NPF");
        assert_eq!(name(Isa::Svm, 0x78), "HLT");
        assert_eq!(name(Isa::Svm, 0x14), "CR4_WRITE");
        assert_eq!(name(Isa::Svm, 0x47), "EXCP7");
        assert_eq!(name(Isa::Vmx, 48), "EPT_VIOLATION");
        assert_eq!(name(Isa::Vmx, 0x8000_0021), "INVALID_STATE");
        assert_eq!(name(Isa::Vmx, 200), "0xc8");
        assert_eq!(name(Isa::of(7), 12), "0xc");
    }

    #[test]
    fn no_code_is_there_twice() {
        for table in [SVM, VMX] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
