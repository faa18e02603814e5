//! Machines under a real systemd as process 1: the package, the units, what an operator does with them.
//!
//! Each case boots a node of its own (a small Debian in namespaces) and installs the package in it.

mod backends;
mod guest;
mod machine;
mod plugged;
mod sockets;

use strata_tests::Case;

/// The cases of this folder.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::host("systemd::units_without_a_guest", sockets::units_without_a_guest),
        Case::host("systemd::units_without_a_guest_on_257", sockets::units_without_a_guest_on_257),
        Case::kvm("systemd::a_machines_life", machine::a_machines_life),
        Case::kvm("systemd::a_machines_life_on_257", machine::a_machines_life_on_257),
        Case::kvm("systemd::disk_and_nic_die_under_load", backends::disk_and_nic_die_under_load),
    ]
}
