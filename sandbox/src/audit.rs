//! What is in force around a process, seen from outside, out of /proc.
//!
//! Called by `strata ps` and by the tests of the sandbox, so what users are shown is what is tested. Reads as much as
//! the caller may: who is neither root nor the owner sees namespaces as unknown. Trusts the kernel only, not the
//! process.

mod proc;
mod report;

pub use proc::{audit, inner};
pub use report::{Capabilities, Namespace, Report, Root, Seccomp, Visibility};

#[cfg(test)]
mod audit_test;
