//! A machine with real KVM where the host has none, and what tests need to be on a host at all.
//!
//! QEMU's TCG emulates AMD SVM with nested paging. A Debian kernel boots in it with `kvm_amd` loaded and runs a
//! command of ours on this host's own file system: read-only below, a tmpfs overlay above. To whatever runs in
//! there `/dev/kvm` is real: hardware exits, nested page faults, interrupt windows and all. It starts in about nine
//! seconds, and one start serves a whole test run.
//!
//! Owns: the packages, kernels and initramfs kept under `target/strata`, and the QEMU process.
//! Called by: `xtask` and the guest tests. Refuses: to touch anything of the host beyond Debian packages.

pub mod cpio;
pub mod debian;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod kvm;
pub mod machine;
pub mod modules;
pub mod packages;
pub mod place;
pub mod progress;
pub mod setup;
pub mod stamp;
pub mod tool;
pub mod vmlinux;

pub use kvm::Kvm;
pub use machine::Rig;
pub use place::Place;
