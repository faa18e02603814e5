//! With the kernel's own irqfd and ioeventfd, which need no hardware virtualization.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::Kvm;

use super::*;

const DATA: u32 = 0x41;

/// A VM with local APICs in the kernel and one vCPU, or why there is none.
fn vm(irqchip: Irqchip) -> Option<(Arc<VmFd>, kvm_ioctls::VcpuFd)> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("skipped: no /dev/kvm ({error})");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    if irqchip == Irqchip::Split {
        let cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).unwrap();
    } else {
        vm.create_irq_chip().unwrap();
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    // Software-enable the local APIC: it takes no fixed interrupts before.
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[0xf0] = 0xff_u8 as _;
    lapic.regs[0xf1] = 1;
    vcpu.set_lapic(&lapic).unwrap();
    Some((Arc::new(vm), vcpu))
}

/// Whether interrupt `DATA` has arrived at the APIC (its bit in the request register).
fn arrived(vcpu: &kvm_ioctls::VcpuFd) -> bool {
    let lapic = vcpu.get_lapic().unwrap();
    let byte = 0x200 + 0x10 * (DATA as usize / 32) + DATA as usize % 32 / 8;
    lapic.regs[byte] as u8 & 1 << (DATA % 8) != 0
}

fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

fn message() -> Message {
    Message { address: 0xfee0_0000, data: DATA }
}

#[test]
fn a_signal_becomes_an_interrupt() {
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        let Some((vm, vcpu)) = vm(irqchip) else { return };
        let wiring = MsiRoutes::new(vm, irqchip);
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let gsi = wiring.allocate().unwrap();
        wiring.route(&[(gsi, message())]).unwrap();
        wiring.attach(gsi, &event).unwrap();
        assert!(!arrived(&vcpu));
        event.write(1).unwrap();
        assert!(eventually(|| arrived(&vcpu)), "{irqchip:?}");
        wiring.detach(gsi, &event);
        wiring.release(gsi);
        assert_eq!(wiring.allocate().unwrap(), gsi);
    }
}

#[test]
fn a_signal_of_a_masked_time_is_sent_on_attaching() {
    let Some((vm, vcpu)) = vm(Irqchip::Split) else { return };
    let wiring = MsiRoutes::new(vm, Irqchip::Split);
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let gsi = wiring.allocate().unwrap();
    wiring.route(&[(gsi, message())]).unwrap();
    wiring.attach(gsi, &event).unwrap();
    wiring.detach(gsi, &event);
    event.write(1).unwrap();
    assert!(!arrived(&vcpu));
    wiring.attach(gsi, &event).unwrap();
    assert!(eventually(|| arrived(&vcpu)));
}

#[test]
fn a_bad_route_changes_nothing() {
    let Some((vm, vcpu)) = vm(Irqchip::Split) else { return };
    // As the machine does: 32-bit APIC IDs make KVM check the upper half of the address.
    let cap =
        kvm_enable_cap { cap: kvm_bindings::KVM_CAP_X2APIC_API, args: [3, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).unwrap();
    let wiring = MsiRoutes::new(vm, Irqchip::Split);
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (good, bad) = (wiring.allocate().unwrap(), wiring.allocate().unwrap());
    wiring.route(&[(good, message())]).unwrap();
    let wrong = Message { address: 0xff_fee0_0000, data: DATA };
    wiring.route(&[(bad, wrong)]).unwrap_err();
    wiring.attach(good, &event).unwrap();
    event.write(1).unwrap();
    assert!(eventually(|| arrived(&vcpu)));
}

#[test]
fn numbers_run_out_cleanly() {
    let Some((vm, _vcpu)) = vm(Irqchip::Split) else { return };
    let wiring = MsiRoutes::new(vm, Irqchip::Split);
    for _ in FIRST_GSI..MAX_GSI {
        wiring.allocate().unwrap();
    }
    assert!(matches!(wiring.allocate(), Err(WiringError::Exhausted(_))));
    wiring.release(100);
    assert_eq!(wiring.allocate().unwrap(), 100);
}

#[test]
fn doorbells_come_and_go() {
    let Some((vm, _vcpu)) = vm(Irqchip::Split) else { return };
    let wiring = MsiRoutes::new(vm, Irqchip::Split);
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    wiring.ring(0xc000_4000, &event).unwrap();
    wiring.ring(0xc000_4000, &event).unwrap_err();
    wiring.unring(0xc000_4000, &event);
    wiring.ring(0xc000_4000, &event).unwrap();
}

#[test]
fn a_guest_masks_a_vector_and_finds_its_interrupt_pending() {
    use crate::pci::mock::Rig;

    let Some((vm, vcpu)) = vm(Irqchip::Split) else { return };
    let rig = Rig::new(Arc::new(MsiRoutes::new(vm, Irqchip::Split)), &[1]);
    let (registers, doorbells) = rig.open(1);
    // Vector 1: address, data, unmasked; MSI-X on. Then a queue that uses it.
    let entry = registers + 0x2000 + 16;
    rig.write(entry, 0xfee0_0000, 8);
    rig.write(entry + 8, DATA.into(), 4);
    rig.write(entry + 12, 0, 4);
    rig.write(Rig::config(1, 0x42), 0x8000, 2);
    for (field, value, len) in
        [(0x14, 3, 1), (0x08, 1, 4), (0x0c, 1, 4), (0x14, 0xb, 1), (0x1a, 1, 2), (0x1c, 1, 2), (0x14, 0xf, 1)]
    {
        rig.write(registers + field, value, len);
    }
    assert_eq!(rig.read(registers + 0x14, 1), 0xf);
    let call = rig.seen[0].lock().unwrap().running[0].as_mut().unwrap().call.take().unwrap();
    let signal = || nix::unistd::write(&call, &1_u64.to_ne_bytes()).unwrap();
    let clear = || {
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0x200 + 0x10 * (DATA as usize / 32)..][..4].fill(0);
        vcpu.set_lapic(&lapic).unwrap();
        assert!(!arrived(&vcpu));
    };
    let pending = || rig.read(doorbells + 0x2000, 8);
    signal();
    assert!(eventually(|| arrived(&vcpu)));
    assert_eq!(pending(), 0);
    for (mask, unmask) in
        [((entry + 12, 1), (entry + 12, 0)), ((Rig::config(1, 0x42), 0xc000), (Rig::config(1, 0x42), 0x8000))]
    {
        clear();
        rig.write(mask.0, mask.1, 2);
        signal();
        assert_eq!(pending(), 2);
        assert!(!arrived(&vcpu), "masked");
        rig.write(unmask.0, unmask.1, 2);
        assert!(eventually(|| arrived(&vcpu)), "sent at unmask");
        assert_eq!(pending(), 0);
    }
    // Masked without a signal: nothing comes at unmask.
    clear();
    rig.write(entry + 12, 1, 4);
    assert_eq!(pending(), 0);
    rig.write(entry + 12, 0, 4);
    assert!(!arrived(&vcpu));
    // Another message for the vector while it is live.
    rig.write(entry + 8, u64::from(DATA) + 32, 4);
    signal();
    let other = 0x200 + 0x10 * (DATA as usize / 32 + 1);
    assert!(eventually(|| vcpu.get_lapic().unwrap().regs[other] as u8 & 1 << (DATA % 8) != 0));
    assert!(!arrived(&vcpu));
}
