//! One vCPU as it stands before its first instruction.
//!
//! The boot vCPU gets the mode and registers its kernel's entry asks for; the others wait for INIT, as the
//! interrupt chip leaves them. Called by the machine while it builds a board.

use std::io;

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs};
use kvm_ioctls::VcpuFd;

use super::cpuid::{Template, TooMany};
use super::msr::{self, MsrError};
use super::vm;
use crate::x86::boot::Start;
use crate::x86::paging::{self, Mode};

/// Why a vCPU could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a step.
    #[error("vCPU {index}: KVM refused {what}")]
    Kvm {
        /// Which vCPU.
        index: u8,
        /// The step.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its CPUID list is too long.
    #[error("vCPU {0}: its CPUID cannot be set")]
    Cpuid(u8, #[source] TooMany),
    /// Its registers could not be set.
    #[error("vCPU {0}: its registers cannot be set")]
    Msr(u8, #[source] MsrError),
}

/// RFLAGS: bit 1 is always set.
const RFLAGS: u64 = 2;
/// x87 control word and MXCSR after FNINIT and reset (AMD APM volume 2, 14.1.3).
const FCW: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
/// Local vector table entry of the LINT1 pin, byte offset in the APIC page.
const LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 0x400;
/// One bank: what a kernel expects at least, and as little as it can be made to walk.
const MCE_BANKS: u8 = 1;

/// Prepares vCPU `index`; the boot vCPU has a `start`.
///
/// # Errors
/// KVM refused something.
pub fn prepare(vcpu: &VcpuFd, index: u8, cpuid: &Template, start: Option<Start>) -> Result<(), VcpuError> {
    let refused = |what| move |errno: kvm_ioctls::Error| VcpuError::Kvm { index, what, source: errno.into() };
    let list = cpuid.of(index).map_err(|error| VcpuError::Cpuid(index, error))?;
    vcpu.set_cpuid2(&list).map_err(refused("its CPUID"))?;
    vm::set_mce_banks(vcpu, MCE_BANKS).map_err(|source| VcpuError::Kvm {
        index,
        what: "its machine check banks",
        source,
    })?;
    msr::set_boot_values(vcpu, cpuid.has_vmx()).map_err(|error| VcpuError::Msr(index, error))?;
    let mut lapic = vcpu.get_lapic().map_err(refused("its local APIC"))?;
    // As the MP specification has it (1.4, 3.6.2.2); LINT0 stays masked, there is no PIC behind it.
    put(&mut lapic, LINT1, DELIVER_NMI);
    vcpu.set_lapic(&lapic).map_err(refused("its local APIC"))?;
    let Some(start) = start else { return Ok(()) };

    let mut sregs = vcpu.get_sregs().map_err(refused("its segment registers"))?;
    paging::set_mode(&mut sregs, start.mode);
    vcpu.set_sregs(&sregs).map_err(refused("its segment registers"))?;
    let regs = kvm_regs { rip: start.rip, rflags: RFLAGS, ..Default::default() };
    let regs = match start.mode {
        Mode::Long => kvm_regs { rsi: start.info, ..regs },
        Mode::Protected => kvm_regs { rbx: start.info, ..regs },
    };
    vcpu.set_regs(&regs).map_err(refused("its registers"))?;
    vcpu.set_fpu(&kvm_fpu { fcw: FCW, mxcsr: MXCSR, ..Default::default() }).map_err(refused("its FPU"))
}

fn put(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (register, byte) in lapic.regs.iter_mut().skip(at).zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

/// The registers that tell where a vCPU is, for a report.
#[must_use]
pub fn whereabouts(vcpu: &VcpuFd) -> String {
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "its registers cannot be read".to_owned();
    };
    format!(
        "rip={:#x} rsp={:#x} rflags={:#x} cs={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        sregs.cs.selector,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer
    )
}
