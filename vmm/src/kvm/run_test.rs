//! Tiny real-mode guests on the machine's own KVM; no hardware virtualization is needed for these.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use strata_virtio::memory::Memory;

use super::*;
use crate::bus::BusDevice;

const CODE: u64 = 0x1000;
const LONG: Duration = Duration::from_secs(120);

struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
}

/// 64 KiB of memory, `code` at 0x1000, no interrupt chip.
fn guest(code: &[u8]) -> Option<Guest> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(errno) => {
            eprintln!("skipped: no usable /dev/kvm ({errno})");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    let memory = Memory::anonymous(0x1_0000).unwrap();
    memory.write_at(CODE, code).unwrap();
    let region = memory.regions().next().unwrap();
    let slot = kvm_userspace_memory_region {
        memory_size: region.size(),
        userspace_addr: region.host() as u64,
        ..Default::default()
    };
    // SAFETY: the memory lives as long as the VM, in the same structure.
    unsafe { vm.set_user_memory_region(slot).unwrap() };
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    // A data segment that begins where memory ends.
    (sregs.ds.base, sregs.ds.selector) = (0x1_0000, 0x1000);
    vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_bindings::kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).unwrap();
    Some(Guest { vcpu, _vm: vm, _memory: memory })
}

fn open_gate() -> Gate {
    let gate = Gate::new(1);
    gate.open();
    gate
}

/// Reads as 41 and remembers the last write.
struct Cell(Arc<AtomicU64>);

impl BusDevice for Cell {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(41);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.store(offset << 8 | u64::from(data[0]), Ordering::Relaxed);
    }
}

fn spaces() -> (Spaces, Arc<AtomicU64>, Arc<AtomicU64>) {
    let (port, mmio) = (Arc::default(), Arc::default());
    let mut spaces = Spaces::default();
    spaces.ports.attach(0x10, 2, Box::new(Cell(Arc::clone(&port)))).unwrap();
    spaces.mmio.attach(0x1_0000, 0x100, Box::new(Cell(Arc::clone(&mmio)))).unwrap();
    (spaces, port, mmio)
}

#[test]
fn port_and_memory_accesses_make_the_round_trip() {
    // in al, 0x10; inc al; out 0x11, al; mov al, [0x20]; inc al; inc al; mov [0x21], al; in al, 0x99; hlt
    let code = [
        0xe4, 0x10, 0xfe, 0xc0, 0xe6, 0x11, 0xa0, 0x20, 0x00, 0xfe, 0xc0, 0xfe, 0xc0, 0xa2, 0x21, 0x00, 0xe4,
        0x99, 0xf4,
    ];
    let Some(mut guest) = guest(&code) else { return };
    let (spaces, port, mmio) = spaces();
    let exits = Exits::default();
    assert_eq!(run(&mut guest.vcpu, &spaces, &open_gate(), &exits), End::Halted);
    assert_eq!(port.load(Ordering::Relaxed), 0x12a);
    assert_eq!(mmio.load(Ordering::Relaxed), 0x212b);
    assert_eq!(guest.vcpu.get_regs().unwrap().rax & 0xff, 0xff, "a port nobody owns");
    assert_eq!((exits.ports.load(Ordering::Relaxed), exits.mmio.load(Ordering::Relaxed)), (3, 2));
}

#[test]
fn an_instruction_kvm_cannot_fetch_is_told() {
    // jmp far 0x2000:0 leads outside memory
    let code = [0xea, 0, 0, 0, 0x20];
    let Some(mut guest) = guest(&code) else { return };
    match run(&mut guest.vcpu, &Spaces::default(), &open_gate(), &Exits::default()) {
        End::Failed(why) => assert!(why.contains("rip="), "{why}"),
        // Some KVMs turn it into a fault of the guest's.
        End::TripleFault(_) => {}
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_guest_that_never_exits_can_be_stopped_and_started() {
    // again: inc word [cs:0x2000]; jmp again
    let code = [0x2e, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9];
    let Some(Guest { mut vcpu, _vm, _memory: memory }) = guest(&code) else { return };
    kick::install().unwrap();
    let gate = Arc::new(Gate::new(1));
    let thread = thread::spawn({
        let gate = Arc::clone(&gate);
        move || run(&mut vcpu, &Spaces::default(), &gate, &Exits::default())
    });
    let count = || memory.read_obj::<u16>(0x2000).unwrap();
    for _ in 0..50 {
        let before = count();
        gate.open();
        let deadline = Instant::now() + LONG;
        while count() == before {
            assert!(Instant::now() < deadline, "the guest does not run");
            thread::yield_now();
        }
        gate.close();
        kick::kick(&thread);
        assert!(gate.wait_standing(LONG), "the guest does not stop");
        let standing = count();
        thread::yield_now();
        assert_eq!(count(), standing);
    }
    gate.end();
    assert_eq!(thread.join().unwrap(), End::SentHome);
}

#[test]
fn the_code_at_the_reset_vector_resets() {
    use crate::legacy::power::Power;
    use crate::machine::Event;
    use crate::x86::{boot, layout};
    let Some(mut guest) = guest(&boot::reset_code()) else { return };
    let (sender, events) = std::sync::mpsc::channel();
    let gate = Arc::new(open_gate());
    let mut spaces = Spaces::default();
    spaces.ports.attach(layout::PM_PORT.into(), 3, Box::new(Power::new(Arc::clone(&gate), sender))).unwrap();
    let thread = thread::spawn({
        let gate = Arc::clone(&gate);
        move || run(&mut guest.vcpu, &spaces, &gate, &Exits::default())
    });
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Reset)));
    gate.end();
    assert_eq!(thread.join().unwrap(), End::SentHome);
}
