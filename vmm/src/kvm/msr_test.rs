//! On lists as KVM gives them on Intel, cut down to what VMX needs; with the CPUID that goes with them.

use kvm_bindings::kvm_cpuid_entry2;
use strata_config::Topology;

use super::*;
use crate::kvm::cpuid::{Template, Wanted};

/// CPUID 1 ECX.
const CPUID_VMX: u32 = 1 << 5;

/// With `nested=1`: kvm_intel lists 0x480 to 0x491 among the features, and feature control among a vCPU's registers.
fn nested() -> Listed {
    Listed {
        vcpu: vec![0x174, 0x175, 0x176, 0x277, 0xc000_0081, 0x10, 0x3a, 0x3b, 0x6e0, 0x1a0, 0xfe],
        features: (0x480..=0x491).chain([0x8b, 0x10a, 0x345]).collect(),
    }
}

/// With `nested=0`: none of those features.
fn flat() -> Listed {
    Listed { features: vec![0x8b, 0x10a, 0x345], ..nested() }
}

fn without(mut listed: Listed, msr: u32) -> Listed {
    listed.vcpu.retain(|it| *it != msr);
    listed.features.retain(|it| *it != msr);
    listed
}

fn processor(vmx: bool) -> [kvm_cpuid_entry2; 2] {
    let entry = |function, eax, ecx| kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() };
    [entry(0, 0x20, 0), entry(1, 0x000c_06f2, if vmx { CPUID_VMX } else { 0 })]
}

/// What a guest gets: whether its CPUID shows VMX, and feature control if firmware would have written it.
fn given(vmx: bool, listed: &Listed, nested: bool) -> (bool, Option<u64>) {
    let topology = Topology { sockets: 1, cores: 1, threads: 1 };
    let vmx_registers = listed.has_vmx();
    let wanted = Wanted { topology, nested, vmx_registers, tsc_deadline: true, polls: false };
    let template = Template::new(&processor(vmx), wanted);
    let shown = template.of(0).unwrap().as_slice().iter().any(|e| e.function == 1 && e.ecx & CPUID_VMX != 0);
    assert_eq!(template.has_vmx(), shown);
    assert_eq!(template.is_nested(), shown);
    let values = boot_values(template.has_vmx());
    assert!(values.iter().all(|(msr, _)| !(0x480..=0x491).contains(msr)), "those are KVM's to fill");
    (shown, values.iter().find(|(msr, _)| *msr == 0x3a).map(|(_, value)| *value))
}

#[test]
fn vmx_is_given_where_it_is_wanted_and_whole() {
    // Locked (bit 0), VMX outside SMX (bit 2).
    assert_eq!(given(true, &nested(), true), (true, Some(0b101)));
}

#[test]
fn vmx_is_hidden_where_it_is_not_wanted() {
    assert_eq!(given(true, &nested(), false), (false, None));
    assert_eq!(given(true, &flat(), false), (false, None));
    assert_eq!(given(false, &nested(), false), (false, None));
}

#[test]
fn vmx_is_never_given_where_kvm_does_not_list_it() {
    assert_eq!(given(false, &flat(), true), (false, None));
    assert_eq!(given(false, &nested(), true), (false, None));
    assert_eq!(given(true, &flat(), true), (false, None));
    assert_eq!(given(true, &without(nested(), 0x3a), true), (false, None));
    for msr in 0x480..=0x48a {
        assert_eq!(given(true, &without(nested(), msr), true), (false, None), "{msr:#x}");
    }
}

#[test]
fn registers_that_not_every_vmx_has_are_not_asked_for() {
    for msr in 0x48b..=0x491 {
        assert_eq!(given(true, &without(nested(), msr), true), (true, Some(0b101)), "{msr:#x}");
    }
}
