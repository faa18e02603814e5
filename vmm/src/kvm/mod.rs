//! Everything that talks to KVM: the host's abilities, the VM, its vCPUs, and what leaves them.

pub mod cpuid;
pub mod doorbell;
pub mod gate;
pub mod host;
pub mod irq;
pub mod kick;
pub mod msr;
pub mod run;
pub mod stats;
pub mod vcpu;
pub mod vm;
