//! Model-specific registers: those a vCPU begins with, as firmware would leave them, and those that KVM lists for VMX.
//!
//! The registers of VMX (Intel SDM volume 3, appendix A) hold what KVM puts there for each vCPU; KVM answers a guest's
//! reads of them where the guest's CPUID shows VMX and nowhere else, so showing and hiding is done there
//! ([`super::cpuid`]). Left to do is what firmware does: locking feature control. Called by the host's check and by
//! [`super::vcpu`]. Refuses to go on if KVM does not take a value.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back: RAM is cacheable unless a page says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
const FEATURE_CONTROL: u32 = 0x3a;
/// Locked, VMX allowed outside SMX; a guest's kvm_intel wants to find it so.
const FEATURE_CONTROL_VMX: u64 = 1 | 1 << 2;
/// IA32_VMX_BASIC to IA32_VMX_VMCS_ENUM: what every processor with VMX has. Those behind them depend on what these say.
const VMX: std::ops::RangeInclusive<u32> = 0x480..=0x48a;

/// The registers this host's KVM lists.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Of a vCPU (KVM_GET_MSR_INDEX_LIST).
    pub vcpu: Vec<u32>,
    /// That say what a vCPU can do (KVM_GET_MSR_FEATURE_INDEX_LIST).
    pub features: Vec<u32>,
}

impl Listed {
    /// Whether a guest that is shown VMX finds the registers that go with it.
    #[must_use]
    pub fn has_vmx(&self) -> bool {
        self.vcpu.contains(&FEATURE_CONTROL) && VMX.into_iter().all(|msr| self.features.contains(&msr))
    }
}

/// Why registers could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// The call failed.
    #[error("KVM refused to set model-specific registers")]
    Set(#[source] io::Error),
    /// It stopped at one.
    #[error("KVM refused to set model-specific register {0:#x}")]
    One(u32),
    /// A list longer than KVM takes.
    #[error("too many model-specific registers")]
    TooMany,
}

/// Sets the boot values. `vmx`: the guest is shown VMX.
///
/// # Errors
/// KVM refused one.
pub fn set_boot_values(vcpu: &VcpuFd, vmx: bool) -> Result<(), MsrError> {
    set(vcpu, &boot_values(vmx))
}

fn boot_values(vmx: bool) -> Vec<(u32, u64)> {
    let mut values = vec![(MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)];
    if vmx {
        values.push((FEATURE_CONTROL, FEATURE_CONTROL_VMX));
    }
    values
}

fn set(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), MsrError> {
    let entries: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| MsrError::TooMany)?;
    let done = vcpu.set_msrs(&msrs).map_err(|errno| MsrError::Set(errno.into()))?;
    match values.get(done) {
        None => Ok(()),
        Some((index, _)) => Err(MsrError::One(*index)),
    }
}

#[cfg(test)]
#[path = "msr_test.rs"]
mod msr_test;
