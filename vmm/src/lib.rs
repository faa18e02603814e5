//! The vmm process: it owns the guest's memory and vCPUs, shows the guest a PCI bus, and does no device I/O.
//!
//! The machine half ([`machine`], [`kvm`], [`x86`], [`legacy`], [`control`]) makes a computer; the device half ([`pci`],
//! [`frontend`], [`console`]) puts virtio devices on its bus, most of which live in other processes. They meet
//! in [`bus`] and in `machine/board.rs`. `main.rs` only reads the command line.

pub mod args;
pub mod bus;
pub mod console;
pub mod control;
pub mod frontend;
pub mod kvm;
pub mod legacy;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod x86;
