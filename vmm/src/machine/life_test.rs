//! Whole lives with guests of a few instructions, entered as a vmlinux is. They need only a /dev/kvm that runs small
//! programs.

use std::io::Write;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use strata_config::Machine;

use super::*;
use crate::kvm::cpuid::{Template, Wanted};
use crate::kvm::host::Host;
use crate::x86::boot::Payload;
use crate::x86::kernel::Kernel;
use crate::x86::kernel::kernel_test::vmlinux;

const LONG: Duration = Duration::from_secs(120);
/// A word of low memory that outlives a reboot.
const COUNTER: u64 = 0x3_0000;

/// mov dx, port; mov al, value; out dx, al; again: hlt; jmp again
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]
}

/// lock inc dword [COUNTER]
const COUNT: [u8; 8] = [0xf0, 0xff, 0x05, 0x00, 0x00, 0x03, 0x00, 0x90];

fn power_off() -> Vec<u8> {
    out(0x601, 0x34)
}

/// A machine about to live, if this host has a KVM at all.
fn machine(code: &[u8], extra: &str) -> Option<Life> {
    machine_in(&std::env::temp_dir(), code, extra)
}

/// The same, with its sockets in a folder.
pub(in crate::machine) fn machine_in(folder: &std::path::Path, code: &[u8], extra: &str) -> Option<Life> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let mut image = tempfile::NamedTempFile::new().unwrap();
    // The entry is the 16th byte.
    image.write_all(&vmlinux(&[vec![0x90; 16], code.to_vec()].concat())).unwrap();
    let path = image.path().display();
    let machine: Machine =
        format!("kernel = \"{path}\"\nconsole = \"off\"\nmemory = \"32M\"\n{extra}").parse().unwrap();
    let topology = machine.vcpu.topology;
    let vmx_registers = host.registers.has_vmx();
    let tsc_deadline = host.tsc_deadline;
    let wanted = Wanted { topology, nested: true, vmx_registers, tsc_deadline, polls: false };
    let cpuid = Template::new(host.supported.as_slice(), wanted);
    let place = super::backends::Place::new(&machine, folder).unwrap();
    let payload = Payload {
        kernel: Kernel::open(image.path()).unwrap(),
        initrd: None,
        cmdline: machine.cmdline.clone(),
    };
    let parts = Parts {
        machine,
        host,
        cpuid,
        payload,
        identity: crate::x86::smbios::Facts::default(),
        huge_pages: None,
        control: None,
        console: None,
        serial: None,
        backends: Vec::new(),
        place,
        notify: strata_sandbox::Notify::default(),
        visible: Vec::new(),
    };
    let ram = Ram::new(32 << 20, false, None, |_| Err(std::io::ErrorKind::Unsupported.into())).unwrap();
    ram.memory.write_obj(COUNTER, 0_u32).unwrap();
    Some(Life::new(parts, ram, Arc::new(Shadow::anonymous().unwrap()), Namespaces::Own).unwrap())
}

pub(in crate::machine) type Ended = JoinHandle<Result<(), MachineError>>;

/// The machine, living on a thread of its own, and what is left to look at.
pub(in crate::machine) fn start(
    life: Life,
) -> (Ended, Sender<Event>, Arc<Shared>, Arc<strata_virtio::memory::Memory>) {
    let (events, shared, memory) =
        (life.events.clone(), Arc::clone(&life.shared), Arc::clone(&life.ram.memory));
    (thread::spawn(move || life.run()), events, shared, memory)
}

fn failure(ended: Ended) -> Failure {
    match ended.join().unwrap() {
        Err(MachineError::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

pub(in crate::machine) fn ask(events: &Sender<Event>, command: Command) -> Result<(), Refused> {
    let (reply, answer) = sync_channel(1);
    events.send(Event::Command(command, reply)).unwrap();
    answer.recv_timeout(LONG).unwrap()
}

pub(in crate::machine) fn wait_for(what: &str, mut true_now: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !true_now() {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_that_powers_off_ends_well() {
    let Some(life) = machine(&power_off(), "cpus = 2") else { return };
    let (ended, _, shared, _) = start(life);
    ended.join().unwrap().unwrap();
    assert_eq!((shared.state(), shared.reboots()), (MachineState::Stopping, 0));
    assert_eq!(shared.meters().vcpus.len(), 2);
}

#[test]
fn a_guest_that_resets_lives_again_over_the_same_memory() {
    // count; if it is 4: power off, else reset
    let cmp = [0x83, 0x3d, 0x00, 0x00, 0x03, 0x00, 0x04, 0x75, power_off().len() as u8];
    let code = [&COUNT[..], &cmp, &power_off(), &out(0x600, 1)].concat();
    let Some(life) = machine(&code, "cpus = 2") else { return };
    let (ended, _, shared, memory) = start(life);
    ended.join().unwrap().unwrap();
    assert_eq!(shared.reboots(), 3);
    assert_eq!(memory.read_obj::<u32>(COUNTER).unwrap(), 4);
}

#[test]
fn a_reset_ends_the_machine_where_the_file_says_so() {
    let Some(life) = machine(&[&COUNT[..], &out(0x600, 1)].concat(), "no_reboot = true") else { return };
    let (ended, _, shared, memory) = start(life);
    ended.join().unwrap().unwrap();
    assert_eq!((shared.reboots(), memory.read_obj::<u32>(COUNTER).unwrap()), (0, 1));
}

#[test]
fn a_panic_is_a_failure() {
    let Some(life) = machine(&out(0x505, 1), "") else { return };
    assert_eq!(failure(start(life).0), Failure::Panicked);
}

#[test]
fn a_guest_that_panics_and_resets_lives_on_unless_it_must_not() {
    // count; if it is 2: power off, else panic and reset
    let mut panic = out(0x505, 1);
    panic.truncate(7);
    let cmp = [0x83, 0x3d, 0x00, 0x00, 0x03, 0x00, 0x02, 0x75, power_off().len() as u8];
    let code = [&COUNT[..], &cmp, &power_off(), &panic, &out(0x600, 1)].concat();
    let Some(life) = machine(&code, "cmdline = \"panic=1\"") else { return };
    let (ended, _, shared, _) = start(life);
    ended.join().unwrap().unwrap();
    assert_eq!(shared.reboots(), 1);

    let Some(life) = machine(&code, "cmdline = \"panic=1\"\nno_reboot = true") else { return };
    assert_eq!(failure(start(life).0), Failure::Panicked);
}

#[test]
fn pause_holds_the_guest_and_resume_lets_it_go_on() {
    // again: count; jmp again
    let Some(life) = machine(&[&COUNT[..], &[0xeb, 0xf6]].concat(), "cpus = 2") else { return };
    let (ended, events, shared, memory) = start(life);
    let count = || memory.read_obj::<u32>(COUNTER).unwrap();
    for _ in 0..5 {
        let before = count();
        wait_for("the guest to count", || count() != before);
        ask(&events, Command::Pause).unwrap();
        ask(&events, Command::Pause).unwrap();
        assert_eq!(shared.state(), MachineState::Paused);
        let standing = count();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(count(), standing);
        assert!(ask(&events, Command::PowerOff).is_err(), "nobody to press the button for");
        ask(&events, Command::Resume).unwrap();
        assert_eq!(shared.state(), MachineState::Running);
    }
    ask(&events, Command::Quit).unwrap();
    ended.join().unwrap().unwrap();
}

#[test]
fn reboot_from_outside_starts_the_guest_again() {
    let Some(life) = machine(&[&COUNT[..], &[0xf4, 0xeb, 0xfd]].concat(), "cpus = 2") else { return };
    let (ended, events, shared, memory) = start(life);
    for reboots in 0..3 {
        wait_for("the guest", || memory.read_obj::<u32>(COUNTER).unwrap() == reboots + 1);
        assert_eq!(shared.reboots(), u64::from(reboots));
        ask(&events, Command::Reboot).unwrap();
    }
    ask(&events, Command::Quit).unwrap();
    ended.join().unwrap().unwrap();
}

#[test]
fn a_restart_waits_for_the_guest_and_then_does_not() {
    // count; halt for ever: it heeds no button.
    let code = [&COUNT[..], &[0xf4, 0xeb, 0xfd]].concat();
    let Some(life) = machine(&code, "stop_timeout = \"50ms\"") else { return };
    let (ended, events, shared, memory) = start(life);
    let count = |wanted| wait_for("the guest", || memory.read_obj::<u32>(COUNTER).unwrap() == wanted);
    count(1);
    // It powers off, as its button said: a machine that starts again.
    events.send(Event::Asked(Command::Restart)).unwrap();
    events.send(Event::PowerOff).unwrap();
    count(2);
    // It does not heed, and is reset.
    events.send(Event::Asked(Command::Restart)).unwrap();
    count(3);
    assert_eq!(shared.reboots(), 2);
    // Who is told to end while it should start again ends.
    events.send(Event::Asked(Command::Restart)).unwrap();
    events.send(Event::Signal(Signal::SIGTERM)).unwrap();
    assert_eq!(failure(ended), Failure::Stubborn(Duration::from_millis(50)));
}

#[test]
fn a_signal_presses_the_button_and_a_second_one_ends_it() {
    let Some(life) = machine(&[0xf4, 0xeb, 0xfd], "") else { return };
    let (ended, events, shared, _) = start(life);
    wait_for("the machine", || shared.state() == MachineState::Running);
    events.send(Event::Signal(Signal::SIGTERM)).unwrap();
    events.send(Event::Signal(Signal::SIGINT)).unwrap();
    assert_eq!(failure(ended), Failure::Killed("SIGINT"));
}

#[test]
fn a_guest_that_does_not_heed_the_button_is_ended() {
    let Some(life) = machine(&[0xf4, 0xeb, 0xfd], "stop_timeout = \"50ms\"") else { return };
    let (ended, events, _, _) = start(life);
    events.send(Event::Signal(Signal::SIGTERM)).unwrap();
    assert_eq!(failure(ended), Failure::Stubborn(Duration::from_millis(50)));
}

#[test]
fn a_vcpu_that_cannot_go_on_is_told() {
    let Some(life) = machine(&[0xf4, 0xeb, 0xfd], "") else { return };
    let (ended, events, _, _) = start(life);
    events.send(Event::VcpuEnded { index: 1, end: End::TripleFault("rip=0x0".to_owned()) }).unwrap();
    assert_eq!(failure(ended), Failure::TripleFault { index: 1, place: "rip=0x0".to_owned() });
}
