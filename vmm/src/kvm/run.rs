#![allow(unsafe_code)] // one union of the kvm_run page: what an internal error says
//! The run loop of a vCPU thread: into the guest, out again, and what that was for.
//!
//! Port and memory accesses that no slot and no in-kernel device answers go to the buses; none of them is on an
//! I/O path. Everything else ends the loop and is reported. Called on the vCPU's own thread.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::Gate;
use super::kick;
use super::vcpu::whereabouts;
use crate::bus::Bus;

/// What answers a guest's accesses.
#[derive(Default)]
pub struct Spaces {
    /// Ports.
    pub ports: Bus,
    /// Memory that is not RAM.
    pub mmio: Bus,
}

/// Exits that came to user space, by kind, since the vCPU was made.
#[derive(Debug, Default)]
pub struct Exits {
    /// Port reads and writes.
    pub ports: AtomicU64,
    /// Memory reads and writes.
    pub mmio: AtomicU64,
    /// Kicks and other signals.
    pub signals: AtomicU64,
}

/// Why a vCPU does not run any more.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The machine sent it home.
    SentHome,
    /// It halted with nothing to wake it; only in a VM without an interrupt chip.
    Halted,
    /// A fault inside the handling of a fault inside the handling of a fault.
    TripleFault(String),
    /// KVM cannot go on with it.
    Failed(String),
}

/// Runs until it ends.
pub fn run(vcpu: &mut VcpuFd, spaces: &Spaces, gate: &Gate, exits: &Exits) -> End {
    let entered = kick::enter(vcpu);
    while gate.pass() {
        let count = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                spaces.ports.write(port.into(), data);
                &exits.ports
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                spaces.ports.read(port.into(), data);
                &exits.ports
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                spaces.mmio.write(address, data);
                &exits.mmio
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                spaces.mmio.read(address, data);
                &exits.mmio
            }
            Ok(VcpuExit::Intr) => {
                entered.clear();
                &exits.signals
            }
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {
                entered.clear();
                &exits.signals
            }
            Ok(exit) => {
                let what = Stop::of(&exit);
                gate.leave();
                return what.report(vcpu);
            }
            Err(errno) => {
                gate.leave();
                return End::Failed(format!("KVM_RUN failed: {errno}; {}", whereabouts(vcpu)));
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
    End::SentHome
}

/// An exit that ends the loop, without its borrow of the vCPU.
enum Stop {
    Halt,
    TripleFault,
    InternalError,
    Other(String),
}

impl Stop {
    fn of(exit: &VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::Hlt => Self::Halt,
            VcpuExit::Shutdown => Self::TripleFault,
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::FailEntry(reason, cpu) => Self::Other(format!(
                "the processor refused to enter the guest (reason {reason:#x} on CPU {cpu})"
            )),
            VcpuExit::SystemEvent(kind, data) => Self::Other(format!("system event {kind} ({data:x?})")),
            VcpuExit::MemoryFault { flags, gpa, size } => {
                Self::Other(format!("memory fault at {gpa:#x}+{size:#x} (flags {flags:#x})"))
            }
            other => Self::Other(format!("unexpected exit {other:?}")),
        }
    }

    fn report(self, vcpu: &mut VcpuFd) -> End {
        match self {
            Self::Halt => End::Halted,
            Self::TripleFault => End::TripleFault(whereabouts(vcpu)),
            Self::InternalError => End::Failed(format!("{}; {}", internal_error(vcpu), whereabouts(vcpu))),
            Self::Other(what) => End::Failed(format!("{what}; {}", whereabouts(vcpu))),
        }
    }
}

/// KVM_EXIT_INTERNAL_ERROR's details (KVM api.rst, `struct kvm_run`).
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: called right after an exit of that kind, so this is the union's valid member; plain integers.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let what = match internal.suberror {
        1 => "KVM cannot emulate the guest's instruction",
        2 => "KVM met two exceptions at once",
        3 => "KVM failed while delivering an event",
        4 => "KVM got an exit it does not know",
        _ => "KVM internal error",
    };
    let count = usize::try_from(internal.ndata).unwrap_or(usize::MAX).min(internal.data.len());
    let data: Vec<String> = internal.data.iter().take(count).map(|word| format!("{word:#x}")).collect();
    format!("{what} (suberror {}, data [{}])", internal.suberror, data.join(", "))
}

#[cfg(test)]
#[path = "run_test.rs"]
mod run_test;
