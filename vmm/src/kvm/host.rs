//! What this host's KVM can do, asked once before anything is built.
//!
//! Refuses early and in words a user can act on: no /dev/kvm, no permission, a KVM without hardware
//! virtualization, a KVM too old, more vCPUs than it has.

use std::io;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_X86_DISABLE_EXITS_HLT,
};
use kvm_ioctls::{Cap, Kvm};

use super::msr::Listed;

/// Why this host cannot run a machine.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device is not there.
    #[error(
        "/dev/kvm does not exist; load the module for this processor (modprobe kvm_intel or modprobe kvm_amd)"
    )]
    Absent,
    /// The device is there, the hardware or the module is not.
    #[error(
        "/dev/kvm exists but no KVM is behind it; load kvm_intel or kvm_amd, \
         and in a virtual machine switch on nested virtualization for it"
    )]
    NoDevice,
    /// The device is there, but not for us.
    #[error("no permission to use /dev/kvm; add the user to the group kvm (usermod -aG kvm USER)")]
    Permission,
    /// Something else.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// Another interface than the one since Linux 2.6.22.
    #[error("KVM has API version {0}; {KVM_API_VERSION} is needed")]
    Version(i32),
    /// Something every KVM of the last years has.
    #[error("this host's KVM lacks {0}; a newer kernel is needed (6.1 is known to work)")]
    Capability(&'static str),
    /// The ioctls work, a guest would not.
    #[error(
        "this host's KVM has no hardware virtualization behind it: the processor offers neither vmx nor svm. \
         In a virtual machine, switch on nested virtualization for it; on hardware, switch it on in the firmware"
    )]
    NoHardware,
    /// The machine is too wide.
    #[error("{wanted} vCPUs are asked for; this host's KVM has at most {most}")]
    TooManyVcpus {
        /// In the machine file.
        wanted: u32,
        /// KVM_CAP_MAX_VCPUS.
        most: usize,
    },
    /// The guest is to halt without an exit.
    #[error(
        "vcpu.halt = \"guest\": this host's KVM does not let a guest halt without an exit (KVM_CAP_X86_DISABLE_EXITS); \
         take halt = \"poll\" or \"host\""
    )]
    OwnHalt,
    /// KVM does not say what it supports.
    #[error("KVM does not say which processor features it supports")]
    Cpuid(#[source] io::Error),
}

/// Capabilities without which nothing works, by the names KVM's documentation has.
const REQUIRED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

/// An open and checked KVM.
#[derive(Debug)]
pub struct Host {
    /// The system descriptor.
    pub kvm: Kvm,
    /// What KVM can show a guest (KVM_GET_SUPPORTED_CPUID).
    pub supported: CpuId,
    /// Which model-specific registers it has.
    pub registers: Listed,
    /// Local APIC timers have the TSC deadline mode.
    pub tsc_deadline: bool,
}

impl Host {
    /// Opens /dev/kvm and checks what does not depend on the machine.
    ///
    /// # Errors
    /// It cannot be opened, or lacks something. Not checked here: [`Host::require_hardware`].
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|errno| match errno.errno() {
            libc::ENOENT => HostError::Absent,
            libc::ENODEV | libc::ENXIO => HostError::NoDevice,
            libc::EACCES | libc::EPERM => HostError::Permission,
            code => HostError::Open(io::Error::from_raw_os_error(code)),
        })?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(HostError::Version(version));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HostError::Capability(name));
        }
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|errno| HostError::Cpuid(errno.into()))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        // Without the list a guest gets no VMX, which is no reason to run none.
        let registers = listed(&kvm).unwrap_or_else(|errno| {
            tracing::warn!(%errno, "KVM does not list its model-specific registers");
            Listed::default()
        });
        Ok(Self { kvm, supported, registers, tsc_deadline })
    }

    /// Checks that a processor with virtualization is behind it. There are hosts where KVM answers every ioctl and
    /// even runs small real-mode programs, but no operating system.
    ///
    /// # Errors
    /// Neither vmx nor svm.
    pub fn require_hardware(&self) -> Result<(), HostError> {
        if hardware() { Ok(()) } else { Err(HostError::NoHardware) }
    }

    /// Checks that HLT need not be an exit.
    ///
    /// # Errors
    /// It has to.
    pub fn require_own_halt(&self) -> Result<(), HostError> {
        halt_can_stay(self.kvm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into()))
    }

    /// Checks that `wanted` vCPUs are possible.
    ///
    /// # Errors
    /// They are not.
    pub fn require_vcpus(&self, wanted: u32) -> Result<(), HostError> {
        let most = self.kvm.get_max_vcpus();
        if wanted as usize > most { Err(HostError::TooManyVcpus { wanted, most }) } else { Ok(()) }
    }
}

/// From KVM's answer about KVM_CAP_X86_DISABLE_EXITS: the exits that can be left out, or an error below zero.
fn halt_can_stay(answer: i32) -> Result<(), HostError> {
    let exits = u32::try_from(answer).unwrap_or(0);
    if exits & KVM_X86_DISABLE_EXITS_HLT != 0 { Ok(()) } else { Err(HostError::OwnHalt) }
}

fn listed(kvm: &Kvm) -> Result<Listed, kvm_ioctls::Error> {
    let vcpu = kvm.get_msr_index_list()?.as_slice().to_vec();
    // Linux 4.16 and newer.
    let features = match kvm.check_extension(Cap::GetMsrFeatures) {
        true => kvm.get_msr_feature_index_list()?.as_slice().to_vec(),
        false => Vec::new(),
    };
    Ok(Listed { vcpu, features })
}

/// CPUID 1 ECX.5 is vmx, 0x80000001 ECX.2 is svm. Asked of the processor: /proc may not be there.
pub(crate) fn hardware() -> bool {
    use core::arch::x86_64::__cpuid;
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    vmx || svm
}

#[cfg(test)]
#[path = "host_test.rs"]
mod host_test;
