use super::*;

#[test]
fn a_halt_stays_in_the_guest_only_where_kvm_says_so() {
    let (mwait, hlt, pause, cstate) = (1, 2, 4, 8);
    assert!(halt_can_stay(hlt).is_ok());
    assert!(halt_can_stay(mwait | hlt | pause | cstate).is_ok());
    // A KVM that lets all stay but this, as one does where threads of a core must not see each other's halts; one that
    // does not know the capability; one that fails.
    for answer in [mwait | pause | cstate, pause, 0, -1] {
        let error = halt_can_stay(answer).unwrap_err().to_string();
        assert!(error.contains("vcpu.halt = \"guest\"") && error.contains("halt = \"poll\""), "{error}");
    }
}

#[test]
fn a_real_kvm_lists_registers() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: no usable /dev/kvm");
        return;
    };
    let listed = listed(&kvm).unwrap();
    // The time stamp counter is in every list there has been.
    assert!(listed.vcpu.contains(&0x10), "{listed:x?}");
}
