#![allow(unsafe_code)] // memory slots hand KVM our addresses; two ioctls the crate lacks
//! One KVM VM: interrupt controllers, memory slots, what is switched off. A reboot makes a new one.
//!
//! Called by the machine while it builds a board. Holds the memory behind its slots for as long as KVM may use
//! it, which is as long as the VM's descriptor lives.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_DISABLE_EXITS, KVM_MEM_READONLY,
    KVM_PMU_CAP_DISABLE, KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use strata_virtio::memory::Memory;

use super::host::Host;
use crate::pci::{SHADOW_SIZE, SPARE_PAGE, Shadow};
use crate::x86::layout;

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM refused a step.
    #[error("KVM refused {what}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |errno| VmError::Kvm { what, source: errno.into() }
}

/// A VM with its memory.
pub struct Vm {
    fd: Arc<VmFd>,
    slots: u32,
    // After `fd`, so that they are dropped later: KVM has their addresses.
    _memory: Arc<Memory>,
    shadow: Option<Arc<Shadow>>,
}

impl Vm {
    /// A VM with all of `memory` in place, local APICs for its vCPUs, and no vCPU.
    ///
    /// # Errors
    /// KVM refused a step.
    pub fn new(host: &Host, memory: Arc<Memory>) -> Result<Self, VmError> {
        // Interrupted calls of this one are known to fail with EINTR while signals come in.
        let fd = loop {
            match host.kvm.create_vm() {
                Err(errno) if errno.errno() == libc::EINTR => {}
                made => break made.map_err(refused("to create a VM"))?,
            }
        };
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("the identity map's address"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(refused("the task segment's address"))?;
        // Local APICs in KVM, nothing else: no PIC, no PIT, and an IOAPIC of our own (`legacy::ioapic` says why).
        // No route is reserved for it, since it sends messages.
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        fd.enable_cap(&split).map_err(refused("local APICs"))?;
        // Without a virtual PMU: a kernel that finds one probes its counters and arms a watchdog with it, all by
        // MSR exits. Not every KVM can leave it out; CPUID hides it in any case.
        let without_pmu = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            args: [u64::from(KVM_PMU_CAP_DISABLE), 0, 0, 0],
            ..Default::default()
        };
        if let Err(errno) = fd.enable_cap(&without_pmu) {
            tracing::debug!(%errno, "this KVM cannot leave the PMU out");
        }
        let mut vm = Self { fd: Arc::new(fd), slots: 0, _memory: Arc::clone(&memory), shadow: None };
        for region in memory.regions() {
            vm.add_slot(region.gpa(), region.size(), region.host() as u64, 0)?;
        }
        Ok(vm)
    }

    /// Has HLT leave the guest no more: a vCPU that halts keeps its CPU. Before the first vCPU.
    ///
    /// # Errors
    /// KVM refused.
    pub fn let_halt(&self) -> Result<(), VmError> {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            args: [KVM_X86_DISABLE_EXITS_HLT.into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd.enable_cap(&cap).map_err(refused("to let the guest halt without an exit"))
    }

    /// The VM's descriptor, for interrupts and doorbells.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Maps `shadow` at `gpa`, and its spare page also at `page_gpa`: reads go there, writes leave the guest as MMIO.
    ///
    /// # Errors
    /// KVM refused.
    pub fn add_shadow(&mut self, gpa: u64, page_gpa: u64, shadow: Arc<Shadow>) -> Result<(), VmError> {
        self.add_slot(gpa, SHADOW_SIZE as u64, shadow.host_address(), KVM_MEM_READONLY)?;
        let page = shadow.host_address() + SPARE_PAGE as u64;
        self.add_slot(page_gpa, (SHADOW_SIZE - SPARE_PAGE) as u64, page, KVM_MEM_READONLY)?;
        self.shadow = Some(shadow);
        Ok(())
    }

    fn add_slot(&mut self, gpa: u64, size: u64, host: u64, flags: u32) -> Result<(), VmError> {
        let region = kvm_userspace_memory_region {
            slot: self.slots,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the range is a mapping that this value keeps at least as long as the VM's descriptor.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(refused("a memory slot"))?;
        self.slots += 1;
        Ok(())
    }

    /// Makes the vCPU whose APIC id is `id`.
    ///
    /// # Errors
    /// KVM refused.
    pub fn vcpu(&self, id: u32) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(id.into()).map_err(refused("a vCPU"))
    }
}

/// KVM_PRE_FAULT_MEMORY (Linux 6.11): `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`, 64 bytes.
const KVM_PRE_FAULT_MEMORY: libc::c_ulong = 0xc040_aed5;

#[repr(C)]
#[derive(Default)]
struct PreFault {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// Has KVM map `size` bytes at `gpa` now, so that the guest does not fault on them one by one. Allocates what is
/// not there yet. Takes any vCPU of the VM.
///
/// # Errors
/// The kernel is older than 6.11, or there is no memory.
pub fn pre_fault(vcpu: &VcpuFd, gpa: u64, size: u64) -> io::Result<()> {
    let mut range = PreFault { gpa, size, ..Default::default() };
    while range.size > 0 {
        // SAFETY: the structure is laid out as the kernel's; it reads and updates it and nothing else.
        let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_PRE_FAULT_MEMORY, &raw mut range) };
        if done < 0 {
            let error = io::Error::last_os_error();
            if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                continue;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// KVM_X86_SETUP_MCE: `_IOW(KVMIO, 0x9c, __u64)`.
const KVM_X86_SETUP_MCE: libc::c_ulong = 0x4008_ae9c;

/// Gives the vCPU machine check `banks` instead of KVM's 32. A kernel reads and writes every bank it finds at boot,
/// and no machine check is ever injected here.
///
/// # Errors
/// KVM refused.
pub fn set_mce_banks(vcpu: &VcpuFd, banks: u8) -> io::Result<()> {
    let cap = u64::from(banks);
    // SAFETY: the kernel reads the eight bytes pointed to.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_X86_SETUP_MCE, &raw const cap) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
