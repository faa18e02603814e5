//! Boots guests and watches them: what the guest tests and the demo share.
//!
//! A guest is started through the real binaries, as a user would. What it prints is read line by line, and tests wait
//! for lines and processes, not for time; limits are generous because the rig is software.
//!
//! Owns: images, initramfs, taps and processes of one case, all below the case's own folder. Called by: `cases/` and
//! `xtask`. Nothing here may outlive its case: [`leftovers`] looks.

pub mod account;
pub mod case;
pub mod control;
pub mod exits;
pub mod fio;
pub mod guest;
pub mod image;
pub mod leftovers;
pub mod libraries;
pub mod lines;
pub mod load;
pub mod locked;
pub mod measure;
pub mod net;
pub mod node;
pub mod peers;
pub mod process;
pub mod programs;
pub mod qemu;
pub mod report;
pub mod strata;
pub mod stream;

pub use case::{Case, Context, Needs, skip};
